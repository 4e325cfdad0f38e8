"""Leaks between real tasks and real evaluation sets that are known to share questions."""

import tarfile
from pathlib import Path

import pytest

from flan_moe.data.leaks import EvaluationIndex, LeakReport, TrainingText, read_evaluation, scan
from flan_moe.data.sources.tasks import found_tasks

REAL = Path(__file__).parents[4] / "shared/data"
pytestmark = pytest.mark.skipif(
    not (REAL / "raw.tar.xz").is_file(), reason=f"needs the real raw files in {REAL}"
)
SETS = {
    "svamp": "raw/svamp/SVAMP.json",
    "asdiv": "raw/asdiv/ASDiv.xml",
    "gsm8k": "raw/gsm8k/test.jsonl",
    "strategyqa": "raw/strategyqa/dev.json",
}
FAMILIES = ("svamp", "asdiv", "mawps", "mmmlu", "strategyqa", "cot_gsm8k")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation")
    with tarfile.open(REAL / "raw.tar.xz") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if name in SETS.values() or name.startswith(("raw/mmlu/test/", "raw/flan_cot/gsm8k")):
                tar.extract(member, path, filter="data")
    items = [item for name, file in SETS.items() for item in read_evaluation(name, path / file)]
    items += read_evaluation("mmlu", path / "raw/mmlu/test")
    texts = list(_texts(path / "raw/flan_cot"))
    index = EvaluationIndex.build(items)
    return LeakReport.of(scan(texts, index), index, len(texts))


def _texts(cot):
    number = 0
    for found in found_tasks(
        natural_instructions=REAL / "natural_instructions_wide.jsonl.xz",
        cot=cot,
        **dict.fromkeys(("cot_stand_ins", "muffin", "t0_sf", "jsonl")),
        stand_ins=False,
        seed=0,
    ):
        if any(family in found.name for family in FAMILIES):
            for record in found.read().records:
                parts = (record.input, record.targets[0])
                yield TrainingText(task=found.name, sample=number, parts=parts)
                number += 1


def tasks_of(report, name):
    return next(each for each in report.sets if each.name == name).tasks


def test_every_sample_of_the_svamp_tasks_is_a_question_of_svamp(report):
    tasks = tasks_of(report, "svamp")
    for number in (751, 752, 753, 754):
        (found,) = (count for task, count in tasks.items() if task.startswith(f"task{number}_"))
        assert (found["samples"], found["exact"]) == (64, 64)


def test_asdiv_is_in_the_tasks_made_of_it_and_of_mawps(report):
    exact = {task: count["exact"] for task, count in tasks_of(report, "asdiv").items()}
    for number in (861, 862, 863, 864):
        assert sum(n for task, n in exact.items() if task.startswith(f"task{number}_asdiv")) > 40
    for number in (865, 866, 867, 868):
        assert sum(n for task, n in exact.items() if task.startswith(f"task{number}_mawps")) >= 3


def test_mmlu_is_in_its_natural_instructions_tasks_and_nowhere_else_here(report):
    tasks = tasks_of(report, "mmlu")
    assert len({task for task in tasks if "_mmmlu_" in task}) > 45
    assert not {task for task, count in tasks.items() if count["exact"] and "_mmmlu_" not in task}


def test_training_splits_do_not_show_the_test_questions(report):
    """GSM8K train shares two passages with test; StrategyQA train nothing with its dev split."""
    assert {task: count["exact"] for task, count in tasks_of(report, "gsm8k").items()} == {
        "cot_gsm8k": 0
    }
    assert tasks_of(report, "strategyqa") == {}
