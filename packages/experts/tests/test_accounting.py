"""What a call costs, by formula: against a counter, a published-style table, and autograd."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flan_moe.experts import ACTIVATIONS, ExpertWeights, expert_ffn
from flan_moe.experts.accounting import CallShape, bytes_moved, flops, roofline, saved_bytes
from flan_moe.routing import build_routing

MIB = 2**20
H200 = {"peak_flops_per_second": 790e12, "peak_bytes_per_second": 4.3e12}
SMALL = {"tokens": 11, "rows": 22, "num_experts": 5, "d_model": 8, "d_ff": 12}


def make_call(activation, dtype=torch.float32, **options):
    """A call on ``SMALL`` shapes: each token goes to experts t % 4 and (t + 1) % 4, none to 4."""
    shape = CallShape(**SMALL, activation=activation, **options)
    token_N = torch.arange(shape.tokens).repeat_interleave(2)
    expert_N = (token_N + torch.arange(2 * shape.tokens) % 2) % 4
    routing = build_routing(
        token_N=token_N,
        expert_N=expert_N,
        weight_N=torch.rand(shape.rows, dtype=torch.promote_types(dtype, torch.float32)),
        num_tokens=shape.tokens,
        num_experts=shape.num_experts,
        losses={},
        stats={},
    )
    routing = dataclasses.replace(
        routing, row_weight_R=routing.row_weight_R.detach().requires_grad_()
    )
    x_TD = torch.randn(shape.tokens, shape.d_model, dtype=dtype, requires_grad=True)
    experts = shape.num_experts
    weights = ExpertWeights(
        torch.randn(experts, shape.d_model, shape.h_width, dtype=dtype, requires_grad=True),
        torch.randn(experts, shape.d_ff, shape.d_model, dtype=dtype, requires_grad=True),
    )
    return shape, x_TD, routing, weights


@pytest.mark.parametrize("activation", ["relu", "gelu", "geglu", "swiglu"])
def test_flops_are_those_that_torch_counts_in_the_reference(activation):
    shape, x_TD, routing, weights = make_call(activation)
    with FlopCounterMode(display=False) as forward:
        y_TD = expert_ffn(x_TD, routing, weights, activation=activation, backend="reference")
    with FlopCounterMode(display=False) as backward:
        y_TD.sum().backward()
    assert flops(shape) == (forward.get_total_flops(), backward.get_total_flops())
    assert flops(shape).both == 3 * forward.get_total_flops()


def bytes_kept(x_TD, routing, weights, **options):
    """What autograd keeps for the backward pass, parameters apart."""
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y_TD = expert_ffn(x_TD, routing, weights, training=True, backend="grouped", **options)
    for weight in weights[:2]:
        saved.pop(weight.untyped_storage().data_ptr(), None)
    assert y_TD.requires_grad
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_saved_bytes_are_those_that_autograd_keeps(activation, dtype, dropout):
    shape, *call = make_call(activation, dtype)
    expected = saved_bytes(shape, dtype=dtype, dropout=dropout > 0.0)
    assert bytes_kept(*call, activation=activation, dropout=dropout) == expected.total


@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_under_autocast_what_the_products_make_is_kept_in_their_dtype(activation):
    shape, *call = make_call(activation)
    with torch.autocast("cpu", torch.bfloat16):
        kept = bytes_kept(*call, activation=activation)
    mixed = saved_bytes(shape, dtype=torch.float32, matmul_dtype=torch.bfloat16)
    assert kept == mixed.total
    assert mixed.total < saved_bytes(shape, dtype=torch.float32).total


# name: T, D, F, E, K, activation; then milliseconds and TFLOP/s forward, the same backward, and
# MiB of tokens and pre-activation, computed by hand for 790 TFLOP/s and 4.3 TB/s in bfloat16. The
# table has Switch's ReLU write both h and a, as `gelu` does here.
TABLE = {
    "Switch base": ((16384, 768, 3072, 128, 1, "gelu"), (0.37, 413, 0.74, 419, 120)),
    "T5 v1.1 base": ((32768, 768, 2048, 128, 1, "geglu"), (0.45, 683, 0.94, 655, 304)),
    "GShard base": ((32768, 768, 2048, 64, 2, "geglu"), (0.82, 756, 1.71, 723, 560)),
    "large": ((32768, 1024, 2816, 32, 2, "geglu"), (1.48, 765, 2.93, 775, 768)),
    "ST-MoE-32B": ((16384, 5120, 20480, 64, 2, "geglu"), (26.2, 786, 52.3, 788, 2720)),
    "OLMoE": ((32768, 2048, 1024, 64, 8, "swiglu"), (4.46, 740, 8.63, 764, 1152)),
    "Qwen3-30B": ((32768, 2048, 768, 128, 8, "swiglu"), (3.41, 725, 6.54, 756, 896)),
    "fine-grained 7B": ((24576, 1536, 256, 128, 8, "swiglu"), (0.75, 622, 1.33, 696, 264)),
    "decode": ((64, 1024, 2816, 32, 2, "geglu"), (0.13, 17, 0.26, 17, 2)),
}


def table_shape(name, activation=None):
    tokens, d_model, d_ff, experts, top_k, default = TABLE[name][0]
    return CallShape(
        tokens=tokens,
        rows=top_k * tokens,
        num_experts=experts,
        d_model=d_model,
        d_ff=d_ff,
        activation=activation or default,
    )


@pytest.mark.parametrize("name", list(TABLE))
def test_ceilings_are_those_of_the_table(name):
    forward_ms, forward_tflops, backward_ms, backward_tflops, saved_mib = TABLE[name][1]
    lines = roofline(table_shape(name), dtype=torch.bfloat16, **H200)
    digits = 1 if forward_ms > 10 else 2
    assert round(1e3 * lines.forward.seconds, digits) == forward_ms
    assert round(1e3 * lines.backward.seconds, digits) == backward_ms
    assert round(lines.forward.flops_per_second / 1e12) == forward_tflops
    assert round(lines.backward.flops_per_second / 1e12) == backward_tflops
    assert lines.both.seconds == pytest.approx(lines.forward.seconds + lines.backward.seconds)
    saved = saved_bytes(table_shape(name), dtype=torch.bfloat16)
    assert round((saved.x + saved.kept) / MIB) == saved_mib


def test_what_binds():
    relu = roofline(table_shape("Switch base"), dtype=torch.bfloat16, **H200)
    large = roofline(table_shape("large"), dtype=torch.bfloat16, **H200)
    assert [line.bound_by for line in relu] == ["memory"] * 3
    assert [line.bound_by for line in large] == ["compute"] * 3


def test_an_activation_that_keeps_its_output_moves_a_and_saves_h_one_time_less():
    """ReLU against GELU: forward writes a only; backward reads a, and does not write it again."""
    relu, gelu = (table_shape("Switch base", name) for name in ("relu", "gelu"))
    once = relu.rows * relu.d_ff * 2
    moved = [bytes_moved(shape, dtype=torch.bfloat16) for shape in (gelu, relu)]
    assert moved[0].forward - moved[1].forward == once
    assert moved[0].backward - moved[1].backward == once
    assert saved_bytes(relu, dtype=torch.bfloat16) == saved_bytes(gelu, dtype=torch.bfloat16)


def test_idle_experts_are_not_read_but_their_gradients_are_written():
    all_busy = table_shape("decode")
    one_busy = dataclasses.replace(all_busy, touched_experts=1)
    expert = (2 * 2816 + 2816) * 1024 * 2
    full, few = (bytes_moved(shape, dtype=torch.bfloat16) for shape in (all_busy, one_busy))
    assert full.forward - few.forward == 31 * expert
    assert full.backward - few.backward == 31 * expert  # of the read; the write is the same
    none = dataclasses.replace(all_busy, rows=0)
    assert bytes_moved(none, dtype=torch.bfloat16).backward >= 32 * expert
    assert flops(none) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_ff": 0}, "d_ff=0"),
        ({"rows": -1}, "rows=-1"),
        ({"touched_experts": 6}, "touched_experts=6: expected 0 to 5"),
        ({"activation": "tanh"}, "activation='tanh'"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CallShape(**{**SMALL, "activation": "relu", **options})


def test_a_rate_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="peak_bytes_per_second=0"):
        roofline(
            table_shape("large"),
            dtype=torch.bfloat16,
            peak_flops_per_second=1e15,
            peak_bytes_per_second=0,
        )
