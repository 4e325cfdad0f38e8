"""A run folder belongs to one run; its checkpoints are whole, or passed over by name."""

import subprocess
import sys
import zipfile

import pytest
import torch

from flan_moe.train.recipe import read_recipe
from flan_moe.train.run_folder import RunFolder, RunFolderError, damage, write_atomically

RECIPE = """\
name: tiny
model: {preset: flan-moe-tiny}
data: {path: somewhere, batch_size: 8, input_length: 32, target_length: 8}
optimizer: {name: adamw, lr: 1e-4}
training: {duration: 10ba}
checkpoint: {interval: 5ba}
"""
DATA = "f" * 64


def recipe(*overrides):
    return read_recipe(RECIPE, "recipe.yaml", overrides).recipe


def save(folder, batch, content=None):
    partial = folder.partial_checkpoint(batch)
    torch.save(content or {"weight": torch.randn(1000), "batch": batch}, partial)
    folder.commit_checkpoint(partial, batch)
    return folder.checkpoint_folder / f"ba{batch}.pt"


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(recipe(), DATA)
    return folder


def test_the_same_run_is_recognised(folder):
    folder.open(recipe(), DATA)
    assert folder.recipe() == recipe()


OPEN = """
import sys
from flan_moe.train.recipe import read_recipe
from flan_moe.train.run_folder import RunFolder
path, text, data = sys.argv[1:]
RunFolder(path).open(read_recipe(text, "recipe.yaml").recipe, data)
"""


def test_a_run_belongs_to_one_process_at_a_time(folder):
    command = [sys.executable, "-c", OPEN, str(folder.path), RECIPE, DATA]
    other = subprocess.run(command, capture_output=True, text=True)
    assert other.stderr.endswith("run: another process is training this run\n")
    folder.release()
    subprocess.run(command, check=True)
    folder.open(recipe(), DATA)  # the lock went with the process


@pytest.mark.parametrize(
    "change",
    ["checkpoint.keep=7", "logging.progress_every=1", "evaluation.interval=2ba", "data.path=moved"],
)
def test_what_does_not_touch_the_weights_may_change(folder, change):
    folder.open(recipe(change), DATA)
    assert folder.recipe() == recipe(change)


def test_another_recipe_is_refused_by_its_differences(folder):
    with pytest.raises(
        RunFolderError,
        match=r"run: holds a run of another recipe \(optimizer\.lr: 0\.0001 -> 0\.01; "
        r"seed: 17 -> 3\); choose another folder",
    ):
        folder.open(recipe("optimizer.lr=0.01", "seed=3"), DATA)
    assert folder.recipe() == recipe(), "a refused run leaves the folder as it was"


def test_other_data_are_refused_by_their_fingerprint(folder):
    with pytest.raises(RunFolderError, match="on other data: somewhere has fingerprint eeeeeeee"):
        folder.open(recipe(), "e" * 64)


def test_a_run_is_not_resumed_unasked(folder):
    with pytest.raises(RunFolderError, match=r"checkpoint\.autoresume is false"):
        folder.open(recipe("checkpoint.autoresume=false"), DATA)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match=r"expected an empty folder or a run.*thesis\.tex"):
        RunFolder(tmp_path).open(recipe(), DATA)
    with pytest.raises(RunFolderError, match="found a file"):
        RunFolder(tmp_path / "thesis.tex").open(recipe(), DATA)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_while_opening_can_be_opened(folder):
    folder.run_file.unlink()
    folder.open(recipe(), DATA)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "flan-moe-run", "version": 9}'])
def test_a_damaged_run_file_is_named(folder, content):
    folder.run_file.write_text(content)
    with pytest.raises(RunFolderError, match=r"run\.json: "):
        folder.open(recipe(), DATA)


def test_the_newest_checkpoint_is_found_and_old_ones_pruned(folder):
    for batch in (5, 10, 100):
        save(folder, batch)
    folder.partial_checkpoint(105).write_bytes(b"half")
    assert folder.latest_checkpoint(warn=pytest.fail) == (
        100,
        folder.checkpoint_folder / "ba100.pt",
    )
    folder.prune_checkpoints(keep=2)
    assert sorted(p.name for p in folder.checkpoint_folder.iterdir()) == ["ba10.pt", "ba100.pt"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip_a_byte_of_a_tensor(path):
    with zipfile.ZipFile(path) as archive:
        record = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    data = bytearray(path.read_bytes())
    data[record.header_offset + 2000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (truncate, "not a whole archive"),
        (empty, "not a whole archive"),
        (flip_a_byte_of_a_tensor, "fails its checksum"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_aloud(folder, harm, problem):
    good, bad = save(folder, 5), save(folder, 10)
    assert damage(bad) is None
    harm(bad)
    warnings = []
    assert folder.latest_checkpoint(warn=warnings.append) == (5, good)
    assert len(warnings) == 1
    assert str(bad) in warnings[0]
    assert problem in warnings[0]
    harm(good)
    with pytest.raises(RunFolderError, match="every checkpoint is damaged"):
        folder.latest_checkpoint(warn=warnings.append)


def test_no_checkpoint_is_no_error(folder):
    assert folder.latest_checkpoint(warn=pytest.fail) is None


def test_finishing_is_recorded(folder):
    assert folder.finished() is None
    folder.finish({"batches": 10})
    assert folder.finished() == {"batches": 10}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\udcff")
    assert path.read_text() == "old"


def test_an_archive_of_something_else_is_damage(tmp_path):
    with zipfile.ZipFile(tmp_path / "ba1.pt", "w") as archive:
        archive.writestr("readme", "hello")
    assert damage(tmp_path / "ba1.pt") == "an archive that torch did not write"
