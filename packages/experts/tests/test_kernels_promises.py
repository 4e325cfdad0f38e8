"""What the triton backend promises beyond numbers: memory, strides, repeatability, no waiting."""

import pytest
import torch
from kernel_oracle import (
    ALL,
    DEVICE,
    INTERPRETED,
    ON_GPU,
    check_close,
    kernels_run,
    make_case,
    oracle,
    relative_error,
    run,
    small_tiles,
)
from torch.utils._python_dispatch import TorchDispatchMode

from flan_moe.experts.backend import MainGrads
from flan_moe.experts.weights import ExpertWeights

pytestmark = kernels_run


def small_case(activation="geglu", **options):
    return make_case(activation, **{"tokens": 11, "width": 20, "hidden": 24, **options})


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that is allocated and not written holds NaN, or an index far out of bounds."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poison(tensor):
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 2**30)

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_nothing_unwritten_is_read(activation, tma):
    case = make_case(
        activation, tokens=20, experts=9, width=48, hidden=32, bias=True, dropout=0.2, keep=0.2
    )
    assert bool((case.index.expert_offsets.diff() == 0).any())
    expected_TD, expected = oracle(case)
    y_TD, gradients = run(case, configs=small_tiles(tma=tma))
    assert relative_error(y_TD, expected_TD) < 1e-5
    check_close(gradients, expected, torch.float32)


def test_any_strides():
    case = make_case("geglu", hidden=48, bias=True)
    x_TD, weights, row_weight_R, _, _, dy_TD = case

    def strided(tensor):
        """The same numbers, every axis reversed in memory, with gaps."""
        axes = tuple(reversed(range(tensor.ndim)))
        wide = torch.empty(*(tensor.permute(axes).shape), 2, device=tensor.device)[..., 0]
        return wide.permute(axes).copy_(tensor)

    other = case._replace(
        x_TD=strided(x_TD),
        weights=ExpertWeights(*map(strided, weights)),
        row_weight_R=strided(row_weight_R),
        dy_TD=strided(dy_TD),
    )
    assert 1 not in {*other.x_TD.stride(), *other.weights.wi_EDH.stride()}
    expected_TD, expected = oracle(case)
    y_TD, gradients = run(other, configs=small_tiles(tma=True))
    assert relative_error(y_TD, expected_TD) < 1e-5
    check_close(gradients, expected, torch.float32)


def test_the_gradient_of_a_sum_has_no_strides():
    case = small_case()
    case = case._replace(dy_TD=torch.ones((), device=DEVICE).expand_as(case.x_TD))
    check_close(run(case, configs=small_tiles())[1], oracle(case)[1], torch.float32)


@pytest.mark.skipif(not INTERPRETED, reason="untouched memory costs nothing on CPU only")
def test_offsets_past_31_bits():
    """Row, and expert, times stride is more than 2**31, in memory that is hardly ever touched."""
    case = small_case(tokens=3, experts=3, dtype=torch.float16, keep=1.1)

    def spread(tensor):
        """The same numbers, with most of 2**31 elements between the first and the last index."""
        stride = 2**30 + 64
        memory = torch.empty((len(tensor) - 1) * stride + tensor[0].numel(), dtype=tensor.dtype)
        inner = torch.empty(tensor.shape[1:]).stride()
        return memory.as_strided(tensor.shape, (stride, *inner)).copy_(tensor)

    expected_TD, expected = oracle(case)
    for name in ("x_TD", "dy_TD", "wi_EDH", "wo_EFD"):
        if name in ExpertWeights._fields:
            far = case.weights._replace(**{name: spread(getattr(case.weights, name))})
            far = case._replace(weights=far)
        else:
            far = case._replace(**{name: spread(getattr(case, name))})
        y_TD, gradients = run(far, configs=small_tiles())
        assert relative_error(y_TD, expected_TD) < 2e-3, name
        check_close(gradients, expected, torch.float16)


@pytest.mark.skipif(not INTERPRETED, reason="untouched memory costs nothing on CPU only")
@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_rows_past_31_bits(activation):
    """The last rows of more than 2**31 elements get what the first rows of a few would."""
    from flan_moe.experts.kernels.combine import combine
    from flan_moe.experts.kernels.dbias import dbias
    from flan_moe.experts.kernels.dhidden import dhidden
    from flan_moe.experts.kernels.dweight import dweight
    from flan_moe.experts.kernels.rows_matmul import rows_matmul
    from flan_moe.experts.kernels.schedule import TileTable
    from flan_moe.experts.kernels.up import up

    rows, size = 3, 16
    case = small_case(
        activation, tokens=rows, experts=1, width=size, hidden=size, dtype=torch.float16, keep=1.1
    )
    x_TD, weights, weight_R, _, options, dy_TD = case
    configs = small_tiles()

    def last_rows(before):
        """Every kernel on an expert whose rows start at ``before``; what it gives for them."""

        def shifted(tensor):
            memory = torch.empty(before + rows, *tensor.shape[1:], dtype=tensor.dtype)
            memory[before:] = tensor
            return memory

        def one_tile(block_m):
            first = torch.tensor([before], dtype=torch.int32)
            one = torch.ones(1, dtype=torch.int32)
            return TileTable(torch.zeros_like(first), first, one, block_m)

        offsets = torch.tensor([before, before + rows], dtype=torch.int32)
        token_R = shifted(torch.arange(rows, dtype=torch.int32))
        row_weight_R = shifted(weight_R)
        act, none = options.activation, None
        a_RF, h_RH = up(
            x_TD, token_R, weights.wi_EDH, none, offsets, one_tile(configs.up.block_m), act, none,
            keep=not act.keeps_output, config=configs.up,
        )  # fmt: skip
        y_RD = rows_matmul(
            a_RF, weights.wo_EFD, none, offsets, one_tile(configs.down.block_m), config=configs.down
        )
        entries = torch.arange(rows + 1, dtype=torch.int32)
        y_TD = combine(y_RD, row_weight_R, entries, entries[:rows] + before, torch.float32)
        grads = dhidden(
            dy_TD, token_R, row_weight_R, weights.wo_EFD, a_RF if h_RH is None else h_RH, offsets,
            one_tile(configs.dhidden.block_m), act, none,
            want_dh=True, want_weighted=True, want_partial=True, config=configs.dhidden,
        )  # fmt: skip
        dwi_EDH = torch.empty_like(weights.wi_EDH)
        dweight(
            x_TD, grads.dh_RH, token_R, offsets,
            gather_left=True, out_EMN=dwi_EDH, accumulate=False, config=configs.dwi,
        )  # fmt: skip
        dwo_EFD = torch.empty_like(weights.wo_EFD)
        dweight(
            grads.weighted_RF, dy_TD, token_R, offsets,
            gather_left=False, out_EMN=dwo_EFD, accumulate=False, config=configs.dwo,
        )  # fmt: skip
        dbi_EH = dbias(grads.dh_RH, none, none, offsets, torch.float32)
        assert (before == 0) == (a_RF.numel() < 2**31)
        return y_TD, dwi_EDH, dwo_EFD, dbi_EH, grads.partial_CR[:, before:].clone()

    for far, near in zip(last_rows(2**27), last_rows(0), strict=True):
        assert bool((near != 0).any())
        assert torch.equal(far, near)


@pytest.mark.parametrize("wanted", range(6))
def test_only_what_is_wanted(wanted):
    case = small_case(bias=True)
    _, everything = run(case, configs=small_tiles())
    only = ALL._make(i == wanted for i in range(6))
    _, gradients = run(case, configs=small_tiles(), wanted=only)
    for i, (one, full) in enumerate(zip(gradients, everything, strict=True)):
        assert (one is None) == (i != wanted)
        assert one is None or torch.equal(one, full)


def test_without_keeping_the_output_is_the_same():
    from flan_moe.experts.kernels import backend

    case = small_case()
    kept = backend.forward(*case[:-1], keep=True, configs=small_tiles())
    lean = backend.forward(*case[:-1], keep=False, configs=small_tiles())
    assert lean[1] is None
    assert kept[1].shape == (len(case.row_weight_R), 48)
    assert torch.equal(kept[0], lean[0])


@pytest.mark.parametrize("keep", [0.5, 0.0])
@pytest.mark.parametrize("accumulate", [True, False])
def test_main_gradients(accumulate, keep):
    case = small_case(dtype=torch.float16, experts=6, keep=keep)
    _, expected = oracle(case)
    shapes = [w.shape for w in case.weights[:2]]
    buffers = [torch.full(shape, 2.0, device=DEVICE) for shape in shapes]
    main_grads = MainGrads(*buffers, accumulate=accumulate)
    _, gradients = run(case, configs=small_tiles(), main_grads=main_grads)
    assert gradients.wi_EDH is None
    assert gradients.wo_EFD is None
    assert bool((case.index.expert_offsets.diff() == 0).any())
    for buffer, gradient in zip(buffers, (expected.wi_EDH, expected.wo_EFD), strict=True):
        assert relative_error(buffer, gradient + 2.0 * accumulate) < 2e-3


def test_main_gradients_of_experts_without_rows_are_not_touched():
    case = small_case(experts=6, keep=0.5)
    empty_E = case.index.expert_offsets.diff() == 0
    assert bool(empty_E.any())
    # Adding zero would turn minus zero into zero.
    buffers = [torch.full(w.shape, -0.0, device=DEVICE) for w in case.weights[:2]]
    run(case, configs=small_tiles(), main_grads=MainGrads(*buffers))
    for buffer in buffers:
        assert bool(buffer[empty_E].signbit().all())
        assert not bool(buffer[~empty_E].signbit().all())


def test_repeats_to_the_bit():
    case = small_case(tokens=4, width=16, hidden=16, experts=2, dropout=0.2)
    first = run(case, configs=small_tiles())
    for _ in range(99):
        again = run(case, configs=small_tiles())
        assert torch.equal(first[0], again[0])
        for a, b in zip(first[1], again[1], strict=True):
            assert a is b is None or torch.equal(a, b)


class NoReads(TorchDispatchMode):
    """Fails where a tensor's value comes to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("tma", [False, True])
def test_the_host_never_reads_the_device(tma):
    case = small_case(bias=True, dropout=0.1, width=16, hidden=32)
    with NoReads():
        run(case, configs=small_tiles(tma=tma))
    with pytest.raises(AssertionError, match="waits"), NoReads():
        case.index.expert_offsets[-1].item()


def test_float64_is_refused():
    with pytest.raises(ValueError, match="'triton' has no float64"):
        run(small_case(dtype=torch.float64), configs=small_tiles())


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_on_a_device_it_never_waits_and_can_be_captured(activation):
    case = make_case(
        activation, tokens=3000, width=256, hidden=384, experts=16, dtype=torch.bfloat16,
        bias=True, dropout=0.1,
    )  # fmt: skip
    expected_TD, expected = oracle(case)
    run(case)  # compiles
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        eager = run(case)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert relative_error(eager[0], expected_TD) < 1.5e-2
    check_close(eager[1], expected, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case)
    graph.replay()
    assert torch.equal(captured[0], eager[0])
    for a, b in zip(captured[1], eager[1], strict=True):
        assert torch.equal(a, b)
