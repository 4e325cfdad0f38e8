"""Templated files sorted by task: nothing lost, the same from any number of workers, resumable."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import pytest

from flan_moe.data.build import BuildOptions, build_data_directory
from flan_moe.data.cli import main
from flan_moe.data.readers import RawDataError
from flan_moe.data.readers.layouts import FlanNaming
from flan_moe.data.sources.raw import RawOptions, raw_sources
from flan_moe.data.sources.templated import templated_sources
from flan_moe.data.spool.ingest import ingest
from flan_moe.data.spool.options import IngestOptions
from flan_moe.data.spool.part import PartWriter, read_blocks
from flan_moe.data.spool.progress import Progress
from flan_moe.data.spool.reader import spool_tasks
from flan_moe.data.storage.manifest import read_manifest
from flan_moe.data.storage.shards import read_mds
from flan_moe.data.tokenization.tokenizer import load_tokenizer

TASKS = (("rte", "muffin"), ("cot_gsm8k", "cot"), ("task1_a", "niv2"), ("quail_x", "t0_sf"))
ALONE = IngestOptions(workers=1)


@pytest.fixture
def quiet(tmp_path):
    with (tmp_path / "progress").open("w") as stream:
        yield partial(Progress, stream=stream)


@pytest.fixture
def folder(tmp_path, dump):
    """Six files in three containers, with the rows of four tasks interleaved in each."""
    count = iter(range(10_000))
    for number, suffix in enumerate(("parquet", "jsonl", "jsonl.gz") * 2):
        records = []
        for i in range(40):
            task, mixture = TASKS[i % 4]
            row = dump.rows(task, mixture, count=4)[i // 4 % 4]
            records.append(dump.submix({**row, "prompt": f"{row['prompt']} {next(count)}"}))
        dump.write_rows(tmp_path / "in" / f"part-{number}.{suffix}", records)
    return tmp_path / "in"


def contents(spool):
    return {
        path.relative_to(spool).as_posix(): path.read_bytes()
        for path in sorted(spool.rglob("*"))
        if path.is_file()
    }


def prompts(spool):
    return Counter(
        (task.mixture, task.task, *row) for task in spool_tasks(spool) for row in task.rows()
    )


def test_every_row_is_under_its_task(folder, tmp_path, quiet):
    result = ingest([folder], tmp_path / "spool", ALONE, progress=quiet)
    assert (result.files, result.read, result.kept, result.dropped) == (6, 240, 240, {})
    tasks = spool_tasks(tmp_path / "spool")
    assert [(task.mixture, task.task, task.count) for task in tasks] == [
        ("cot", "cot_gsm8k", 60),
        ("muffin", "rte", 60),
        ("niv2", "task1_a", 60),
        ("t0_sf", "quail_x", 60),
    ]
    for task in tasks:
        found = list(task.rows())
        assert all(task.task.removeprefix("glue_") in prompt for _, prompt, _ in found)
        # In the order of the files and of their rows.
        numbers = [int(prompt.split()[-1]) for _, prompt, _ in found]
        assert numbers == sorted(numbers)
        assert Counter(template.split("/")[0] for template, _, _ in found) == task.settings


def test_the_number_of_workers_changes_no_byte(folder, tmp_path, quiet):
    for workers in (1, 2):
        options = IngestOptions(workers=workers)
        ingest([folder], tmp_path / f"by{workers}", options, progress=quiet)
    assert contents(tmp_path / "by1") == contents(tmp_path / "by2")


def test_small_buffers_only_cut_the_blocks(tmp_path):
    from flan_moe.data.readers.templated import TemplatedRow

    rows = [
        TemplatedRow("cot", f"t{i % 3}", "zs_opt/templated", f"question {i}", "a")
        for i in range(99)
    ]
    writer = PartWriter(tmp_path, "source", buffer_bytes=500)
    for row in rows:
        writer.add(row)
    record = writer.commit({"bytes": 1, "version": None}, None)
    file = tmp_path / f"{record.key}.rows"
    for task in record.tasks:
        assert len(task.blocks) > 2
        assert [prompt for _, prompt, _ in read_blocks(file, task.blocks)] == [
            row.prompt for row in rows if row.task == task.task
        ]


def test_more_locations_are_added_and_finished_files_not_read_again(folder, tmp_path, quiet):
    spool = tmp_path / "spool"
    first, *others = sorted(folder.iterdir())
    ingest([first], spool, ALONE, progress=quiet)
    part = next((spool / "parts").glob("*.rows"))
    written = part.stat().st_mtime_ns
    result = ingest([first, *others], spool, ALONE, progress=quiet)
    assert result.read == 240
    assert part.stat().st_mtime_ns == written
    ingest([folder], tmp_path / "at-once", ALONE, progress=quiet)
    assert prompts(spool) == prompts(tmp_path / "at-once")
    with pytest.raises(ValueError, match="which is not among the files given"):
        ingest(others, spool, ALONE, progress=quiet)


def test_a_file_that_changed_is_read_again(folder, tmp_path, quiet, dump):
    spool = tmp_path / "spool"
    ingest([folder], spool, ALONE, progress=quiet)
    dump.write_rows(folder / "part-1.jsonl", [dump.submix(dump.rows("new")[0])])
    result = ingest([folder], spool, ALONE, progress=quiet)
    assert result.read == 201
    assert result.tasks["muffin", "new"] == 1


KILLED = """
import os, signal, sys
from flan_moe.data.spool import ingest, part
from flan_moe.data.spool.options import IngestOptions
commit, done = part.PartWriter.commit, []
def killed(self, *arguments):
    if len(done) == 2:
        self._flush()
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(commit(self, *arguments))
    return done[-1]
part.PartWriter.commit = killed
ingest.ingest([sys.argv[1]], sys.argv[2], IngestOptions(workers=1))
"""


def test_a_killed_run_goes_on_and_ends_the_same(folder, tmp_path, quiet):
    spool = tmp_path / "spool"
    run = subprocess.run([sys.executable, "-c", KILLED, folder, spool], capture_output=True)
    assert run.returncode == -signal.SIGKILL
    assert len(list((spool / "parts").glob("*.json"))) == 2
    assert len(list((spool / "parts").glob(".*.tmp"))) == 1
    with pytest.raises(RawDataError, match="spool: unfinished; run ingest again"):
        spool_tasks(spool)
    seen = []

    def progress(files, done):
        seen.append((files, done))
        return quiet(files, done)

    ingest([folder], spool, ALONE, progress=progress)
    ingest([folder], tmp_path / "at-once", ALONE, progress=quiet)
    assert seen == [(6, 2)]
    assert contents(spool) == contents(tmp_path / "at-once")


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
from flan_moe.data.cli import main
sys.exit(main(["ingest", "--from", sys.argv[1], "--out", sys.argv[2], "--workers", sys.argv[3]]))
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(folder, tmp_path, quiet, workers):
    """The system's own limit on the size of files, which fails as a full disk does."""
    spool = tmp_path / "spool"
    run = subprocess.run(
        [sys.executable, "-c", FULL, folder, spool, workers], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert f"{spool}/parts: cannot be written: File too large" in run.stderr
    assert "Traceback" not in run.stderr
    assert not [name for name in os.listdir(spool / "parts") if name.startswith(".")]
    assert not list(spool.glob("parts/*.json"))
    assert ingest([folder], spool, ALONE, progress=quiet).kept == 240


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="tells ended processes by /proc")
def test_workers_end_with_a_killed_parent(tmp_path, dump):
    for number in range(4):
        records = [dump.submix(row) for row in dump.rows("task", count=60_000)]
        dump.write_rows(tmp_path / "in" / f"{number}.jsonl", records)
    program = (
        "import sys; from flan_moe.data.cli import main\n"
        "if __name__ == '__main__': main(sys.argv[1:])"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    arguments = ["ingest", "--from", tmp_path / "in", "--out", tmp_path / "spool", "--workers", "2"]
    parent = subprocess.Popen(
        [sys.executable, script, *map(str, arguments)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "spool").glob("parts/.*.tmp")):
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.01)
    workers = {int(file.name.split(".")[2]) for file in (tmp_path / "spool").glob("parts/.*.tmp")}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert parent.pid not in workers
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupted_run_ends_soon_and_cleans_up(tmp_path, dump):
    records = [dump.submix(row) for row in dump.rows("task", count=60_000)]
    for number in range(4):
        dump.write_rows(tmp_path / "in" / f"{number}.jsonl", records)
    arguments = ["ingest", "--from", tmp_path / "in", "--out", tmp_path / "spool", "--workers", "2"]
    run = subprocess.Popen(
        [sys.executable, "-m", "flan_moe.data.cli", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "spool").glob("parts/.*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    assert not list((tmp_path / "spool").glob("parts/.*.tmp"))


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


DYING = """
import os, signal, sys
from flan_moe.data.spool.ingest import ingest
from flan_moe.data.spool.options import IngestOptions
def naming(labels):
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    try:
        ingest([sys.argv[1]], sys.argv[2], IngestOptions(workers=2, naming=naming))
    except ValueError as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def test_a_worker_that_dies_ends_the_run(folder, tmp_path):
    """As where the system ends a process for lack of memory."""
    (tmp_path / "run.py").write_text(DYING)
    run = subprocess.run(
        [sys.executable, tmp_path / "run.py", folder, tmp_path / "s"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stderr.splitlines()[-1].startswith("RawDataError: a worker process died")
    assert not list((tmp_path / "s").glob("parts/.*.tmp"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_file_ends_the_run_and_leaves_the_others(folder, tmp_path, quiet, workers):
    spool = tmp_path / "spool"
    file = folder / "part-1.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(RawDataError, match=r"part-1\.jsonl:40: .*truncated"):
        ingest([folder], spool, IngestOptions(workers=workers), progress=quiet)
    assert not (spool / "spool.json").exists()
    assert not list((spool / "parts").glob(".*.tmp"))
    file.write_bytes(whole)
    assert ingest([folder], spool, ALONE, progress=quiet).read == 240


def test_what_is_left_out_is_counted_over_all_files(tmp_path, quiet, dump):
    records = [dump.submix(row) for row in dump.rows("task")]
    for number in range(2):
        bad = [{**records[0], "inputs": ""}, {**records[0], "task_source": "nowhere"}]
        dump.write_rows(tmp_path / "in" / f"{number}.jsonl", [*records, *bad])
    dump.write_rows(tmp_path / "in" / "test" / "0.jsonl", records)
    result = ingest([tmp_path / "in"], tmp_path / "spool", ALONE, progress=quiet)
    assert result.dropped == {
        "empty input": 2,
        "split 'test'": 12,
        "unknown task source 'nowhere'": 2,
    }
    assert (result.read, result.kept) == (40, 24)


def test_nothing_usable_is_an_error_with_the_reasons(tmp_path, quiet, dump):
    dump.write_rows(tmp_path / "in" / "0.jsonl", [dump.by_file(row) for row in dump.rows("task")])
    with pytest.raises(
        RawDataError, match=r"no usable row among 12 \(unknown task source '': 12\)"
    ):
        ingest([tmp_path / "in"], tmp_path / "spool", ALONE, progress=quiet)
    naming = FlanNaming(mixture="muffin", setting="zs_noopt")
    with pytest.raises(ValueError, match="was begun with naming"):
        ingest([tmp_path / "in"], tmp_path / "spool", IngestOptions(naming=naming), progress=quiet)
    result = ingest([tmp_path / "in"], tmp_path / "other", IngestOptions(naming=naming, workers=1))
    assert result.tasks == {("muffin", "task"): 12}


def test_other_directories_are_left_alone(folder, tmp_path, quiet):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty and no spool"):
        ingest([folder], tmp_path / "mine", ALONE, progress=quiet)
    for path in ("letter.txt",):
        with pytest.raises(FileExistsError, match="is not a directory"):
            ingest([folder], tmp_path / "mine" / path, ALONE, progress=quiet)


@pytest.mark.parametrize("damage", ["truncated", "missing", "overwritten", "record", "index"])
def test_a_damaged_spool_is_refused(folder, tmp_path, quiet, damage):
    spool = tmp_path / "spool"
    ingest([folder], spool, ALONE, progress=quiet)
    rows = sorted((spool / "parts").glob("*.rows"))[2]
    if damage == "truncated":
        rows.write_bytes(rows.read_bytes()[:-1])
        message = f"{rows.name}: .* bytes; expected"
    elif damage == "missing":
        rows.unlink()
        message = f"{rows.name}: missing; expected"
    elif damage == "overwritten":
        rows.write_bytes(b"\0" * rows.stat().st_size)
        message = f"{rows.name}: damaged at byte 0"
    elif damage == "record":
        rows.with_suffix(".json").write_text('{"source": 3}')
        message = f"{rows.stem}.json: not the record of a spool's part: source is 3"
    else:
        (spool / "spool.json").write_text('{"version": 1, "parts": [{"key": "../x"}]}')
        message = r"spool\.json: not the index of a spool"
    with pytest.raises(RawDataError, match=message):
        prompts(spool)


def test_a_spool_builds_into_a_data_directory(folder, tmp_path, quiet):
    spool = tmp_path / "spool"
    ingest([folder], spool, ALONE, progress=quiet)
    options = RawOptions(validation=5, evaluation=10, examples=30)
    sources = raw_sources(options, templated=spool, held_out=["quail_x"])
    out = tmp_path / "out"
    settings = BuildOptions(name="x", source="test", vocab_size=400)
    build_data_directory(out, sources, settings, report=lambda line: None)
    entries = {task["name"]: task for task in read_manifest(out).tasks}
    assert {name: (e["train"], e["validation"], e["eval"]) for name, e in entries.items()} == {
        "cot_gsm8k": (30, 5, 0),
        "rte": (30, 5, 0),
        "task1_a": (30, 5, 0),
        "quail_x": (0, 0, 10),
    }
    tokenizer = load_tokenizer(out / "tokenizer")
    known = {(task, prompt) for _, task, _, prompt, _ in prompts(spool)}
    trained, checked = (
        {
            tokenizer.decode(sample["input_ids"].tolist(), skip_special_tokens=True)
            for sample in read_mds(out / split / "muffin")
        }
        for split in ("train", "validation")
    )
    assert {("rte", prompt) for prompt in trained | checked} <= known
    assert not trained & checked
    with pytest.raises(ValueError, match="held_out: no task 'nothing'"):
        raw_sources(options, templated=spool, held_out=["nothing"])


def test_repeated_rows_count_once_and_prompts_stay_together(tmp_path, quiet, dump):
    records = [
        dump.submix({**row, "prompt": f"p {i // 2}", "target": str(i % 2)})
        for i, row in enumerate(dump.rows("task", count=80))
    ]
    dump.write_rows(tmp_path / "0.jsonl", [*records, *records[:7]])
    ingest([tmp_path / "0.jsonl"], tmp_path / "spool", ALONE, progress=quiet)
    (source,) = templated_sources(tmp_path / "spool", RawOptions(validation=6, examples=None))
    content = source.open(lambda text: True)
    train, validation = list(content.train), list(content.validation)
    assert (len(train), len(validation), content.dropped) == (68, 12, {"repeated record": 7})
    assert not {e.prompt for e in train} & {e.prompt for e in validation}
    assert list(content.train) == train, "read again, the same"


def test_a_name_in_two_mixtures_is_told_apart(tmp_path, quiet, dump):
    records = [dump.submix(row) for m in ("muffin", "cot") for row in dump.rows("task", m)]
    dump.write_rows(tmp_path / "0.jsonl", records)
    ingest([tmp_path / "0.jsonl"], tmp_path / "spool", ALONE, progress=quiet)
    names = [source.name for source in templated_sources(tmp_path / "spool", RawOptions())]
    assert names == ["cot.task", "muffin.task"]


def test_the_command(folder, tmp_path, capsys):
    spool = str(tmp_path / "spool")
    assert main(["ingest", "--from", str(folder), "--out", spool, "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert "muffin: 1 tasks, 60 rows" in out
    assert "read 240 rows of 6 files, kept 240" in out
    assert "6 of 6 files" in err
    assert main(["ingest", "--from", str(tmp_path / "no"), "--out", spool]) == 1
    assert "expected a .parquet, .jsonl or .jsonl.gz file" in capsys.readouterr().err
    out = str(tmp_path / "built")
    assert main(["build", "--templated", spool, "--vocab-size", "400", "--out", out]) == 0
