"""A build that was stopped goes on, and ends in the bytes of one that was not."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
from dataclasses import replace

import pytest

from flan_moe.data.build import BuildOptions, build_data_directory
from flan_moe.data.mini_flan.sources import mini_flan_sources
from flan_moe.data.sources.raw import RawOptions, raw_sources
from flan_moe.data.storage import staging
from flan_moe.data.storage.provenance import read_provenance

FORK = multiprocessing.get_context("fork")
OPTIONS = BuildOptions(name="raw", source="test", vocab_size=300)


def silent(line):
    pass


def tree(directory):
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def in_child(function):
    """Run a function in a process of its own; its exit code and what it returned."""
    ours, theirs = FORK.Pipe()

    def child():
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        theirs.send(function())

    process = FORK.Process(target=child)
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        result = None
    process.join()
    return process.exitcode, result


def build_until(rebuild_options, path, text):
    """Start the mini build in another process, which kills itself at a line of its report."""
    lines = []

    def report(line):
        lines.append(line)
        if text in line:
            os.kill(os.getpid(), signal.SIGKILL)

    def build():
        sources = mini_flan_sources(examples=40, validation=8, evaluation=12, seed=0)
        build_data_directory(path, sources, rebuild_options, report=report)

    code, _ = in_child(build)
    assert code == -signal.SIGKILL, text


MINI = BuildOptions(
    name="mini-flan", source="test", vocab_size=1200, shard_bytes=10_000, webdataset=True
)
MOMENTS = (
    "[5/24] ",  # texts for the tokenizer
    "[7/24] ",
    "] weekday: 40 train",
    "train/muffin:",  # shards
    "validation/niv2:",
    "eval: 24 tasks",  # all but the name
)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_build_killed_again_and_again_ends_in_the_same_bytes(mini, rebuild, tmp_path, workers):
    out = tmp_path / "out"
    options = replace(MINI, workers=workers)
    done = []
    for moment in MOMENTS:
        build_until(options, out, moment)
        assert [entry.name for entry in tmp_path.iterdir()] == [".out.building"]
        pieces = tmp_path / ".out.building" / "pieces"
        done.append(len([*pieces.glob("[0-9]*[0-9]/piece.json")]))
    assert done[0] == 0 < done[2] <= done[3] == done[-1] == 24, "every attempt goes further"
    rebuild(out, workers=2 - workers)
    assert tree(out) == tree(mini)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_leaves_no_trace(mini, rebuild, tmp_path, workers):
    assert tree(rebuild(tmp_path / "out", workers=workers)) == tree(mini)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_one_error_and_the_work_is_kept(mini, rebuild, tmp_path, workers):
    """A limit on the size of files stands in for a disk: the same writes fail."""
    out = tmp_path / "out"
    build_until(replace(MINI, workers=workers), out, "[6/24] ")  # texts, 5 kB to 20 kB each
    messages = []
    for size in (2_000, 12_000, 20_000):

        def build(size=size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            try:
                rebuild(out, workers=workers)
            except OSError as error:
                return f"{type(error).__name__}: {error}"

        _, message = in_child(build)
        messages.append(message)
        assert not out.exists()
    for message in messages:
        assert message.startswith(f"DiskFullError: {tmp_path}/.out.building/"), message
        assert ": File too large (" in message
        assert message.endswith("Make room; the same command goes on from here")
    assert tree(rebuild(out)) == tree(mini)


def raw_file(path, name="echo", count=40):
    rows = [json.dumps({"prompt": f"Say {i} again.", "target": str(i)}) for i in range(count)]
    path.mkdir(exist_ok=True)
    (path / f"{name}.jsonl").write_text("".join(row + "\n" for row in rows))


def raw_build(tmp_path, *, options=OPTIONS, report=silent, **raw):
    sources = raw_sources(RawOptions(**raw), jsonl=tmp_path / "raw")
    return build_data_directory(tmp_path / "out", sources, options, report=report)


class Stopped(BaseException):
    pass


def stop_at(text):
    def report(line):
        if text in line:
            raise Stopped

    return report


@pytest.fixture
def stopped(tmp_path):
    """A folder with raw files and a build of them that was stopped half-way."""
    for name in ("echo", "same"):
        raw_file(tmp_path / "raw", name)
    with pytest.raises(Stopped):
        raw_build(tmp_path, report=stop_at("[1/2] echo: "))
    return tmp_path


def test_what_is_finished_is_not_made_again(stopped):
    lines = []
    raw_build(stopped, report=lines.append)
    assert lines[0].startswith("going on with the build that was stopped in")
    assert not any("echo: " in line for line in lines)
    assert any(line.startswith("  [2/2] same: ") for line in lines)


def test_raw_files_may_have_moved(stopped):
    shutil.copytree(stopped / "raw", stopped / "elsewhere")
    shutil.rmtree(stopped / "raw")
    lines = []
    sources = raw_sources(RawOptions(), jsonl=stopped / "elsewhere")
    build_data_directory(stopped / "out", sources, OPTIONS, report=lines.append)
    assert "going on" in lines[0]


def test_another_plan_is_refused_by_what_differs(stopped, mini):
    before = tree(stopped / ".out.building")
    for change, message in (
        ({"options": replace(OPTIONS, vocab_size=301)}, "options.vocab_size was 300, is now 301"),
        ({"evaluation": 3}, r"tasks\.echo\.content\.arguments\[\d\]\.evaluation was 50, is now 3"),
        (
            {"options": replace(OPTIONS, tokenizer=str(mini / "tokenizer"))},
            "options.vocab_size was 300, now there is none",
        ),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            raw_build(stopped, **change)
        assert "discard it with --restart" in str(caught.value)
        assert tree(stopped / ".out.building").keys() == before.keys()
    raw_file(stopped / "raw", "same", 41)
    with pytest.raises(ValueError, match=r"tasks\.same\.inputs\[0\]\.bytes was \d+, is now"):
        raw_build(stopped)
    raw_file(stopped / "raw", "same")
    raw_file(stopped / "raw", "third")
    with pytest.raises(ValueError, match=r"tasks\.third is new"):
        raw_build(stopped)
    manifest = raw_build(stopped, options=replace(OPTIONS, restart=True))
    assert len(manifest.tasks) == 3


def test_sources_that_cannot_be_told_apart_are_never_mixed(stopped):
    """What a source holds is looked into; if that cannot be done, nothing is taken up again."""

    def sources(thing):
        (source, _) = raw_sources(RawOptions(), jsonl=stopped / "raw")
        return [replace(source, open=lambda fits: (thing, source.open(fits))[1])]

    out = stopped / "other"
    for thing in ("a", "b"):
        with pytest.raises(ValueError if thing == "b" else Stopped) as caught:
            build_data_directory(out, sources(thing), OPTIONS, report=stop_at("[1/1] echo: "))
    assert 'closure.thing was "a", is now "b"' in str(caught.value)
    build_data_directory(out, sources(FORK.Lock()), replace(OPTIONS, restart=True), report=silent)


def test_bad_data_leaves_nothing(stopped):
    shutil.rmtree(stopped / ".out.building")
    (stopped / "raw" / "same.jsonl").write_text('{"prompt": "x"')
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"same\.jsonl:1: .*truncated"):
            raw_build(stopped, options=replace(OPTIONS, workers=workers))
        assert sorted(entry.name for entry in stopped.iterdir()) == ["raw"]


def test_a_raw_file_that_changes_meanwhile_is_refused(tmp_path):
    raw_file(tmp_path / "raw")

    def change(line):
        if "tokenizer" in line:
            raw_file(tmp_path / "raw", count=50)

    with pytest.raises(ValueError, match=r"echo\.jsonl: changed while the build ran"):
        raw_build(tmp_path, report=change)


def test_a_damaged_piece_is_named_and_made_again(stopped):
    with pytest.raises(Stopped):
        raw_build(stopped, report=stop_at("[2/2] same: "))
    file = stopped / ".out.building" / "pieces" / "000000" / "train"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="pieces/000000/train: damaged after it was written"):
        raw_build(stopped)
    raw_build(stopped)
    build_data_directory(
        stopped / "fresh",
        raw_sources(RawOptions(), jsonl=stopped / "raw"),
        OPTIONS,
        report=silent,
    )
    assert tree(stopped / "out") == tree(stopped / "fresh")


def test_a_mistake_in_the_command_costs_no_work(stopped):
    before = tree(stopped / ".out.building")
    with pytest.raises(ValueError, match=r"tokenizer '\./nowhere': no tokenizer"):
        raw_build(stopped, options=replace(OPTIONS, tokenizer="./nowhere", restart=True))
    (source, _) = raw_sources(RawOptions(), jsonl=stopped / "raw")
    missing = replace(source, inputs=(stopped / "gone",))
    with pytest.raises(ValueError, match="gone: No such file or directory; task 'echo' reads it"):
        build_data_directory(stopped / "out", [missing], OPTIONS, report=silent)
    assert tree(stopped / ".out.building").keys() == before.keys()


def test_a_wrong_tokenizer_leaves_nothing(tmp_path):
    raw_file(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"tokenizer '\./nowhere': no tokenizer"):
        raw_build(tmp_path, options=replace(OPTIONS, tokenizer="./nowhere"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]


def test_a_kill_after_the_end_costs_no_more_than_the_work(mini, rebuild, tmp_path):
    """The result has its name, or is lost, but the workplace is still there."""
    build_until(MINI, tmp_path / "out", "eval: 24 tasks")
    shutil.rmtree(tmp_path / ".out.building" / "result")
    assert tree(rebuild(tmp_path / "out")) == tree(mini)


def test_two_builds_of_one_directory_do_not_meet(stopped, monkeypatch):
    monkeypatch.setattr(staging, "_PATIENCE_S", 0.1)
    with (stopped / ".out.building" / ".building").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"another process \(\d+\) is building there"):
            raw_build(stopped)
    raw_build(stopped)


def test_a_replaced_directory_stays_until_the_new_one_is_complete(stopped):
    raw_build(stopped)
    old = tree(stopped / "out")
    options = replace(OPTIONS, overwrite=True, vocab_size=310)
    with pytest.raises(Stopped):
        raw_build(stopped, options=options, report=stop_at("eval:"))
    assert tree(stopped / "out") == old
    raw_build(stopped, options=options)
    assert tree(stopped / "out") != old
    assert not (stopped / ".out.building").exists()


def test_the_provenance_names_inputs_by_hash_and_no_place(stopped):
    (source, other) = raw_sources(RawOptions(), jsonl=stopped / "raw")
    licensed = replace(source, provenance={"licence": "CC0-1.0"})
    build_data_directory(
        stopped / "out", [licensed, other], replace(OPTIONS, restart=True), report=silent
    )
    found = read_provenance(stopped / "out")
    data = (stopped / "raw" / "echo.jsonl").read_bytes()
    (record,) = found.tasks[0]["inputs"]
    assert (record["name"], record["bytes"]) == ("echo.jsonl", len(data))
    assert record["sha256"] == hashlib.sha256(data).hexdigest()
    assert found.tasks[0]["provenance"] == {"licence": "CC0-1.0"}
    assert found.options["vocab_size"] == 300
    assert str(stopped) not in (stopped / "out" / "provenance.json").read_text()
