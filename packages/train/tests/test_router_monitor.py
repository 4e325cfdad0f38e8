"""The router monitor logs what the routings say, over all microbatches of a batch."""

import math

import pytest
import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from packed import packed_batch

from flan_moe.model import FlanMoEForConditionalGeneration, flan_moe_config
from flan_moe.train.batches import data_spec, split_rows
from flan_moe.train.callbacks.router_monitor import RouterMonitor, short_name
from flan_moe.train.composer_model import InstructionTuning
from flan_moe.train.row_lengths import RowLengths


def network(**overrides):
    torch.manual_seed(0)
    return FlanMoEForConditionalGeneration(
        flan_moe_config("flan-moe-tiny", vocab_size=100, **overrides)
    )


def fit(model, batches, every, rows):
    logger = InMemoryLogger()
    trainer = Trainer(
        model=InstructionTuning(model, rows=RowLengths(input=12, target=6)),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
        train_dataloader=data_spec(batches),
        max_duration="1ep",
        device_train_microbatch_size=rows,
        accumulate_train_batch_on_tokens=True,
        device="cpu",
        callbacks=[RouterMonitor(every)],
        loggers=[logger],
        progress_bar=False,
        auto_log_hparams=False,
    )
    trainer.fit()
    trainer.close()
    return logger.data


@pytest.mark.parametrize("rows", [4, 1])
def test_what_is_logged_is_what_the_routers_did(rows):
    router = {"name": "top_k", "num_experts": 4, "top_k": 2, "capacity_factor": 0.5}
    options = {"encoder_router": router, "decoder_router": router}
    batch = packed_batch()
    data = fit(network(**options), [batch], 1, rows)

    model = network(**options).train()
    inputs = [{k: v for k, v in m.items() if k != "task_ids"} for m in split_rows(batch, rows)]
    with torch.no_grad():
        routings = [dict(model(**part).routings) for part in inputs]
    assert len(routings[0]) == 2
    for module in routings[0]:
        layer = [r[module] for r in routings]
        tokens = torch.tensor([r.num_tokens for r in layer], dtype=torch.float)

        def mean(values, tokens=tokens):
            return float((torch.stack(list(values)) * tokens).sum() / tokens.sum())

        load = sum(r.stats["expert_load_E"] for r in layer)
        share = load / load.sum()
        prefix = f"router/{short_name(module)}"
        expected = {
            "dropped": mean(r.stats["dropped_fraction"] for r in layer),
            "entropy": mean(r.stats["router_entropy"] for r in layer) / math.log(4),
            "balance": mean(r.losses["balance"] for r in layer),
            "load_max": float(share.max()) * 4,
            **{f"load/{e:02d}": float(share[e]) for e in range(4)},
        }
        logged = {k: data[f"{prefix}/{k}"][0][1] for k in expected}
        assert logged == pytest.approx(expected, rel=1e-5)
        assert 0 < expected["entropy"] <= 1


def test_only_every_nth_batch_is_measured():
    data = fit(network(), [packed_batch(seed=s) for s in range(7)], 3, 4)
    batches = [int(t.batch) for t, _ in data["router/encoder.1/dropped"]]
    assert batches == [1, 3, 6]


def test_a_dense_model_logs_nothing():
    data = fit(network(encoder_router=None, decoder_router=None), [packed_batch()], 1, 4)
    assert not [k for k in data if k.startswith("router/")]
