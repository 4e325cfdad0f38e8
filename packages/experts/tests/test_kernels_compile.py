"""What the interpreter cannot see: types, layouts, registers, and what ptxas makes of the kernels.

A whole pass runs on tensors without data, its launches are recorded, and each is compiled for a
device that is not there, with the very arguments and tile sizes that it would get.
"""

import importlib
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from kernel_oracle import INTERPRETED

from flan_moe.experts.activations import get_activation
from flan_moe.experts.backend import MainGrads, Options, RowIndex, Wanted
from flan_moe.experts.dropout import Dropout
from flan_moe.experts.weights import ExpertWeights

triton = pytest.importorskip("triton")
compiler = pytest.importorskip("triton.compiler")

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled"),
    pytest.mark.skipif(triton.__version__ < "3.3", reason="the compiler's interface changed"),
]

KERNELS = {
    "schedule": "_fill",
    "up": "_up",
    "rows_matmul": "_rows_matmul",
    "combine": "_combine",
    "dhidden": "_dhidden",
    "dweight": "_dweight",
    "dbias": "_dbias",
    "drow_weight": "_drow_weight",
}
TRITON_33 = triton.__version__.startswith("3.3.")
BF16, FP32 = torch.bfloat16, torch.float32
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Launch(NamedTuple):
    kernel: object
    arguments: dict
    options: dict


@pytest.fixture
def launches(monkeypatch):
    """What is launched while the test runs, instead of being launched."""
    recorded = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return self.launch

        def launch(self, *positional, **named):
            options = {k: named.pop(k) for k in ("num_warps", "num_stages") if k in named}
            arguments = dict(zip(self.kernel.arg_names, positional, strict=False)) | named
            recorded.append(Launch(self.kernel, arguments, options))

    for module_name, name in KERNELS.items():
        module = importlib.import_module(f"flan_moe.experts.kernels.{module_name}")
        monkeypatch.setattr(module, name, Recorder(getattr(module, name)))
    return recorded


def launch_a_pass(
    activation,
    *,
    capability,
    dtype,
    weight_dtype,
    rows_per_expert,
    bias,
    sizes=(1024, 2816, 8),
):
    from flan_moe.experts.kernels import backend
    from flan_moe.experts.kernels.table import choose_configs

    width, hidden, experts = sizes
    rows = rows_per_expert * experts
    act = get_activation(activation)
    pre = 2 * hidden if act.gated else hidden

    def empty(*shape, dtype=dtype):
        return torch.empty(*shape, dtype=dtype, device="meta")

    weights = ExpertWeights(
        empty(experts, width, pre, dtype=weight_dtype),
        empty(experts, hidden, width, dtype=weight_dtype),
        empty(experts, pre, dtype=weight_dtype) if bias else None,
        empty(experts, width, dtype=weight_dtype) if bias else None,
    )
    sizes = (rows, experts + 1, rows + 1, rows)
    index = RowIndex(*(empty(size, dtype=torch.int32) for size in sizes))
    options = Options(
        activation=act,
        dropout=Dropout(empty(1, dtype=torch.int64), 0.1),
        matmul_dtype=dtype,
    )
    configs = choose_configs(
        capability=capability,
        dtype=dtype,
        weight_dtype=weight_dtype,
        width=width,
        hidden=hidden,
        experts=experts,
        rows=rows,
        gated=act.gated,
    )
    x_TD, row_weight_R = empty(rows, width), empty(rows, dtype=torch.float32)
    _, kept = backend.forward(
        x_TD, weights, row_weight_R, index, options, keep=True, configs=configs
    )
    wanted = Wanted(True, True, True, bias, bias, True)
    buffers = [empty(*w.shape, dtype=torch.float32) if bias else None for w in weights[:2]]
    backend.backward(
        x_TD,
        x_TD,
        kept,
        weights,
        row_weight_R,
        index,
        options,
        wanted,
        MainGrads(*buffers),
        configs=configs,
    )


def compile_for(capability, launch):
    """As the launcher would: ones are constants, what is divisible by sixteen is marked so."""
    names = launch.kernel.arg_names
    signature, constants, marks = {}, {}, {}
    for i, name in enumerate(names):
        value = launch.arguments[name]
        one = type(value) is int and value == 1
        if launch.kernel.params[i].is_constexpr or value is None or one:
            signature[name], constants[(i,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            marks[(i,)] = [["tt.divisibility", 16]]
    source = compiler.ASTSource(
        fn=launch.kernel, signature=signature, constexprs=constants, attrs=marks
    )
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    return compiler.compile(source, target=target, options=launch.options)


def spilled_bytes(compiled):
    """Of local memory per thread, as the CUDA tools that come with triton report it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    return int(re.search(r"STACK:(\d+)", report.stdout).group(1))


@pytest.mark.parametrize(
    ("capability", "dtype", "weight_dtype", "activation", "rows_per_expert", "bias"),
    [
        (90, BF16, BF16, "geglu", 512, False),
        (90, BF16, BF16, "relu", 512, False),
        (90, BF16, BF16, "geglu", 2, True),
        (90, BF16, FP32, "geglu", 512, False),
        (80, BF16, BF16, "geglu", 512, False),
        (80, FP32, FP32, "geglu", 512, False),
    ],
    ids=[
        "Hopper, gated",
        "Hopper, not gated",
        "Hopper, few rows, biases, main gradients",
        "Hopper, float32 weights under autocast",
        "Ampere",
        "Ampere, float32",
    ],
)
def test_a_pass_compiles_into_registers_and_shared_memory(
    launches, capability, dtype, weight_dtype, activation, rows_per_expert, bias
):
    launch_a_pass(
        activation,
        capability=capability,
        dtype=dtype,
        weight_dtype=weight_dtype,
        rows_per_expert=rows_per_expert,
        bias=bias,
    )
    assert {launch.kernel.__name__ for launch in launches} >= {"_up", "_rows_matmul", "_dweight"}
    for launch in launches:
        name = launch.kernel.__name__
        compiled = compile_for(capability, launch)
        assert compiled.metadata.shared <= SHARED_MEMORY[capability], name
        # Newer compilers spill a few registers in an epilogue; an accumulator has 512 bytes.
        assert spilled_bytes(compiled) <= (0 if TRITON_33 else 32), name
        ptx = compiled.asm["ptx"]
        multiplies = "PRECISION" in launch.arguments
        if capability == 90 and multiplies and launch.arguments["BLOCK_M"] >= 64:
            assert "wgmma.mma_async" in ptx, name
        if launch.arguments.get("LOAD", "pointers") != "pointers":
            assert "cp.async.bulk.tensor" in ptx, name
    by_descriptor = {
        launch.kernel.__name__
        for launch in launches
        if launch.arguments.get("LOAD", "pointers") != "pointers"
    }
    assert by_descriptor == ({"_up", "_rows_matmul", "_dhidden"} if capability == 90 else set())


@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_sizes_of_one_compile(launches, activation):
    """The launcher makes constants of ones, which have none of the methods of a number."""
    launch_a_pass(
        activation,
        capability=90,
        dtype=BF16,
        weight_dtype=BF16,
        rows_per_expert=1,
        bias=True,
        sizes=(1, 1, 1),
    )
    assert {launch.kernel.__name__ for launch in launches} == set(KERNELS.values())
    for launch in launches:
        compile_for(90, launch)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"allow_tf32": True}, "tf32"),
        ({"allow_tf32": False}, "ieee"),
        ({"fp32_precision": "tf32"}, "tf32"),
        ({"fp32_precision": "ieee"}, "ieee"),
        ({"fp32_precision": "none"}, "ieee"),
    ],
    ids=str,
)
def test_float32_is_multiplied_as_torch_is_told_to(monkeypatch, settings, expected):
    from flan_moe.experts.kernels.launch import dot_precision

    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(**settings))
    assert dot_precision(FP32) == expected
    assert dot_precision(BF16) == "ieee"
