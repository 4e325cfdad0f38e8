"""From judged samples to task scores, and from task scores to group means."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from flan_moe.eval.extract import PARSE_FAILURES
from flan_moe.eval.results import GroupScore, Method, TaskScore
from flan_moe.eval.samples import Sample
from flan_moe.eval.statistics import (
    chance_normalized,
    macro_mean,
    standard_error,
    wilson_interval,
)
from flan_moe.eval.suite import GROUP_NAMES, Group, Mode, Task


def task_score(
    task: Task, samples: Sequence[Sample], *, shots: int, mode: Mode, method: Method
) -> TaskScore:
    """Score one task from its judged samples."""
    correct = [float(sample.correct) for sample in samples]
    score = fmean(correct)
    lengths = [sample.output_tokens for sample in samples if sample.output_tokens is not None]
    return TaskScore(
        task=task.name,
        mixture=task.mixture,
        group=task.group,
        kind=task.kind,
        mode=mode,
        shots=shots,
        method=method,
        content_hash=task.content_hash(),
        n=len(samples),
        score=score,
        standard_error=standard_error(correct),
        interval=wilson_interval(score, len(samples)),
        chance=task.chance,
        normalized=chance_normalized(score, task.chance),
        secondary={
            name: fmean(float(sample.secondary[name]) for sample in samples)
            for name in samples[0].secondary
        },
        parse_failures=sum(sample.how in PARSE_FAILURES for sample in samples),
        exemplars_dropped=sum(shots - sample.exemplars for sample in samples),
        prompts_truncated=sum(sample.excess_tokens > 0 for sample in samples),
        mean_output_tokens=fmean(lengths) if lengths else None,
    )


def group_scores(scores: Sequence[TaskScore]) -> tuple[GroupScore, ...]:
    """Average the tasks of each group, once per shots and mode, held-out groups first."""
    settings = dict.fromkeys((score.shots, score.mode) for score in scores)
    groups = []
    for group in GROUP_NAMES:
        for shots, mode in settings:
            members = [
                score
                for score in scores
                if (score.group, score.shots, score.mode) == (group, shots, mode)
            ]
            if members:
                groups.append(_group_score(group, shots, mode, members))
    return tuple(groups)


def _group_score(group: Group, shots: int, mode: Mode, members: Sequence[TaskScore]) -> GroupScore:
    raw = macro_mean([m.score for m in members], [m.interval for m in members])
    # Each task is normalised with its own chance score before averaging, as Chung et al. do.
    normalized = macro_mean(
        [m.normalized for m in members],
        [m.interval.map(100 / (1 - m.chance), -100 * m.chance / (1 - m.chance)) for m in members],
    )
    return GroupScore(
        group=group,
        mode=mode,
        shots=shots,
        tasks=tuple(m.task for m in members),
        score=raw.mean,
        over_items=raw.over_items,
        over_tasks=raw.over_tasks and raw.over_tasks.clip(0.0, 1.0),
        chance=fmean(m.chance for m in members),
        normalized=normalized.mean,
        normalized_over_items=normalized.over_items,
        normalized_over_tasks=normalized.over_tasks,
        parse_failure_rate=fmean(m.parse_failures / m.n for m in members),
    )
