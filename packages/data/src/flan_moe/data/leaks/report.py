"""What was found where: numbers for each evaluation set and task, and every single leak."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flan_moe.data.leaks.index import EvaluationIndex
from flan_moe.data.leaks.scan import Leak
from flan_moe.data.storage.staging import staged_directory

REPORT_FILE = "leaks.json"
LEAKS_FILE = "leaks.jsonl"
TABLE_FILE = "leaks.md"


@dataclass(frozen=True, kw_only=True)
class SetReport:
    """One evaluation set.

    Attributes:
        name: Which.
        items: Its questions.
        exact: Questions that some training sample shows wholly.
        partial: Questions of which training samples show only parts.
        wording: Runs of words left aside because many of its questions share them.
        unusable: Questions without any word, which cannot be looked for.
        tasks: Training task, then ``{"samples", "exact", "partial"}``: its samples that show any
            question, and the questions they show wholly or in part.
    """

    name: str
    items: int
    exact: int
    partial: int
    wording: int
    unusable: int
    tasks: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """Everything that was found.

    Attributes:
        n: Words of a run.
        shortest: Fewest words of a question looked for inside other text.
        samples: Training samples looked through.
        sets: In the order they were read.
        leaks: Every one, with the question's set and id.
    """

    n: int
    shortest: int
    samples: int
    sets: tuple[SetReport, ...]
    leaks: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, leaks: Iterable[Leak], index: EvaluationIndex, samples: int) -> LeakReport:
        """Count leaks by set and task."""
        leaks = list(leaks)
        best: dict[int, bool] = {}
        by_task: dict[tuple[str, str], list[Leak]] = defaultdict(list)
        for leak in leaks:
            best[leak.item] = best.get(leak.item, False) or leak.exact
            by_task[index.items[leak.item].set, leak.task].append(leak)
        sizes = Counter(item.set for item in index.items)
        unusable = Counter(index.items[number].set for number in index.unusable)
        found = Counter((index.items[item].set, exact) for item, exact in best.items())
        sets = tuple(
            SetReport(
                name=name,
                items=sizes[name],
                exact=found[name, True],
                partial=found[name, False],
                wording=index.wording.get(name, 0),
                unusable=unusable[name],
                tasks={
                    task: _of_task(them) for (home, task), them in by_task.items() if home == name
                },
            )
            for name in sizes
        )
        rows = tuple(
            {
                "set": index.items[leak.item].set,
                "id": index.items[leak.item].id,
                **{key: value for key, value in asdict(leak).items() if key != "item"},
            }
            for leak in leaks
        )
        return cls(n=index.n, shortest=index.shortest, samples=samples, sets=sets, leaks=rows)

    def table(self, *, tasks: int = 20) -> str:
        """The numbers as Markdown: a row for each set, then its worst tasks."""
        lines = [
            f"{self.samples:,} training samples; runs of {self.n} words, shorter questions from "
            f"{self.shortest} words on as a whole, others as a line of their own.",
            "",
            "| evaluation set | questions | shown wholly | in part | runs that are wording |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {each.name} | {each.items:,} | {each.exact:,} | {each.partial:,} | "
            f"{each.wording:,} |"
            for each in self.sets
        ]
        for each in self.sets:
            if not each.tasks:
                continue
            worst = sorted(
                each.tasks.items(), key=lambda one: (-one[1]["exact"], -one[1]["partial"])
            )
            lines += ["", f"| {each.name} in task | samples | questions wholly | in part |"]
            lines += ["| --- | ---: | ---: | ---: |"]
            lines += [
                f"| {task} | {count['samples']:,} | {count['exact']:,} | {count['partial']:,} |"
                for task, count in worst[:tasks]
            ]
            if len(worst) > tasks:
                lines += [f"| ... and {len(worst) - tasks} more tasks | | | |"]
        return "\n".join(lines) + "\n"


def write_report(report: LeakReport, directory: str | Path, *, overwrite: bool = False) -> None:
    """Write the numbers (json, Markdown) and every leak (jsonl) into a new directory.

    Raises:
        FileExistsError: The directory exists and may not be replaced.
    """
    with staged_directory(directory, overwrite=overwrite, marker=REPORT_FILE) as staging:
        record = asdict(report)
        record["leaks"] = len(report.leaks)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (staging / REPORT_FILE).write_text(text, encoding="utf-8")
        (staging / TABLE_FILE).write_text(report.table(tasks=1000), encoding="utf-8")
        with (staging / LEAKS_FILE).open("w", encoding="utf-8") as lines:
            for leak in report.leaks:
                lines.write(json.dumps(leak, ensure_ascii=False) + "\n")


def _gravity(entry: tuple[str, Mapping[str, int]]) -> tuple[int, int]:
    return -entry[1]["exact"], -entry[1]["partial"]


def _of_task(leaks: list[Leak]) -> dict[str, int]:
    exact = {leak.item for leak in leaks if leak.exact}
    return {
        "samples": len({leak.sample for leak in leaks}),
        "exact": len(exact),
        "partial": len({leak.item for leak in leaks} - exact),
    }
