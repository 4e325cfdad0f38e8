"""A quickstart's findings in words, computed from its numbers whatever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flan_moe.train.callbacks.progress import clock
from flan_moe.train.quickstart import MODELS, Quickstart
from flan_moe.train.quickstart_report import (
    GROUPS,
    configuration,
    gflops_per_token,
    group_score,
)
from flan_moe.train.run_folder import RunFolder

if TYPE_CHECKING:
    from flan_moe.eval import GroupScore, Run


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
            f"{gflops_per_token(quickstart, label):.5f} GFLOPs."
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
            f"{done['batches']:,} batches and {clock(done['training_seconds'])} minutes; its "
            f"training cross-entropy went from {losses[0]:.2f} to {losses[-1]:.2f}."
        )
    return " ".join([*sentences, "Both saw the same examples in the same order."])


def _gains(runs: dict[tuple[str, str], Run]) -> list[str]:
    paragraphs = []
    for label in MODELS:
        parts = []
        for group, name in GROUPS.items():
            before = group_score(runs[label, "untrained"], group, 0, "direct")
            after = group_score(runs[label, "tuned"], group, 0, "direct")
            if before is not None and after is not None:
                parts.append(
                    f"on {name} tasks from {percent(before)} to {percent(after)}"
                    + ("" if separated(before, after) else " (the intervals overlap)")
                )
        if parts:
            paragraphs.append(
                f"Tuning took the {label} model's zero-shot score {' and '.join(parts)}."
            )
    return paragraphs


def _comparisons(runs: dict[tuple[str, str], Run]) -> list[str]:
    """Sparse against dense at every setting that both were measured at."""
    sparse, dense = (runs[label, "tuned"] for label in ("sparse", "dense"))
    verdicts: dict[str, list[str]] = {"sparse": [], "dense": [], "neither": []}
    for ours in sparse.results.groups:
        theirs = group_score(dense, ours.group, ours.shots, ours.mode)
        if theirs is None:
            continue
        if not separated(ours, theirs):
            winner = "neither"
        else:
            winner = "sparse" if ours.score > theirs.score else "dense"
        mode = "chain of thought" if ours.mode == "cot" else "direct"
        verdicts[winner].append(
            f"{GROUPS[ours.group]} {ours.shots}-shot {mode} (sparse {percent(ours)}, dense "
            f"{percent(theirs)})"
        )
    words = {
        "sparse": "The sparse model is ahead, by more than the 95 % intervals overlap, on",
        "dense": "The dense twin is ahead, by more than the 95 % intervals overlap, on",
        "neither": "The intervals overlap, so this run does not tell the two apart, on",
    }
    return [f"{words[who]}: {'; '.join(found)}." for who, found in verdicts.items() if found]


def _caveats(quickstart: Quickstart, runs: dict[tuple[str, str], Run]) -> str:
    questions = quickstart.settings.questions
    tasks = len({score.task for score in runs["sparse", "tuned"].results.tasks})
    return (
        f"These are scores of small models after minutes of training with one random seed, on at "
        f"most {questions} questions of each of {tasks} tasks. They show that the parts work "
        "together, and how wide the intervals are; they do not show how sparse and dense models "
        "compare at sizes that matter."
    )


def _times(quickstart: Quickstart) -> str:
    times = quickstart.seconds()
    parts = ", ".join(f"{name} {clock(seconds)}" for name, seconds in times.items())
    return f"Minutes per stage: {parts}; {clock(sum(times.values()))} together."


def percent(score: GroupScore) -> str:
    """``41.2 % [38.0, 44.5]``: the score and its 95 % interval over questions."""
    low, high = score.over_items.low, score.over_items.high
    return f"{100 * score.score:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def separated(a: GroupScore, b: GroupScore) -> bool:
    """Whether two 95 % intervals have no point in common."""
    return a.over_items.low > b.over_items.high or b.over_items.low > a.over_items.high
