"""Natural Instructions and Flan CoT as published, through readers, shards and mixture."""

import tarfile
from pathlib import Path

import pytest

from flan_moe.data.build import BuildOptions, build_data_directory
from flan_moe.data.offline.pack import PackOptions, pack_directory
from flan_moe.data.readers import (
    RawDataError,
    cot_files,
    natural_instructions_files,
    read_cot_task,
    read_natural_instructions_task,
)
from flan_moe.data.sources.raw import RawOptions, raw_sources
from flan_moe.data.storage.manifest import read_manifest
from flan_moe.data.storage.shards import read_mds
from flan_moe.data.storage.verify import verify_data_directory
from flan_moe.data.streaming.loader import dataloader
from flan_moe.data.tokenization.tokenizer import load_tokenizer

REAL = Path(__file__).parents[4] / "shared/data"
FOLDERS = ("raw/natural_instructions/tasks/", "raw/natural_instructions/splits/", "raw/flan_cot/")

pytestmark = pytest.mark.skipif(
    not (REAL / "raw.tar.xz").is_file(), reason=f"needs the real raw files in {REAL}"
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The two raw formats, unpacked; a third of the Natural Instructions tasks."""
    path = tmp_path_factory.mktemp("real")
    with tarfile.open(REAL / "raw.tar.xz") as tar:
        for member in tar:
            if member.name.removeprefix("./").startswith(FOLDERS):
                tar.extract(member, path, filter="data")
    tasks = sorted((path / FOLDERS[0]).glob("*.json"))
    for file in tasks[1::3] + tasks[2::3]:
        file.unlink()
    return path / "raw"


def test_every_file_is_read_and_every_record_accounted_for(raw):
    tasks = [
        *map(
            read_natural_instructions_task, natural_instructions_files(raw / "natural_instructions")
        ),
        *map(read_cot_task, cot_files(raw / "flan_cot")),
    ]
    assert len(tasks) > 20
    for task in tasks:
        assert task.read == len(task.records) + task.dropped.total(), task.name
        assert len(task.records) > 0.97 * task.read, task.name
    rows = {task.name: task.read for task in tasks}
    # Row counts as published with the Flan collection (google-research/FLAN, task configs).
    assert rows["cot_gsm8k"] == 7473
    assert rows["cot_strategyqa"] == 2061
    assert rows["cot_ecqa"] == 7112
    gsm8k = read_cot_task(raw / "flan_cot" / "gsm8k_train.tsv").records[0]
    assert gsm8k.input.startswith("Natalia sold clips to 48 of her friends in April")
    assert gsm8k.targets == ("72",)
    assert gsm8k.rationale.endswith("72 clips altogether in April and May.")


def test_truncated_real_files_are_refused(raw, tmp_path):
    for file, read in (
        (
            natural_instructions_files(raw / "natural_instructions")[0],
            read_natural_instructions_task,
        ),
        (raw / "flan_cot" / "aqua_train.tsv", read_cot_task),
    ):
        cut = tmp_path / file.name
        cut.write_bytes(file.read_bytes()[:100_001])
        with pytest.raises(RawDataError, match=rf"{file.name}:\d+: .*truncated"):
            read(cut)


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    splits = raw / "natural_instructions" / "splits" / "default"
    sources = raw_sources(
        RawOptions(examples=60, evaluation=20, validation=8),
        natural_instructions=raw / "natural_instructions",
        cot=raw / "flan_cot",
        held_out=[f"@{splits / 'test_tasks.txt'}", "cot_aqua"],
    )
    options = BuildOptions(
        name="real", source="test", vocab_size=4096, max_input_tokens=512, max_target_tokens=128
    )
    path = tmp_path_factory.mktemp("built") / "real"
    build_data_directory(path, sources, options, report=lambda line: None)
    return path


def test_held_out_tasks_are_evaluated_and_not_trained_on(built, raw):
    manifest = read_manifest(built)
    groups = {task["name"]: task["group"] for task in manifest.tasks}
    test_tasks = (raw / "natural_instructions/splits/default/test_tasks.txt").read_text().split()
    assert groups["cot_aqua"] == "held_out"
    for task in manifest.tasks:
        if task["mixture"] == "niv2":
            assert (task["group"] == "held_out") == (task["name"] in test_tasks)
        assert (task["train"] > 0) == (task["group"] == "held_in")
        assert 0 < task["eval"] <= 20


def test_what_is_stored_is_what_was_read(built, raw):
    """Answers of one task, decoded from the shards, are answers of its file."""
    assert all("match" in line for line in verify_data_directory(built))
    tokenizer = load_tokenizer(built / "tokenizer")
    task = next(task for task in read_manifest(built).tasks if task["name"] == "cot_gsm8k")
    records = read_cot_task(raw / "flan_cot" / "gsm8k_train.tsv").records
    answers = {record.targets[0] for record in records}
    answers |= {f"{r.rationale} So the answer is {r.targets[0]}." for r in records}
    found = [
        tokenizer.decode(sample["labels"].tolist(), skip_special_tokens=True)
        for sample in read_mds(built / "train" / "cot")
        if sample["task"] == task["id"]
    ]
    assert len(found) == 60
    assert set(found) <= answers


def test_packed_beforehand_rows_are_full(built, tmp_path):
    options = PackOptions(max_input_tokens=1024, max_target_tokens="auto", overlong="drop")
    manifest = pack_directory(built, tmp_path / "packed", options, report=lambda line: None)
    assert manifest.fill[0] > 0.975
    assert manifest.fill[1] > 0.75
    assert manifest.total("drawn") == manifest.total("packed") + manifest.total("dropped")
    assert all("match" in line for line in verify_data_directory(tmp_path / "packed"))


def test_the_mixture_has_the_weights_asked_for(built):
    weights = {"niv2": 0.8, "cot": 0.2}
    loader = dataloader(built, batch_size=50, weights=weights, epoch_size=500)
    mixture_of = {task["id"]: task["mixture"] for task in read_manifest(built).tasks}
    drawn = [mixture_of[task] for batch in loader for task in batch["task_ids"].tolist()]
    assert drawn.count("niv2") == 400
    assert drawn.count("cot") == 100
    assert loader.collate_fn.counts()["truncated"] < 100
