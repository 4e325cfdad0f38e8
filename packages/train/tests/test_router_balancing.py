"""Routers that balance themselves between steps, in a Composer run."""

import torch
from test_training import assert_bitwise_equal, final_state, run

from flan_moe.train.interruption import TrainingInterruptedError
from flan_moe.train.preflight import check_recipe
from flan_moe.train.run_folder import RunFolder
from flan_moe.train.trainer import build_trainer

ROUTER = (
    "model.overrides.encoder_router={name: deepseek_v4, num_experts: 4, top_k: 2, bias_rate: 0.01}"
)
BIAS = "net.encoder.layers.1.feed_forward.router.selection_bias_E"


class StopAfter:
    """A stop signal that is seen after some batches."""

    def __init__(self, checks):
        self.left = checks

    @property
    def received(self):
        self.left -= 1
        return None if self.left >= 0 else 15


def test_biases_are_updated_once_a_step_and_a_resumed_run_has_the_same(load, tmp_path):
    options = (ROUTER, "training.duration=5ba")
    run(load(*options), tmp_path / "whole")
    bias_E = final_state(tmp_path / "whole")["model"][BIAS]
    assert 0 < bias_E.abs().max() <= 5 * 2 * 0.01, "five steps of at most twice the rate"
    torch.testing.assert_close(bias_E.mean(), torch.tensor(0.0), atol=1e-7, rtol=0)

    folder = RunFolder(tmp_path / "parts")
    plan = check_recipe(load(*options))
    folder.open(plan.loaded.recipe, plan.data.fingerprint)
    plan.config.save_pretrained(folder.model_folder)
    trainer = build_trainer(plan, folder, stop=StopAfter(3), report=lambda line: None)
    try:
        trainer.fit()
    except TrainingInterruptedError:
        pass
    finally:
        trainer.close()
    assert [batch for batch, _ in folder.checkpoints()][-1] < 5
    run(load(*options), tmp_path / "parts")
    assert_bitwise_equal(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))


def test_microbatches_are_one_step(load, tmp_path):
    """The counts of a step's microbatches are added up; here each of them alone is uneven.

    Without dropout: it would draw other numbers for other microbatches, and route otherwise.
    """
    one, many = tmp_path / "one", tmp_path / "many"
    options = (ROUTER, "model.overrides.dropout_rate=0.0", "training.duration=1ba")
    options += ("checkpoint.interval=1ba", "schedule.warmup=1ba")
    run(load(*options), one)
    run(load(*options, "training.microbatch_rows=1"), many)
    biases = [final_state(out)["model"][BIAS] for out in (one, many)]
    assert biases[0].abs().sum() > 0
    torch.testing.assert_close(*biases, atol=1e-6, rtol=0)
