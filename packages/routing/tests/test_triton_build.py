"""The Triton kernels against the torch path, bit for bit, in the interpreter and on a GPU.

Triton decides at import whether its kernels are interpreted, so the interpreter gets a process of
its own: `test_in_the_interpreter` runs this file again with TRITON_INTERPRET=1.
"""

import importlib.util
import inspect
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flan_moe.routing import build_routing
from flan_moe.routing.build import _index_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if ON_GPU else "cpu"

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)

kernels_run = pytest.mark.skipif(
    not (INTERPRETED or ON_GPU), reason="needs a CUDA device, or Triton's interpreter"
)


@pytest.mark.skipif(INTERPRETED, reason="this is the process with the interpreter")
def test_in_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("index_type", ["*i32", "*i64"])
@pytest.mark.parametrize("block_rows", [128, 1024])
def test_kernels_compile_for_hopper_without_one(index_type, block_rows):
    """What the interpreter cannot see: types, layouts, and whether ptxas takes the result."""
    compiler = pytest.importorskip("triton.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    if "constexprs" not in inspect.signature(compiler.ASTSource).parameters:
        pytest.skip("needs triton 3.3")
    from flan_moe.routing import triton_build

    numbers = {"count", "num_tokens", "num_experts", "num_blocks", "block_rows"}
    for kernel, constants in (
        (triton_build._count_tokens, {"BLOCK": 256}),
        (triton_build._count_tokens, {"BLOCK": 256, "keep_N": None}),
        (triton_build._place_in_token, {"BLOCK": 256}),
        (triton_build._rank_in_token, {"BLOCK": 256}),
        (triton_build._place_rows, {"BLOCK": block_rows, "CHUNK": 16}),
    ):
        types = {"token_N": index_type, "expert_N": index_type, "keep_N": "*i1"}
        types |= dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
        names = kernel.arg_names
        source = compiler.ASTSource(
            fn=kernel,
            signature={name: types.get(name, "*i32") for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
        )
        options = {"num_warps": max(4, block_rows // 128)}
        compiled = compiler.compile(source, target=target, options=options)
        assert compiled.asm["cubin"]


def assignments(*, tokens, experts, choices, keep, shuffled, seed, one_expert=False):
    """Random distinct (token, expert) pairs, in the order of the tokens or in none."""
    generator = torch.Generator().manual_seed(seed)
    score_TE = torch.rand(tokens, experts, generator=generator)
    if one_expert:
        score_TE[:, 0], choices = 2.0, 1
    expert_N = score_TE.topk(choices).indices.reshape(-1)
    token_N = torch.arange(tokens).repeat_interleave(choices)
    if shuffled:
        order = torch.randperm(tokens * choices, generator=generator)
        token_N, expert_N = token_N[order], expert_N[order]
    keep_N = None
    if keep is not None:
        keep_N = torch.rand(tokens * choices, generator=generator) < keep
        expert_N[~keep_N] = torch.where(torch.arange(int((~keep_N).sum())) % 2 == 0, -1, 1 << 40)
    return token_N, expert_N, keep_N, tokens, experts


def check_equal_to_torch(case):
    from flan_moe.routing.triton_build import index_rows

    arguments = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in case]
    result = index_rows(*arguments)
    for ours, expected in zip(result, _index_rows(*case, trim=False), strict=True):
        assert ours.dtype == torch.int32
        assert ours.tolist() == expected.tolist()


CASE = {
    "tokens": st.sampled_from([0, 1, 2, 127, 128, 129, 255, 256, 257, 300]),
    "experts": st.sampled_from([1, 2, 7, 64, 130]),
    "choices": st.integers(1, 3),
    "keep": st.sampled_from([None, 0.0, 0.5, 0.9, 1.0]),
    "shuffled": st.booleans(),
    "seed": st.integers(0, 1000),
    "one_expert": st.booleans(),
}


@kernels_run
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(**CASE)
@example(tokens=0, experts=1, choices=1, keep=None, shuffled=False, seed=0, one_expert=False)
@example(tokens=1, experts=1, choices=1, keep=None, shuffled=False, seed=0, one_expert=False)
@example(tokens=300, experts=8, choices=2, keep=0.0, shuffled=True, seed=0, one_expert=False)
@example(tokens=300, experts=8, choices=1, keep=None, shuffled=True, seed=0, one_expert=True)
@example(tokens=3, experts=130, choices=130, keep=0.7, shuffled=True, seed=0, one_expert=False)
@example(tokens=600, experts=2048, choices=2, keep=0.7, shuffled=True, seed=0, one_expert=False)
def test_equal_to_the_torch_path(choices, experts, **options):
    case = assignments(choices=min(choices, experts), experts=experts, **options)
    check_equal_to_torch(case)


@kernels_run
def test_an_expert_that_does_not_exist_writes_nothing():
    from flan_moe.routing.triton_build import index_rows

    token_N = torch.tensor([0, 1, 2, 7], device=DEVICE)
    expert_N = torch.tensor([1, 5, -3, 0], device=DEVICE)
    _, row_token_R, expert_offsets, token_offsets, _ = index_rows(token_N, expert_N, None, 3, 2)
    assert expert_offsets.tolist() == [0, 0, 1]
    assert token_offsets.tolist() == [0, 1, 1, 1]
    assert row_token_R[0] == 0


@kernels_run
def test_a_strided_list_is_read_by_its_strides():
    case = assignments(tokens=50, experts=4, choices=2, keep=0.5, shuffled=True, seed=3)
    spread = [torch.stack([x, x], dim=1)[:, 0] for x in case[:3]]
    assert not spread[0].is_contiguous()
    check_equal_to_torch((*spread, *case[3:]))


@kernels_run
def test_traces_into_one_graph():
    from flan_moe.routing.triton_build import index_rows

    token_N, expert_N, keep_N, tokens, experts = assignments(
        tokens=20, experts=4, choices=2, keep=0.5, shuffled=True, seed=0
    )
    torch.library.opcheck(
        index_rows, (token_N.to(DEVICE), expert_N.to(DEVICE), keep_N.to(DEVICE), tokens, experts)
    )


def build(case, weight_N, device):
    token_N, expert_N, keep_N = (None if x is None else x.to(device) for x in case[:3])
    return build_routing(
        token_N=token_N,
        expert_N=expert_N,
        weight_N=weight_N,
        keep_N=keep_N,
        num_tokens=case[3],
        num_experts=case[4],
        losses={},
        stats={},
        trim=False,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("tokens", "experts", "choices"), [(65_537, 64, 2), (1 << 20, 2048, 1), (4_096, 512, 8)]
)
@pytest.mark.parametrize("keep", [None, 0.8])
def test_a_device_builds_the_same_routing_and_gradient(tokens, experts, choices, keep):
    generator = torch.Generator().manual_seed(0)
    first_T1 = torch.randint(0, experts, (tokens, 1), generator=generator)
    expert_N = ((first_T1 + 7 * torch.arange(choices)) % experts).reshape(-1)
    token_N = torch.arange(tokens).repeat_interleave(choices)
    order = torch.randperm(len(token_N), generator=generator)
    keep_N = None if keep is None else torch.rand(len(token_N), generator=generator) < keep
    case = (token_N[order], expert_N[order], keep_N, tokens, experts)
    weight_N = torch.rand(len(token_N), generator=generator)
    built, grads = [], []
    for device in ("cpu", "cuda", "cuda"):
        leaf_N = weight_N.to(device).requires_grad_()
        mode = torch.cuda.get_sync_debug_mode()
        inputs = tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in case)
        torch.cuda.set_sync_debug_mode("error")
        try:
            routing = build(inputs, leaf_N, device)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        routing.validate()
        (routing.row_weight_R * torch.arange(len(token_N), device=device)).sum().backward()
        built.append(routing)
        grads.append(leaf_N.grad.cpu())
    for other, grad in zip(built[1:], grads[1:], strict=True):
        for name in (
            "row_token_R",
            "row_weight_R",
            "expert_offsets",
            "token_offsets",
            "token_row_R",
        ):
            assert torch.equal(getattr(built[0], name), getattr(other, name).cpu()), name
        assert torch.equal(grads[0], grad)
