"""What a mixture comes to: the rate, share, samples and epochs of every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flan_moe.data.mixing.apply import apply_mixture, held_out_reasons
from flan_moe.data.mixing.shares import TaskShare, TaskSize
from flan_moe.data.mixing.spec import MixtureSpec
from flan_moe.data.registry.registry import Registry, load_registry


@dataclass(frozen=True, kw_only=True)
class ExplainedTask:
    """One task of an explained mixture.

    Attributes:
        share: What it gets.
        samples: Expected number of its samples among those asked for.
        epochs: How often each of its samples is then seen, on average.
        type_epochs: Setting, then the same for the samples of that setting; empty if unknown.
        reason: Why it gets nothing; empty if it gets something.
    """

    share: TaskShare
    samples: float
    epochs: float
    type_epochs: Mapping[str, float]
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExplainedSubMixture:
    """One sub-mixture, summed.

    Attributes:
        name: Of the sub-mixture.
        weight: As specified.
        tasks: Number of tasks that get something.
        held_out: Number of tasks that would, but are held out.
        size: Sum of their sizes.
        share: Of all samples.
        samples: Expected among those asked for.
        epochs: ``samples / size``, 0 without any.
    """

    name: str
    weight: float
    tasks: int
    held_out: int
    size: int
    share: float
    samples: float
    epochs: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A mixture, explained.

    Attributes:
        spec: The mixture.
        samples: Number of samples that it was explained for.
        tasks: Sub-mixture by sub-mixture, largest share first; then those that get nothing.
        sub_mixtures: In the order of the specification.
        unknown: Registered tasks left out of the reckoning because their size is not known.
    """

    spec: MixtureSpec
    samples: int
    tasks: tuple[ExplainedTask, ...]
    sub_mixtures: tuple[ExplainedSubMixture, ...]
    unknown: tuple[str, ...] = ()


def explain_mixture(
    spec: MixtureSpec,
    tasks: Sequence[TaskSize],
    *,
    samples: int,
    registry: Registry | None = None,
    unknown: Sequence[str] = (),
) -> Explanation:
    """Work out what every task gets.

    Args:
        spec: The mixture.
        tasks: With their sizes (`flan_moe.data.mixing.sizes`).
        samples: How many samples to divide among them.
        registry: None for the packaged one.
        unknown: Names of tasks whose size is not known; only passed on.

    Raises:
        ValueError: ``samples`` is below 1, or as `apply_mixture`.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected 1 or more")
    registry = load_registry() if registry is None else registry
    shares = apply_mixture(spec, tasks, registry=registry)
    reasons = held_out_reasons(spec, [task.name for task in tasks], registry)
    explained = [
        ExplainedTask(
            share=share,
            samples=share.share * samples,
            epochs=share.share * samples / share.task.count,
            type_epochs={
                name: part * samples / share.task.types[name] for name, part in share.types.items()
            },
            reason="" if share.share > 0 else _reason(spec, share, reasons.get(share.task.name)),
        )
        for share in shares
    ]
    order = {name: number for number, name in enumerate(spec.sub_mixtures)}
    explained.sort(
        key=lambda task: (
            task.share.share == 0,
            order.get(task.share.sub_mixture or "", len(order)),
            -task.share.share,
        )
    )
    return Explanation(
        spec=spec,
        samples=samples,
        tasks=tuple(explained),
        sub_mixtures=tuple(_summed(spec, name, shares, samples) for name in spec.sub_mixtures),
        unknown=tuple(unknown),
    )


def _reason(spec: MixtureSpec, share: TaskShare, held_out: str | None) -> str:
    if held_out is not None:
        return f"held out: {held_out}"
    if share.sub_mixture is None:
        return "in no sub-mixture"
    if spec.sub_mixtures[share.sub_mixture].weight == 0:
        return f"{share.sub_mixture} weighs 0"
    return f"has none of the settings that {share.sub_mixture} takes"


def _summed(
    spec: MixtureSpec, name: str, shares: Sequence[TaskShare], samples: int
) -> ExplainedSubMixture:
    mine = [share for share in shares if share.sub_mixture == name]
    used = [share for share in mine if share.share > 0]
    size = sum(share.task.count for share in used)
    share = sum(share.share for share in used)
    return ExplainedSubMixture(
        name=name,
        weight=spec.sub_mixtures[name].weight,
        tasks=len(used),
        held_out=sum(share.held_out for share in mine),
        size=size,
        share=share,
        samples=share * samples,
        epochs=share * samples / size if size else 0.0,
    )
