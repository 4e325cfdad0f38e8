"""The experts' gradients keep their memory from step to step, and nothing else changes."""

import pytest
import torch
from composer.core import Callback

from flan_moe.experts import Experts
from flan_moe.train.callbacks import lasting_gradients
from flan_moe.train.preflight import check_recipe
from flan_moe.train.run_folder import RunFolder
from flan_moe.train.trainer import build_trainer


class Watch(Callback):
    """Where each weight's gradient lies when the optimizer takes its step, and what it is."""

    def __init__(self):
        self.addresses, self.norms = [], []

    def after_train_batch(self, state, logger):
        experts = [m for m in state.model.modules() if isinstance(m, Experts)]
        weights = [weight for module in experts for weight in (module.wi, module.wo)]
        gradients = [weight.grad for weight in weights]
        self.addresses.append([gradient.data_ptr() for gradient in gradients])
        self.reserved = all(getattr(w, "main_grad", None) is w.grad for w in weights)
        self.norms.append(torch.stack([gradient.norm() for gradient in gradients]))


def train(loaded, out):
    plan = check_recipe(loaded)
    folder = RunFolder(out)
    folder.open(plan.loaded.recipe, plan.data.fingerprint)
    trainer = build_trainer(plan, folder)
    watch = Watch()
    trainer.state.callbacks.append(watch)
    try:
        trainer.fit()
        weights = {k: v.clone() for k, v in trainer.state.model.state_dict().items()}
    finally:
        trainer.close()
        folder.release()
    return weights, watch


@pytest.mark.parametrize("overrides", [(), ("training.microbatch_rows=1",)])
def test_training_is_what_it_would_be_without(load, tmp_path, monkeypatch, overrides):
    overrides = ("training.duration=5ba", *overrides)
    weights, watch = train(load(*overrides), tmp_path / "lasting")
    assert watch.reserved
    assert len(watch.addresses) == 5
    assert all(addresses == watch.addresses[0] for addresses in watch.addresses)

    monkeypatch.setattr(lasting_gradients.LastingGradients, "before_forward", lambda *_: None)
    expected, plain = train(load(*overrides), tmp_path / "plain")
    assert not plain.reserved
    for ours, theirs in zip(watch.norms, plain.norms, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)
        if len(overrides) == 1:  # one backward pass a step: the same products, to the bit
            assert torch.equal(weights[name], value), name
