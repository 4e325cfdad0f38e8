"""Tables and sample listings of the report, as escaped HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from flan_moe.eval.plots import run_color
from flan_moe.eval.results import GroupScore, TaskScore
from flan_moe.eval.run import Run
from flan_moe.eval.samples import Sample
from flan_moe.eval.statistics import Interval
from flan_moe.eval.suite import GROUP_NAMES, Group, Mode

# Models write these and pages may not hold them; tabs and line ends stay.
_CONTROL = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
_CONTROL |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")

_INTERVALS = (
    "Scores in percent. In brackets the 95 % interval for other questions of the same tasks; "
    "“tasks” is the 95 % interval for other tasks of the same kind, which is what a "
    "claim about unseen tasks needs. “norm.” is 100 (score − chance) / (100 "
    "− chance), taken per task, so that guessing is 0. “unreadable” is the share "
    "of outputs that hold no answer in the form asked for. No task of the kind of a “held-out” "
    "one was trained on; of the kind of a “held-out sibling” others were."
)


def shown(text: str) -> str:
    """Text for a page: escaped, with a picture for each control character."""
    return escape(text.translate(_CONTROL))


def group_table(runs: Sequence[Run]) -> str:
    """Macro means: a row per group and setting, a column per run."""
    found = [{(g.group, g.shots, g.mode): g for g in run.results.groups} for run in runs]
    lost = [_lost_in_prompts(run.results.tasks) for run in runs]
    keys = list(dict.fromkeys(key for groups in found for key in groups))
    rows = []
    for group, shots, mode in keys:
        members = next(g[group, shots, mode] for g in found if (group, shots, mode) in g)
        cells = "".join(
            _group_cell(groups.get((group, shots, mode)), losses.get((group, shots, mode), []))
            for groups, losses in zip(found, lost, strict=True)
        )
        rows.append(
            f"<tr><td>{_group_tag(group)}</td><td>{shots}-shot {mode}</td>"
            f'<td class="number">{len(members.tasks)}</td>'
            f'<td class="number">{100 * members.chance:.1f}</td>{cells}</tr>\n'
        )
    head = (
        '<th>group</th><th>setting</th><th class="number">tasks</th><th class="number">chance</th>'
        + _run_heads(runs)
    )
    return f'<p class="soft small">{_INTERVALS}</p>\n{_table(head, rows)}'


def task_table(runs: Sequence[Run], *, shots: int, mode: Mode) -> str:
    """A row per task at one setting, held-out tasks first, a column per run."""
    found = [
        {s.task: s for s in run.results.tasks if (s.shots, s.mode) == (shots, mode)} for run in runs
    ]
    tasks: dict[str, TaskScore] = {}
    for by_name in found:
        for name, score in by_name.items():
            tasks.setdefault(name, score)
    rows = []
    order = list(GROUP_NAMES)
    for name, score in sorted(tasks.items(), key=lambda entry: order.index(entry[1].group)):
        facts = _details([score.mixture, f"n {score.n}", f"chance {100 * score.chance:.1f}"])
        cells = "".join(_task_cell(by_name.get(name)) for by_name in found)
        rows.append(
            f"<tr><th>{_breakable(name)}{facts}</th><td>{_group_tag(score.group)}</td>{cells}</tr>\n"
        )
    return _table(f"<th>task</th><th>group</th>{_run_heads(runs)}", rows)


def sample_browser(runs: Sequence[Run], count: int) -> str:
    """The first samples of each cell, all runs side by side; empty without samples or count."""
    keys = list(dict.fromkeys(key for run in runs for key in run.samples))
    if not keys or count < 1:
        return ""
    parts = [
        f'<p class="soft small">The first {count} questions of each task, in the order of the '
        "suite; not a selection.</p>\n"
    ]
    for key in keys:
        by_id: dict[str, list[tuple[int, Sample]]] = {}
        for position, run in enumerate(runs):
            for sample in run.samples.get(key, ())[:count]:
                by_id.setdefault(sample.id, []).append((position, sample))
        blocks = "".join(_sample_block(runs, answers) for answers in by_id.values())
        parts.append(
            f"<details><summary>{shown(key.task)} "
            f'<span class="soft">{key.shots}-shot {key.mode}</span></summary>\n{blocks}</details>\n'
        )
    return "".join(parts)


def environment_table(runs: Sequence[Run]) -> str:
    """What the numbers depend on: model, suite, decoding, versions."""
    rows = []
    for position, run in enumerate(runs):
        results = run.results
        facts = {
            "model": results.model or "not named",
            "fingerprint": (results.fingerprint or "none")[:16],
            "suite": f"{results.suite} {results.suite_hash[:16]}",
            "items per task": "all" if results.limit is None else f"at most {results.limit}",
            "decoding": "greedy, " + ", ".join(f"{k} {v}" for k, v in results.decoding.items()),
            "versions": ", ".join(f"{k} {v}" for k, v in results.environment.items()),
        }
        lines = "".join(
            f'<span class="detail">{shown(key)}: {shown(value)}</span>'
            for key, value in facts.items()
        )
        rows.append(f"<tr><th>{_run_name(position, run)}</th><td>{lines}</td></tr>\n")
    return _table("<th>run</th><th>what its numbers depend on</th>", rows)


def _sample_block(runs: Sequence[Run], answers: Sequence[tuple[int, Sample]]) -> str:
    _, first = answers[0]
    rows = []
    for position, sample in answers:
        verdict = "right" if sample.correct else "wrong"
        rows.append(
            f"<tr><td>{_run_name(position, runs[position])}</td>"
            f'<td><span class="{verdict}">{verdict}</span>'
            f'<span class="detail">{shown(sample.how)}</span></td>'
            f"<td><pre>{shown(_answer_text(sample))}</pre></td></tr>\n"
        )
    return (
        f'<div class="sample"><span class="soft small">{shown(first.id)}</span>'
        f"<pre>{shown(first.prompt)}</pre>"
        f"<div>target: <strong>{shown(' or '.join(first.targets))}</strong></div>"
        f'<table class="outputs"><tbody>\n{"".join(rows)}</tbody></table></div>\n'
    )


def _answer_text(sample: Sample) -> str:
    if sample.output is not None:
        return sample.output if sample.output.strip() else "(nothing)"
    options = zip(sample.options or (), sample.log_probabilities or (), strict=True)
    ranked = sorted(options, key=lambda pair: -pair[1])
    return "\n".join(f"{value:9.3f}  {option}" for option, value in ranked)


def _lost_in_prompts(scores: Sequence[TaskScore]) -> dict[tuple[str, int, str], list[str]]:
    """What did not fit into the prompts of each group and setting: few-shot can be fewer shots."""
    members: dict[tuple[str, int, str], list[TaskScore]] = {}
    for score in scores:
        members.setdefault((score.group, score.shots, score.mode), []).append(score)
    lost = {}
    for key, group in members.items():
        asked, exemplars = sum(s.n for s in group), sum(s.n * s.shots for s in group)
        dropped = sum(s.exemplars_dropped for s in group)
        cut = sum(s.prompts_truncated for s in group)
        lost[key] = [f"{dropped} of {exemplars} exemplars dropped"] if dropped else []
        lost[key] += [f"{cut} of {asked} prompts cut"] if cut else []
    return lost


def _group_cell(group: GroupScore | None, lost: Sequence[str]) -> str:
    if group is None:
        return "<td>–</td>"
    details = [f"norm. {group.normalized:.1f}"]
    if group.over_tasks is not None:
        details.append(f"tasks {_interval(group.over_tasks)}")
    details.append(f"unreadable {100 * group.parse_failure_rate:.1f} %")
    return _score_cell(group.score, group.over_items, [*details, *lost])


def _task_cell(score: TaskScore | None) -> str:
    if score is None:
        return "<td>–</td>"
    details = [f"norm. {score.normalized:.1f}"]
    if score.method == "generate":
        details.append(f"unreadable {100 * score.parse_failures / score.n:.1f} %")
    details += [
        f"{_secondary_name(name)} {100 * value:.1f}" for name, value in score.secondary.items()
    ]
    if score.mean_output_tokens is not None:
        details.append(f"{score.mean_output_tokens:.1f} tokens")
    if score.exemplars_dropped:
        details.append(f"{score.exemplars_dropped} exemplars dropped")
    if score.prompts_truncated:
        details.append(f"{score.prompts_truncated} prompts cut")
    return _score_cell(score.score, score.interval, details)


def _score_cell(score: float, interval: Interval, details: Sequence[str]) -> str:
    return (
        f'<td><span class="score">{100 * score:.1f}</span>'
        f'<span class="interval">[{_interval(interval)}]</span>{_details(details)}</td>'
    )


def _details(parts: Sequence[str]) -> str:
    pieces = " · ".join(f"<span>{shown(part)}</span>" for part in parts)
    return f'<span class="detail">{pieces}</span>'


def _secondary_name(name: str) -> str:
    return {"strict_exact_match": "strict", "per_token_accuracy": "per token"}.get(name, name)


def _interval(interval: Interval) -> str:
    return f"{100 * interval.low:.1f}, {100 * interval.high:.1f}"


def _breakable(name: str) -> str:
    """A name that may be broken after each underscore, and elsewhere if it must be."""
    return shown(name).replace("_", "_<wbr>")


def _group_tag(group: Group) -> str:
    return f'<span class="tag {group}">{GROUP_NAMES[group]}</span>'


def _run_name(position: int, run: Run) -> str:
    return (
        f'<span class="swatch" style="background:{run_color(position)}"></span>{shown(run.label)}'
    )


def _run_heads(runs: Sequence[Run]) -> str:
    return "".join(f"<th>{_run_name(position, run)}</th>" for position, run in enumerate(runs))


def _table(head: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(rows)}'
        "</tbody></table></div>\n"
    )
