"""The layers that the GPU benchmark measures."""

from __future__ import annotations

from dataclasses import replace

from peers.case import Case

K = 1024
CASES = {
    case.name: case
    for case in (
        Case(
            name="switch_base",
            tokens=16 * K,
            d_model=768,
            d_ff=3072,
            num_experts=128,
            top_k=1,
            activation="relu",
        ),
        Case(
            name="base_k1",
            tokens=32 * K,
            d_model=768,
            d_ff=2048,
            num_experts=64,
            top_k=1,
            activation="geglu",
        ),
        Case(
            name="base_k2",
            tokens=32 * K,
            d_model=768,
            d_ff=2048,
            num_experts=64,
            top_k=2,
            activation="geglu",
        ),
        Case(
            name="large",
            tokens=32 * K,
            d_model=1024,
            d_ff=2816,
            num_experts=32,
            top_k=2,
            activation="geglu",
        ),
        Case(
            name="st32b",
            tokens=16 * K,
            d_model=5120,
            d_ff=20480,
            num_experts=8,
            top_k=2,
            activation="geglu",
        ),
        Case(
            name="olmoe",
            tokens=32 * K,
            d_model=2048,
            d_ff=1024,
            num_experts=64,
            top_k=8,
            activation="swiglu",
        ),
        Case(
            name="qwen3",
            tokens=32 * K,
            d_model=2048,
            d_ff=768,
            num_experts=128,
            top_k=8,
            activation="swiglu",
        ),
    )
}


def tiny(case: Case) -> Case:
    """The case at a size that the interpreter takes seconds for."""
    return replace(
        case,
        tokens=40,
        d_model=64,
        d_ff=32,
        num_experts=min(case.num_experts, 4),
        top_k=min(case.top_k, 2),
    )
