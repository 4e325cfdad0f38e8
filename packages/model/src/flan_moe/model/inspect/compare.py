"""How far two models route the same tokens alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flan_moe.model.inspect.routes import LayerRoutes, Routes

FORMAT = "flan-moe-routes-comparison"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LayerComparison:
    """One sparse layer of two models.

    Attributes:
        ours: of the first model.
        theirs: of the second.
        other_first: positions of the tokens whose first experts differ.
        other_set: positions of the tokens whose sets of experts differ.
        rank_correlation: Spearman's, between the loads of the experts, ties sharing their mean
            rank; None where all loads of a side are equal.
        load_divergence: Jensen-Shannon divergence of the load shares, in nats: 0 for equal
            shares, ln 2 for models that use different experts only. (It is the mean of the KL
            divergences to the mean of the two; KL itself is infinite where an expert is idle in
            one model.)
    """

    ours: LayerRoutes
    theirs: LayerRoutes
    other_first: tuple[int, ...]
    other_set: tuple[int, ...]
    rank_correlation: float | None
    load_divergence: float

    @property
    def same_first(self) -> float:
        """Share of tokens with the same first expert (or none, in both)."""
        return 1.0 - len(self.other_first) / len(self.ours.experts)

    @property
    def same_set(self) -> float:
        """Share of tokens with the same set of experts."""
        return 1.0 - len(self.other_set) / len(self.ours.experts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "stack": self.ours.stack,
            "layer": self.ours.layer,
            "same_first": self.same_first,
            "same_set": self.same_set,
            "rank_correlation": self.rank_correlation,
            "load_divergence": self.load_divergence,
            "other_first": list(self.other_first),
            "other_set": list(self.other_set),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same tokens in two models.

    Attributes:
        ours: routes of the first.
        theirs: routes of the second.
        layers: the sparse layers, encoder first.
    """

    ours: Routes
    theirs: Routes
    layers: tuple[LayerComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``format``, ``version``, layers, and both sides' `Routes.to_dict`."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "layers": [layer.to_dict() for layer in self.layers],
            "ours": self.ours.to_dict(),
            "theirs": self.theirs.to_dict(),
        }


def compare_routes(ours: Routes, theirs: Routes) -> Comparison:
    """Compare the routing of the same tokens, layer by layer.

    Experts are compared by number: this is for two checkpoints of one model (before and after
    tuning, say), not for models that were initialised apart.

    Args:
        ours: from `trace_routes`.
        theirs: from `trace_routes`, the same text and target.

    Raises:
        ValueError: if tokens, sparse layers or numbers of experts differ.
    """
    for stack in ("encoder", "decoder"):
        if ours.tokens(stack) != theirs.tokens(stack):
            raise ValueError(
                f"{ours.model} and {theirs.model} read different tokens in the {stack}; expected "
                "the same text and target, and the same tokenizer"
            )
    names = [[layer.name for layer in routes.layers] for routes in (ours, theirs)]
    if names[0] != names[1]:
        raise ValueError(
            f"the sparse layers of {ours.model} are {', '.join(names[0])}, those of "
            f"{theirs.model} {', '.join(names[1])}; expected the same"
        )
    return Comparison(
        ours=ours,
        theirs=theirs,
        layers=tuple(
            _compare_layer(a, b, ours.model, theirs.model)
            for a, b in zip(ours.layers, theirs.layers, strict=True)
        ),
    )


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks, in [-1, 1]; None if all of a side are equal."""
    ranks = [_mean_ranks(values) for values in (a, b)]
    mean = (len(a) - 1) / 2
    a_centred, b_centred = ([rank - mean for rank in side] for side in ranks)
    spread = math.sqrt(sum(x * x for x in a_centred) * sum(y * y for y in b_centred))
    if spread == 0:
        return None
    return sum(x * y for x, y in zip(a_centred, b_centred, strict=True)) / spread


def jensen_shannon(a: Sequence[float], b: Sequence[float]) -> float:
    """Divergence of two lists of counts as shares, in nats, 0 to ln 2.

    A list without counts is as far from one with counts as can be, and equal to another one.
    """
    total_a, total_b = sum(a), sum(b)
    if not total_a or not total_b:
        return 0.0 if total_a == total_b else math.log(2)
    divergence = 0.0
    for count_a, count_b in zip(a, b, strict=True):
        p, q = count_a / total_a, count_b / total_b
        divergence += sum(0.5 * s * math.log(2 * s / (p + q)) for s in (p, q) if s)
    return min(max(divergence, 0.0), math.log(2))


def _compare_layer(a: LayerRoutes, b: LayerRoutes, name_a: str, name_b: str) -> LayerComparison:
    if a.num_experts != b.num_experts:
        raise ValueError(
            f"{a.name} has {a.num_experts} experts in {name_a} and {b.num_experts} in {name_b}; "
            "expected the same"
        )
    firsts = enumerate(zip(a.first, b.first, strict=True))
    sets = enumerate(zip(a.experts, b.experts, strict=True))
    return LayerComparison(
        ours=a,
        theirs=b,
        other_first=tuple(position for position, (x, y) in firsts if x != y),
        other_set=tuple(position for position, (x, y) in sets if set(x) != set(y)),
        rank_correlation=spearman(a.load, b.load),
        load_divergence=jensen_shannon(a.load, b.load),
    )


def _mean_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for index in order[start : end + 1]:
            ranks[index] = (start + end) / 2
        start = end + 1
    return ranks
