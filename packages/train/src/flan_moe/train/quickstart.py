"""One command from nothing to a report: sparse against dense, before and after tuning.

Each stage leaves its result in the output folder under its final name only when it is complete, so
a quickstart that was interrupted continues where it stopped when it is started again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.train.recipe import LoadedRecipe, load_recipe
from flan_moe.train.run_folder import RunFolderError, write_atomically
from flan_moe.train.trainer import say

if TYPE_CHECKING:
    from flan_moe.eval import Suite

MODELS = {"sparse": "mini_sparse", "dense": "mini_dense"}
"""The two models and the shipped recipes they are trained by."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a quickstart does; recorded in its folder.

    Attributes:
        raw_data: Folder of raw data, or None for mini-Flan.
        steps: Optimizer steps per model; None for the recipes' own number.
        examples: Training examples per task at most.
        tasks: Evaluated tasks per group (held-in, held-out, held-out siblings) at most; raw data
            can have many more.
        questions: Evaluation questions per task.
        shots: Numbers of exemplars to evaluate with.
    """

    raw_data: str | None = None
    steps: int | None = None
    examples: int = 1000
    tasks: int = 20
    questions: int = 25
    shots: tuple[int, ...] = (0, 2)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is not positive; names it.
        """
        for key in ("steps", "examples", "tasks", "questions"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: expected a positive whole number, got {value!r}")


class Quickstart:
    """The stages of a quickstart in one folder.

    Args:
        out: The folder.
        settings: What to do.
        report: Receives progress lines.

    Raises:
        RunFolderError: If ``out`` holds a quickstart with other settings, or other files.
    """

    def __init__(
        self, out: str | Path, settings: Settings, report: Callable[[str], None] = say
    ) -> None:
        self.out = Path(out)
        self.settings = settings
        self.report = report
        self.data = self.out / "data"
        self._times_file = self.out / "seconds.json"
        self._claim()

    def run(self) -> Path:
        """Run every stage that is not done yet; returns the report's page."""
        started = time.monotonic()
        stages = 2 + 3 * len(MODELS)
        self._number, self._stages = 0, stages
        self._build_data()
        for label in MODELS:
            self._evaluate(label, "untrained")
            self._train(label)
            self._evaluate(label, "tuned")
        page = self._write_report()
        self.report(f"\n{page}: written; {time.monotonic() - started:.0f} s in all")
        return page

    def recipe(self, label: str) -> LoadedRecipe:
        """The recipe of one of the two models."""
        overrides = [f"data.path={json.dumps(str(self.data))}", f"name={label}"]
        if self.settings.steps is not None:
            steps = self.settings.steps
            overrides += [
                f"training.duration={steps}ba",
                f"schedule.warmup={max(1, steps // 12)}ba",
                f"checkpoint.interval={max(1, steps // 6)}ba",
                f"evaluation.interval={max(1, steps // 3)}ba",
            ]
        return load_recipe(MODELS[label], overrides)

    def run_folder(self, label: str) -> Path:
        """Where a model is trained."""
        return self.out / "runs" / label

    def model_folder(self, label: str, state: str) -> Path:
        """Where a model is exported, ``state`` being "untrained" or "tuned"."""
        return self.out / "models" / f"{label}-{state}"

    def results_folder(self, label: str, state: str) -> Path:
        """Where a model's evaluation is kept."""
        return self.out / "evaluations" / f"{label}-{state}"

    def suite(self) -> Suite:
        """The questions, cut to a number of tasks that can be asked in the time."""
        from flan_moe.eval import load_suite

        suite = load_suite(self.data / "eval")
        most = max(self.settings.shots)
        names: list[str] = []
        for group in dict.fromkeys(task.group for task in suite.tasks):
            tasks = [t.name for t in suite.tasks if t.group == group and len(t.exemplars) >= most]
            step = max(1, -(-len(tasks) // self.settings.tasks))
            names += tasks[::step]
        return suite.select(tuple(names))

    def seconds(self) -> dict[str, float]:
        """Seconds that each stage took, interrupted parts left out."""
        if not self._times_file.exists():
            return {}
        return json.loads(self._times_file.read_text(encoding="utf-8"))

    def _claim(self) -> None:
        file = self.out / "quickstart.json"
        wanted = json.loads(json.dumps(asdict(self.settings)))
        if file.exists():
            held = json.loads(file.read_text(encoding="utf-8"))
            if held != wanted:
                raise RunFolderError(
                    f"{self.out}: holds a quickstart with {held}, asked for {wanted}; choose "
                    "another folder"
                )
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise RunFolderError(f"{self.out}: expected an empty folder or a quickstart")
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(wanted, indent=2) + "\n")

    @contextmanager
    def _stage(self, name: str, done: bool) -> Iterator[bool]:
        """Announce a stage; yields whether there is anything to do, and notes how long it took."""
        self._number += 1
        self.report(f"\n[{self._number}/{self._stages}] {name}{': done before' if done else ''}")
        started = time.monotonic()
        yield not done
        if not done:
            times = {**self.seconds(), name: round(time.monotonic() - started, 1)}
            write_atomically(self._times_file, json.dumps(times, indent=2) + "\n")

    def _build_data(self) -> None:
        from flan_moe.train.quickstart_data import build_quickstart_data

        with self._stage("building data", self.data.exists()) as due:
            if due:
                raw, examples = self.settings.raw_data, self.settings.examples
                build_quickstart_data(
                    self.data, Path(raw) if raw else None, examples, report=self.report
                )

    def _train(self, label: str) -> None:
        from flan_moe.train.export import export_run
        from flan_moe.train.trainer import train

        model = self.model_folder(label, "tuned")
        with self._stage(f"training the {label} model", model.exists()) as due:
            if due:
                train(self.recipe(label), self.run_folder(label), self.report)
                export_run(self.run_folder(label), model)

    def _evaluate(self, label: str, state: str) -> None:
        from flan_moe.eval import Decoding, HFSeq2SeqModel, evaluate

        results = self.results_folder(label, state)
        done = (results / "results.json").exists()
        with self._stage(f"evaluating the {label} model, {state}", done) as due:
            if due:
                model, tokenizer, limit = self._load(label, state)
                evaluate(
                    HFSeq2SeqModel(model, tokenizer, max_input_tokens=limit),
                    self.suite(),
                    shots=self.settings.shots,
                    limit=self.settings.questions,
                    out_dir=results,
                    progress=True,
                    model_name=f"{label}, {state}",
                    decoding=Decoding(direct_tokens=16, cot_tokens=64),
                )

    def _load(self, label: str, state: str) -> tuple[Any, Any, int]:
        """Model, tokenizer and longest prompt; the untrained model is what training starts from."""
        from flan_moe.model import FlanMoEForConditionalGeneration
        from flan_moe.train.networks import build_network
        from flan_moe.train.preflight import check_recipe

        plan = check_recipe(self.recipe(label))
        if state == "untrained":
            model = build_network(plan.loaded, plan.config)
        else:
            folder = self.model_folder(label, state)
            model = FlanMoEForConditionalGeneration.from_pretrained(folder)
        return model.eval(), plan.data.tokenizer, plan.data.manifest.max_input_tokens

    def _write_report(self) -> Path:
        from flan_moe.train.quickstart_report import write_quickstart_report

        with self._stage("writing the report", done=False):
            return write_quickstart_report(self)
