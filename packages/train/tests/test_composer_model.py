"""The Composer adapter: what is backpropagated, what is logged, what a batch costs."""

import re

import pytest
import torch
from composer import Trainer
from packed import packed_batch

from flan_moe.model import FlanMoEForConditionalGeneration, dense_twin, flan_moe_config
from flan_moe.train.batches import data_spec, num_tokens
from flan_moe.train.composer_model import InstructionTuning
from flan_moe.train.row_lengths import RowLengths

ROWS = RowLengths(input=12, target=6)
"""Those of `packed_batch`."""

stacks = ("encoder", "decoder")


def tuning(model):
    return InstructionTuning(model, rows=ROWS)


def network(config=None, **overrides):
    torch.manual_seed(0)
    return FlanMoEForConditionalGeneration(
        config or flan_moe_config("flan-moe-tiny", vocab_size=100, **overrides)
    )


def fit(model, batches, *, duration="1ba", microbatch=100, lr=0.0, **options):
    """Train with SGD so that the step shows the gradient; returns the trainer."""
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=lr),
        train_dataloader=data_spec(batches),
        max_duration=duration,
        device_train_microbatch_size=microbatch,
        accumulate_train_batch_on_tokens=True,
        device="cpu",
        seed=1,
        progress_bar=False,
        auto_log_hparams=False,
        **options,
    )
    trainer.fit()
    trainer.close()
    return trainer


def test_the_total_is_the_cross_entropy_and_the_weighted_auxiliary_losses():
    model = tuning(network(balance_coef=0.5, z_coef=0.25))
    batch = packed_batch()
    losses = model.loss(model(batch), batch)
    assert set(losses) == {
        "total", "cross_entropy", "balance", "balance_weighted", "z", "z_weighted",
    }  # fmt: skip
    torch.testing.assert_close(losses["balance_weighted"], 0.5 * losses["balance"])
    torch.testing.assert_close(losses["z_weighted"], 0.25 * losses["z"])
    torch.testing.assert_close(
        losses["total"].detach(),
        losses["cross_entropy"] + losses["balance_weighted"] + losses["z_weighted"],
    )
    assert [k for k, v in losses.items() if v.requires_grad] == ["total"]
    assert losses["balance"] > 0.5


def test_a_dense_model_has_no_auxiliary_losses():
    model = tuning(network(dense_twin(flan_moe_config("flan-moe-tiny", vocab_size=100))))
    batch = packed_batch()
    losses = model.loss(model(batch), batch)
    assert set(losses) == {"total", "cross_entropy"}
    assert losses["total"].item() == losses["cross_entropy"].item()


def test_composer_backpropagates_the_total_and_logs_every_part():
    model = tuning(network(balance_coef=0.5))
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    batch = packed_batch()
    trainer = fit(model, [batch], lr=0.1)
    reference = tuning(network(balance_coef=0.5))
    reference.loss(reference(batch), batch)["total"].backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(
            dict(model.named_parameters())[name], before[name] - 0.1 * parameter.grad
        )
    assert {"loss/train/total", "loss/train/cross_entropy", "loss/train/balance_weighted"} <= set(
        trainer.state.total_loss_dict
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_accumulated_microbatches_give_the_gradient_of_the_whole_batch(rows):
    """The mean over target tokens, though microbatches differ in how many they have.

    Without capacity and auxiliary losses, which belong to a microbatch by nature.
    """
    router = {"name": "top_k", "num_experts": 4, "top_k": 2, "capacity_factor": None}
    options = {"encoder_router": router, "decoder_router": router, "balance_coef": 0.0}
    batch = packed_batch(rows=4, targets=24)
    per_row = [int((row != -100).sum()) for row in batch["labels"]]
    assert len(set(per_row)) > 1, "rows must differ for the weighting to show"

    whole, divided = (tuning(network(**options)) for _ in range(2))
    fit(whole, [batch], lr=1.0)
    trainer = fit(divided, [batch], lr=1.0, microbatch=rows)
    for (name, a), b in zip(whole.named_parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert trainer.state.timestamp.sample.value == 8
    assert trainer.state.timestamp.token.value == num_tokens(batch)["total"]


def test_validation_metrics_are_means_over_target_tokens():
    model = tuning(network()).eval()
    batches = [packed_batch(seed=s) for s in range(2)]
    metrics = model.get_metrics(is_train=False)
    with torch.no_grad():
        for batch in batches:
            outputs = model.eval_forward(batch)
            for metric in metrics.values():
                model.update_metric(batch, outputs, metric)
        logits = torch.cat([model(b).logits[b["labels"] != -100] for b in batches])
    labels = torch.cat([b["labels"][b["labels"] != -100] for b in batches])
    torch.testing.assert_close(
        metrics["cross_entropy"].compute(), torch.nn.functional.cross_entropy(logits, labels)
    )
    torch.testing.assert_close(
        metrics["token_accuracy"].compute(), (logits.argmax(-1) == labels).float().mean()
    )


def test_flops_are_of_real_tokens_and_active_parameters():
    sparse = flan_moe_config("flan-moe-tiny", vocab_size=100)
    router = {**sparse.encoder_router, "num_experts": 16}
    wide = flan_moe_config(
        "flan-moe-tiny", vocab_size=100, encoder_router=router, decoder_router=router
    )
    batch = packed_batch()
    padded = {
        k: v if k == "task_ids" else torch.nn.functional.pad(v, (0, 50)) for k, v in batch.items()
    }
    flops = tuning(network(sparse)).flops_per_batch(batch)
    assert tuning(network(sparse)).flops_per_batch(padded) == flops
    twin = tuning(network(dense_twin(sparse))).flops_per_batch(batch)
    assert twin == pytest.approx(flops, rel=0.05), "the router is all the twin lacks"
    assert tuning(network(wide)).flops_per_batch(batch) == pytest.approx(flops, rel=0.1)


def test_flops_are_six_per_weight_and_token_and_twelve_per_score():
    """A token's query meets all keys of its row: one product for the score, one for the value."""
    config = dense_twin(flan_moe_config("flan-moe-tiny", vocab_size=100))
    model, batch = network(config), packed_batch()
    weights = {n: p.numel() for n, p in model.named_parameters() if p.dim() == 2}
    head = weights["lm_head.weight"]
    memory = sum(  # keys and values of cross-attention are computed per encoder token
        v for n, v in weights.items() if "cross" in n and re.search(r"\.(k|v)\.|kv", n)
    )
    encoder, decoder = (
        sum(v for n, v in weights.items() if n.startswith(f"{s}.layers")) for s in stacks
    )
    score = config.num_heads * config.d_kv * config.num_layers
    attention = {
        "encoder": 12 * score * ROWS.input,
        "decoder": 12 * score * (ROWS.target + ROWS.input),
    }
    tokens = {s: int((batch[f"{s}_segments"] > 0).sum()) for s in stacks}
    expected = (6 * (encoder + memory) + attention["encoder"]) * tokens["encoder"]
    expected += (6 * (decoder - memory + head) + attention["decoder"]) * tokens["decoder"]
    assert memory > 0
    assert tuning(model).flops_per_batch(batch) == expected


def test_a_short_run_learns_a_batch_by_heart():
    model = tuning(network())
    batch = packed_batch()
    first = model(batch).cross_entropy.item()
    torch.manual_seed(0)
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.AdamW(model.parameters(), lr=0.01),
        train_dataloader=data_spec([batch]),
        max_duration="40ep",
        device_train_microbatch_size=100,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
    )
    trainer.fit()
    trainer.close()
    assert trainer.state.total_loss_dict["loss/train/cross_entropy"] < 0.2 * first
