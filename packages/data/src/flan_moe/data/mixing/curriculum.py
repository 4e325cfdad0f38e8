"""A mixture that changes in the course of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flan_moe.data.mixing.spec import MixtureSpec


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Which mixture holds from which sample on.

    Attributes:
        stages: Number of raw examples drawn over all devices since the start of training (step
            times global batch size), then the mixture that holds from there on. The first is 0.
    """

    stages: Mapping[int, MixtureSpec]

    def __post_init__(self) -> None:
        """Check the beginnings.

        Raises:
            ValueError: They do not start with 0 or do not ascend; names the first that is wrong.
        """
        begins = list(self.stages)
        for number, begin in enumerate(begins):
            if isinstance(begin, bool) or not isinstance(begin, int):
                raise ValueError(f"stages: {begin!r}; expected a whole number of samples")
            if number == 0 and begin != 0:
                raise ValueError(f"stages: the first begins at {begin}; expected 0")
            if number > 0 and begin <= begins[number - 1]:
                raise ValueError(
                    f"stages: {begin} after {begins[number - 1]}; expected ascending samples"
                )
        if not begins:
            raise ValueError("stages is empty; expected a mixture for sample 0")

    @classmethod
    def reweighted(
        cls, spec: MixtureSpec, weights: Mapping[int, Mapping[str, float]]
    ) -> Curriculum:
        """One mixture whose sub-mixtures change their weights.

        Args:
            spec: What holds at first.
            weights: Number of samples, then the new weights of some sub-mixtures; those that are
                not named keep what they had.

        Raises:
            ValueError: A sub-mixture is unknown or a weight is none; names it.
        """
        stages = {0: spec}
        for begin, changes in sorted(weights.items()):
            subs = dict(spec.sub_mixtures)
            for name, weight in changes.items():
                if name not in subs:
                    raise ValueError(
                        f"weights at sample {begin}: no sub-mixture {name!r} in mixture "
                        f"{spec.name!r}; expected {sorted(subs)}"
                    )
                subs[name] = replace(subs[name], weight=weight)
            stages[begin] = spec = replace(spec, sub_mixtures=subs)
        return cls(stages=stages)
