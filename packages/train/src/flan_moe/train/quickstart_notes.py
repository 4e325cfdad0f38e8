"""A quickstart's findings in words, computed from its numbers whatever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flan_moe.train.callbacks.progress import clock
from flan_moe.train.quickstart import MODELS, Quickstart
from flan_moe.train.quickstart_report import (
    GROUPS,
    STATES,
    configuration,
    group_score,
    mflops_per_token,
)
from flan_moe.train.run_folder import RunFolder

if TYPE_CHECKING:
    from flan_moe.eval import GroupScore, Run
    from flan_moe.eval.compare import GroupComparison
    from flan_moe.eval.statistics import Interval


def notes(
    quickstart: Quickstart,
    runs: dict[tuple[str, str], Run],
    metrics: dict[str, list[dict[str, Any]]],
) -> list[str]:
    """Paragraphs for the reader: what was done, what came out, and what it does not show."""
    return [
        _models(quickstart),
        _training(quickstart, metrics),
        *_gains(runs),
        *_comparisons(runs),
        _caveats(quickstart, runs),
        _times(quickstart),
    ]


def _models(quickstart: Quickstart) -> str:
    from flan_moe.model import count_parameters

    sentences = []
    for label in MODELS:
        config = configuration(quickstart, label)
        count = count_parameters(config)
        router = config.encoder_router or config.decoder_router
        experts = f" and {router['num_experts']} experts per sparse layer" if router else ""
        sentences.append(
            f"The {label} model has {count.total / 1e6:.2f} million parameters{experts}; "
            f"{count.active / 1e6:.2f} million of them work on a token (embeddings left out), at "
            f"{mflops_per_token(quickstart, label):.2f} MFLOPs."
        )
    return " ".join(sentences)


def _training(quickstart: Quickstart, metrics: dict[str, list[dict[str, Any]]]) -> str:
    sentences = []
    for label, lines in metrics.items():
        done = RunFolder(quickstart.run_folder(label)).finished() or {}
        losses = [
            line["loss/train/cross_entropy"] for line in lines if "loss/train/cross_entropy" in line
        ]
        sentences.append(
            f"The {label} model saw {done['examples']:,} examples ({done['tokens']:,} tokens) in "
            f"{done['batches']:,} batches and {clock(done['training_seconds'])} (minutes:seconds); "
            f"its training cross-entropy went from {losses[0]:.2f} to {losses[-1]:.2f}."
        )
    return " ".join([*sentences, "Both saw the same examples in the same order."])


def _gains(runs: dict[tuple[str, str], Run]) -> list[str]:
    """What tuning did to each model, zero-shot and direct."""
    from flan_moe.eval import compare_runs

    paragraphs = []
    for label in MODELS:
        untrained, tuned = (runs[label, state] for state in STATES)
        parts = []
        for change in compare_runs(untrained, tuned).groups:
            if (change.shots, change.mode) == (0, "direct"):
                before, after = (group_score(run, change) for run in (untrained, tuned))
                parts.append(
                    f"on {GROUPS[change.group]} tasks from {percent(before)} to {percent(after)}, "
                    f"{verdict(change)[1]}"
                )
        if parts:
            paragraphs.append(
                f"Tuning took the {label} model's zero-shot score {', and '.join(parts)} "
                "(in brackets the 95 % interval of the change)."
            )
    return paragraphs


def _comparisons(runs: dict[tuple[str, str], Run]) -> list[str]:
    """Sparse against dense at every setting, on the same questions."""
    from flan_moe.eval import compare_runs

    sparse, dense = (runs[label, "tuned"] for label in ("sparse", "dense"))
    found: dict[str, list[str]] = {"up": [], "down": [], "open": []}
    for change in compare_runs(dense, sparse).groups:
        direction, words = verdict(change)
        mode = "chain of thought" if change.mode == "cot" else "direct"
        found[direction].append(
            f"{GROUPS[change.group]} {change.shots}-shot {mode}: sparse "
            f"{percent(group_score(sparse, change))}, dense {percent(group_score(dense, change))}, "
            f"{words}"
        )
    headings = {
        "up": "The sparse model is ahead of its dense twin",
        "down": "The sparse model is behind its dense twin",
        "open": "This run does not tell sparse and dense apart",
    }
    # One comparison a line: eight of them in a sentence are not read.
    paragraphs = ["\n".join([f"{headings[d]} on:", *where]) for d, where in found.items() if where]
    total = sum(map(len, found.values()))
    if total > 1:
        paragraphs.append(
            "Points are sparse minus dense on the same questions, in brackets the 95 % interval. "
            f"Each of these {total} comparisons is judged on its own; among many, one may stand "
            "out by chance."
        )
    return paragraphs


def _caveats(quickstart: Quickstart, runs: dict[tuple[str, str], Run]) -> str:
    questions = quickstart.settings.questions
    tasks = len({score.task for score in runs["sparse", "tuned"].results.tasks})
    return (
        "These are scores of small models after minutes of training with one random seed, on at "
        f"most {questions} questions of each of {tasks} tasks. Intervals are for other questions "
        "of the same tasks; where held-out tasks are compared there is one for other tasks too, "
        "and only that one tells of unseen tasks. None is for other seeds. The scores show that "
        "the parts work together. They do not show how sparse and dense models compare at sizes "
        "that matter."
    )


def _times(quickstart: Quickstart) -> str:
    times = quickstart.seconds()
    parts = "; ".join(f"{name}: {clock(seconds)}" for name, seconds in times.items())
    return f"Time per stage (minutes:seconds): {parts}. Together: {clock(sum(times.values()))}."


def percent(score: GroupScore) -> str:
    """``41.2 %``."""
    return f"{100 * score.score:.1f} %"


def verdict(change: GroupComparison) -> tuple[str, str]:
    """Direction of a paired difference ("up", "down" or "open"), and the difference in words.

    Of held-in tasks the 95 % interval is for other questions of the same tasks. Of held-out tasks,
    which stand for unseen ones, both intervals are named, and the one for other tasks decides. If
    it holds zero, or there is none because there is one task, the direction is open.
    """
    words = f"{100 * change.difference:+.1f} points [{_points(change.over_items)}]"
    decides = change.over_items
    if change.group != "held_in":
        decides = change.over_tasks
        tasks = f"[{_points(decides)}]" if decides else "[unknown from one task]"
        words += f" over questions, {tasks} over tasks"
    if decides is None or decides.low <= 0 <= decides.high:
        return "open", words
    return ("up" if decides.low > 0 else "down"), words


def _points(interval: Interval) -> str:
    return f"{100 * interval.low:+.1f}, {100 * interval.high:+.1f}"
