"""Expert weights under other libraries' names: one set of matrices per expert.

Hugging Face's Switch Transformers calls them ``expert_0.wi.weight`` (F, D) and
``expert_0.wo.weight`` (D, F); T5 v1.1's gated network has ``wi_0`` (the activated gate) and
``wi_1`` (the linear factor) in place of ``wi``. A `torch.nn.Linear` holds the transpose of ours.

Shape suffixes: E experts, D model width, F hidden width, H = 2F for gated activations, else F.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor

_NAME = re.compile(r"expert_(\d+)\.(wi|wi_0|wi_1|wo)\.(weight|bias)")


def to_per_expert(stacked: Mapping[str, Tensor], *, gated: bool) -> dict[str, Tensor]:
    """From ``wi``, ``wo``, ``bi``, ``bo`` (as far as present) to per-expert names.

    Returns views: the matrices are transposes of slices of the stacks. What writes raw memory, as
    safetensors does, needs them ``contiguous()``.
    """
    named: dict[str, Tensor] = {}
    for expert in range(stacked["wi"].shape[0]):
        for source, target in (("wi", "weight"), ("bi", "bias")):
            if source not in stacked:
                continue
            value = stacked[source][expert]
            halves = value.chunk(2, dim=-1) if gated else (value,)
            names = ("wi_0", "wi_1") if gated else ("wi",)
            for name, half in zip(names, halves, strict=True):
                named[f"expert_{expert}.{name}.{target}"] = half.T if half.ndim == 2 else half
        named[f"expert_{expert}.wo.weight"] = stacked["wo"][expert].T
        if "bo" in stacked:
            named[f"expert_{expert}.wo.bias"] = stacked["bo"][expert]
    return named


def stack_per_expert(
    state: MutableMapping[str, Tensor], prefix: str, *, num_experts: int, gated: bool
) -> None:
    """Replace the per-expert names under ``prefix``, if there are any, by the stacked ones.

    Raises:
        ValueError: if some experts or matrices are missing, there are too many, a gated network is
            given for an ungated one or the reverse, or there are stacked names as well; with the
            names.
    """
    found = {
        name: match
        for name in state
        if name.startswith(prefix) and (match := _NAME.fullmatch(name.removeprefix(prefix)))
    }
    if not found:
        return
    inputs = ("wi_0", "wi_1") if gated else ("wi",)
    kinds = ["weight"]
    if any(match[3] == "bias" for match in found.values()):
        kinds.append("bias")
    expected = {
        f"{prefix}expert_{expert}.{matrix}.{kind}"
        for expert in range(num_experts)
        for matrix in (*inputs, "wo")
        for kind in kinds
    }
    if set(found) != expected:
        missing, extra = sorted(expected - set(found)), sorted(set(found) - expected)
        raise ValueError(
            f"{prefix}expert_*: expected {' and '.join((*inputs, 'wo'))} of {num_experts} experts; "
            f"missing {_some(missing)}; unexpected {_some(extra)}"
        )
    stacks = (("wi", "wo"), ("bi", "bo"))[: len(kinds)]
    both = [prefix + name for pair in stacks for name in pair if prefix + name in state]
    if both:
        raise ValueError(f"{prefix}expert_*: there is {_some(both)} as well; which is meant?")
    for kind, (wi, wo) in zip(kinds, stacks, strict=True):

        def stack(matrix: str, kind: str = kind) -> Tensor:
            names = [f"{prefix}expert_{expert}.{matrix}.{kind}" for expert in range(num_experts)]
            return torch.stack(
                [state.pop(name).mT if kind == "weight" else state.pop(name) for name in names]
            )

        state[prefix + wi] = torch.cat([stack(matrix) for matrix in inputs], dim=-1)
        state[prefix + wo] = stack("wo")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown or "none"
