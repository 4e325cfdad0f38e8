r"""Expert weights made of one dense network.

With granularity G, expert ``e`` is slice ``g = e % G`` of copy ``c = e // G``: the hidden units
``[g F/G, (g+1) F/G)`` of the dense network. A feed-forward network is a sum over its hidden units,
``y = sum_u wo_u act(wi_u x)``, so that the G slices of a copy add up to it. The router has the same
row for all slices of a copy: their logits are equal, ties are broken by index, and the k G best
experts are all slices of the k best copies. Where weights are made to sum to s over the experts of
a token, every slice of a copy weighs the same, and

    sum_cg w_cg slice_g(x) = sum_g slice_g(x) sum_c w_cg = (s / G) y

because ``sum_c w_cg`` is the same for every g. Output matrices are therefore multiplied by G / s.

Shape suffixes: D model width, F hidden width of the dense network, f = F/G that of an expert,
H = 2F and h = 2f for gated activations, else F and f.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UpcycleOptions:
    """How experts differ from the dense network at the start.

    Attributes:
        noise: standard deviation of Gaussian noise on expert weights, as a multiple of the
            standard deviation of the matrix; 0 for exact copies.
        redraw: share of the hidden units of each expert that are drawn anew, from a normal
            distribution with the mean and standard deviation of what they replace (partial
            re-initialisation, as in Drop-Upcycling); 0 for none. Each expert has its own units.
        router_std: standard deviation of the routers' weights.
        seed: of everything that is drawn.

    Raises:
        ValueError: for a value out of range.
    """

    noise: float = 0.0
    redraw: float = 0.0
    router_std: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for key, largest in (("noise", 10.0), ("redraw", 1.0), ("router_std", 10.0)):
            value = getattr(self, key)
            if not 0.0 <= value <= largest:
                raise ValueError(f"{key}={value!r}: expected a number from 0 to {largest:g}")

    def generator(self, *name: object) -> torch.Generator:
        """A generator whose numbers depend on the seed and a name, and on no other draw."""
        text = "/".join(map(str, (self.seed, *name)))
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def expert_wi(wi_HD: Tensor, slice_index: int, granularity: int, *, gated: bool) -> list[Tensor]:
    """Input projections of one slice, each (f, D): one, or gate and linear factor."""
    halves = wi_HD.chunk(2) if gated else (wi_HD,)
    return [half_FD.chunk(granularity)[slice_index] for half_FD in halves]


def expert_wo(wo_DF: Tensor, slice_index: int, granularity: int) -> Tensor:
    """Output projection of one slice, (D, f)."""
    return wo_DF.chunk(granularity, dim=1)[slice_index]


def varied(
    weight: Tensor, options: UpcycleOptions, *, layer: str, expert: int, matrix: str, unit_dim: int
) -> Tensor:
    """One expert's matrix with the noise and the redrawn units of its options.

    Args:
        weight: a matrix; not written to.
        options: what to do.
        layer: name of the layer.
        expert: which expert.
        matrix: name of the matrix.
        unit_dim: the dimension of hidden units.

    Returns:
        The same tensor if there is nothing to do.
    """
    if options.redraw == 0 and options.noise == 0:
        return weight
    generator = options.generator(layer, expert, matrix)
    out = weight.float().clone()
    if options.redraw:
        width = weight.shape[unit_dim]
        # Without the matrix in the name: all matrices of an expert lose the same units.
        order = torch.randperm(width, generator=options.generator(layer, expert, "units"))
        units = order[: round(options.redraw * width)]
        old = out.index_select(unit_dim, units)
        if old.numel():
            fresh = torch.randn(old.shape, generator=generator)
            out.index_copy_(unit_dim, units, old.mean() + old.std(correction=0) * fresh)
    if options.noise:
        std = weight.float().std(correction=0)
        out += options.noise * std * torch.randn(out.shape, generator=generator)
    return out.to(weight.dtype)
