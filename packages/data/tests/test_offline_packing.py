"""Offline packing: the examples of the epochs that training would draw, each once, in full rows."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import textwrap
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.data.mixing.load import load_mixture
from flan_moe.data.offline.draw import MixtureDraw
from flan_moe.data.offline.loader import packed_dataloader
from flan_moe.data.offline.manifest import open_packed_directory, read_packed_manifest
from flan_moe.data.offline.pack import PackOptions, pack_directory
from flan_moe.data.offline.rows import read_rows, read_segments
from flan_moe.data.packing import assign_rows, pack_windows
from flan_moe.data.storage.shards import ShardError, read_mds
from flan_moe.data.storage.stored import StoredSamples
from flan_moe.data.streaming.loader import dataloader
from flan_moe.data.streaming.mixture import build_mixture_dataset

BUDGET = (512, 64)
SPEC = load_mixture("flan_palm_a")


def pack_mini(mini, out, **options):
    chosen = {"max_input_tokens": BUDGET[0], "max_target_tokens": BUDGET[1], **options}
    return pack_directory(mini, out, PackOptions(**chosen), report=lambda line: None)


@pytest.fixture(scope="module")
def packed(mini, tmp_path_factory):
    """Two epochs of 300 examples of a specified mixture. Not to be changed."""
    out = tmp_path_factory.mktemp("packed") / "packed"
    pack_mini(mini, out, mixture=SPEC, samples=300, epochs=2, seed=5)
    return out


def examples_of(batch):
    """Every example of a batch: tokens of its input, of its target."""
    found = []
    for row in range(len(batch["input_ids"])):
        encoder, decoder = batch["encoder_segments"][row], batch["decoder_segments"][row]
        for segment in range(1, int(encoder.max()) + 1):
            source = batch["input_ids"][row][encoder == segment].tolist()
            target = batch["labels"][row][decoder == segment].tolist()
            found.append((tuple(source), tuple(target)))
    return found


def segments_of(row):
    """The same of a stored row, and its tasks."""
    cuts = [np.cumsum(row[key])[:-1] for key in ("input_lengths", "label_lengths")]
    sides = (np.split(row["input_ids"], cuts[0]), np.split(row["labels"], cuts[1]))
    return [
        (tuple(source.tolist()), tuple(target.tolist()), task)
        for source, target, task in zip(*sides, row["tasks"].tolist(), strict=True)
    ]


def files_of(directory):
    return {
        file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 24), st.integers(1, 10)), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_every_example_is_in_one_row_that_it_fits_into(sizes, window):
    lengths = np.array(sizes)
    rows = list(pack_windows(lengths, (24, 10), window=window))
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(sizes)))
    for row in rows:
        assert (lengths[row].sum(0) <= (24, 10)).all()


def test_windows_fill_rows_better_than_batches():
    rng = np.random.default_rng(0)
    # Lengths of Flan examples: long inputs, most targets short, some long.
    inputs = np.clip(rng.lognormal(5.2, 0.7, 4096), 8, 2048)
    targets = np.clip(rng.lognormal(1.9, 1.1, 4096), 2, 208)
    lengths = np.stack([inputs, targets], axis=1).astype(np.int64)
    budget = (2048, 208)
    batches = sum(
        len(assign_rows(lengths[begin : begin + 256], budget)) for begin in range(0, 4096, 256)
    )
    rows = len(list(pack_windows(lengths, budget, window=1024)))
    least = (lengths.sum(0) / budget).max()
    assert rows < batches
    assert least / rows > 0.98


def test_the_examples_are_those_that_training_draws(mini, packed):
    """No example is lost or doubled, and each has the tokens and the task it is stored with."""
    options = {"mixture": SPEC, "epoch_size": 300, "seed": 5}
    dataset = build_mixture_dataset(mini, batch_size=10, **options)
    expected = Counter()
    for _ in range(2):
        for sample in dataset:
            source, target = sample["input_ids"][-BUDGET[0] :], sample["labels"][: BUDGET[1]]
            expected[tuple(source.tolist()), tuple(target.tolist()), sample["task"]] += 1
    found = Counter(part for row in read_rows(packed / "rows") for part in segments_of(row))
    assert found == expected
    assert found.total() == 600


def test_batches_hold_what_the_unpacked_epoch_holds(mini, tmp_path):
    pack_mini(mini, tmp_path / "packed", max_target_tokens=128)
    loader = dataloader(mini, batch_size=20, pack=False)
    alone = list(loader)
    expected = Counter(example for batch in alone for example in examples_of(batch))
    rows = packed_dataloader(tmp_path / "packed", batch_size=3)
    batches = list(rows)
    assert Counter(example for batch in batches for example in examples_of(batch)) == expected
    tasks = Counter(task for batch in alone for task in batch["task_ids"].tolist())
    assert Counter(task for batch in batches for task in batch["task_ids"].tolist()) == tasks
    shapes = {(*batch["input_ids"].shape[1:], *batch["labels"].shape[1:]) for batch in batches}
    assert shapes == {(512, 128)}, "static"
    assert rows.seen.counts() == loader.seen.counts()


def test_a_batch_has_the_layout_of_the_packer(mini, packed):
    ours = next(iter(packed_dataloader(packed, batch_size=2)))
    theirs = next(iter(dataloader(mini, batch_size=16)))
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
    assert ((ours["labels"] == -100) == (ours["decoder_segments"] == 0)).all()
    assert ((ours["attention_mask"] == 1) == (ours["encoder_segments"] > 0)).all()
    assert len(ours["task_ids"]) == ours["encoder_segments"].max(1).values.sum()


def test_lengths_are_read_without_decoding(mini):
    for mixture in sorted((mini / "train").iterdir()):
        stored = StoredSamples(mixture)
        samples = list(read_mds(mixture))
        expected = [(len(s["input_ids"]), len(s["labels"])) for s in samples]
        assert stored.lengths().tolist() == [list(pair) for pair in expected]
        for number in (0, len(samples) // 2, len(samples) - 1):
            assert stored[number]["input_ids"].tolist() == samples[number]["input_ids"].tolist()
        with pytest.raises(IndexError):
            stored[len(samples)]


@pytest.mark.parametrize(("place", "value"), [(0, 1), (4, 2**31), (8, 5)])
def test_damaged_heads_of_shards_are_named(mini_copy, place, value):
    """The sizes that lengths are computed from are not believed blindly."""
    shard = mini_copy / "train" / "cot" / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[place : place + 4] = value.to_bytes(4, "little")
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard.00000.mds: damaged shard: "):
        StoredSamples(mini_copy / "train" / "cot").lengths()


def test_a_pack_that_fails_leaves_nothing(mini, tmp_path, monkeypatch):
    def fail(self, number):
        if number > 100:
            raise OSError(28, "No space left on device")
        return load(self, number)

    load = MixtureDraw.__getitem__
    monkeypatch.setattr(MixtureDraw, "__getitem__", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*packed'"):
        pack_mini(mini, tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_a_draw_is_the_choice_of_the_dataset(mini):
    draw = MixtureDraw.open(mini, mixture=SPEC, epoch_size=200)
    dataset = build_mixture_dataset(mini, batch_size=10, mixture=SPEC, epoch_size=200, seed=7)
    for epoch in range(3):
        ids = dataset.resample_streams(epoch)[1]
        assert sorted(draw.epoch(epoch, 7).tolist()) == sorted(ids.tolist())


def test_equal_arguments_give_equal_bytes(mini, packed, tmp_path):
    pack_mini(mini, tmp_path / "again", mixture=SPEC, samples=300, epochs=2, seed=5)
    assert files_of(tmp_path / "again") == files_of(packed)
    pack_mini(mini, tmp_path / "other", mixture=SPEC, samples=300, epochs=2, seed=6)
    assert files_of(tmp_path / "other") != files_of(packed)


def test_the_manifest_tells_what_there_is(mini, packed):
    manifest, segments = open_packed_directory(packed)
    rows = list(read_rows(packed / "rows"))
    assert manifest.rows == len(rows)
    assert segments.tolist() == [len(row["tasks"]) for row in rows]
    tokens = [sum(len(row[key]) for row in rows) for key in ("input_ids", "labels")]
    fill = tokens[0] / (len(rows) * BUDGET[0]), tokens[1] / (len(rows) * BUDGET[1])
    assert manifest.fill == pytest.approx(fill)
    assert max(fill) > 0.9
    owners = Counter(task for row in rows for task in row["tasks"].tolist())
    assert {task["id"]: task["packed"] for task in manifest.tasks} == dict(owners)


def test_overlong_examples_are_truncated_dropped_or_refused_and_counted(mini, tmp_path):
    lengths = MixtureDraw.open(mini).lengths
    budget = (60, 12)
    sizes = {"max_input_tokens": budget[0], "max_target_tokens": budget[1]}
    cut = pack_mini(mini, tmp_path / "cut", **sizes)
    assert cut.total("truncated_inputs") == (lengths[:, 0] > 60).sum() > 0
    assert cut.total("truncated_targets") == (lengths[:, 1] > 12).sum() > 0
    assert cut.total("packed") == len(lengths)
    assert cut.total("input_tokens") == np.minimum(lengths[:, 0], 60).sum()
    dropped = pack_mini(mini, tmp_path / "dropped", overlong="drop", **sizes)
    assert dropped.total("dropped") == (lengths > budget).any(1).sum()
    assert dropped.total("dropped") + dropped.total("packed") == len(lengths)
    assert dropped.total("truncated_inputs") == dropped.total("truncated_targets") == 0
    with pytest.raises(ValueError, match=r"are longer than a row of 60 input and 12 target tokens"):
        pack_mini(mini, tmp_path / "refused", overlong="error", **sizes)
    with pytest.raises(ValueError, match="no example is left of 720"):
        pack_mini(mini, tmp_path / "refused", overlong="drop", max_target_tokens=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "dropped"]


def test_the_decoder_budget_may_be_chosen_from_what_is_drawn(mini, tmp_path):
    manifest = pack_mini(mini, tmp_path / "auto", max_target_tokens="auto")
    assert manifest.max_target_tokens % 8 == 0
    assert manifest.fill[1] > 0.75


def test_a_resumed_run_equals_an_uninterrupted_one(packed):
    def contents(batches):
        return [{key: value.tolist() for key, value in batch.items()} for batch in batches]

    options = {"batch_size": 4, "seed": 3}
    whole = packed_dataloader(packed, **options)
    expected = [contents(whole) for _ in range(3)]
    assert expected[0] != expected[1]
    assert contents(packed_dataloader(packed, **options, num_workers=2)) == expected[0]
    for stop, epoch, workers in ((0, 0, 0), (1, 0, 2), (5, 1, 0), (len(expected[1]), 1, 2)):
        before = packed_dataloader(packed, **options)
        for _ in range(epoch):
            list(before)
        iterator = iter(before)
        examples = sum(len(next(iterator)["task_ids"]) for _ in range(stop))
        state = json.loads(json.dumps(before.state_dict()))
        if stop:
            # Composer asks for the state at a number of raw examples since the epoch began.
            assert before.dataset.state_dict(examples, True) == state
            assert before.dataset.state_dict(examples, False) == state
        after = packed_dataloader(packed, **options, num_workers=workers)
        after.load_state_dict(state)
        assert contents(after) == expected[epoch][stop:], (stop, epoch)
        assert contents(after) == expected[epoch + 1], "and then the next epoch"


def test_a_resumed_run_can_be_resumed_again(packed):
    options = {"batch_size": 4, "seed": 3}
    expected = [batch["task_ids"].tolist() for batch in packed_dataloader(packed, **options)]
    state, examples, found = None, 0, []
    for steps in (2, 3, 1):
        loader = packed_dataloader(packed, **options)
        if state is not None:
            loader.load_state_dict(state)
        iterator = iter(loader)
        mine = [next(iterator)["task_ids"].tolist() for _ in range(steps)]
        found += mine
        here = sum(map(len, mine))
        examples += here
        state = loader.dataset.state_dict(examples, True)
        assert state == loader.dataset.state_dict(here, False) == loader.state_dict()
    assert found == expected[:6]


RANK = """
    import json, sys
    from flan_moe.data.offline.loader import packed_dataloader
    loader = packed_dataloader(sys.argv[1], batch_size=3, seed=4, epoch_size=60)
    iterator = iter(loader)
    steps = [next(iterator) for _ in range(5)]
    state = loader.state_dict()
    steps += list(iterator)
    rows = [sorted(map(sorted, batch["labels"].tolist())) for batch in steps]
    examples = [len(batch["task_ids"]) for batch in steps]
    print(json.dumps({"rows": rows, "examples": examples, "state": state}))
"""


def test_two_ranks_divide_every_batch_of_one_rank_which_goes_on_where_they_stopped(packed):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RANK), str(packed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **shared,
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
        )
        for rank in range(2)
    ]
    results = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    first, second = results
    together = [sorted(one + two) for one, two in zip(first["rows"], second["rows"], strict=True)]
    alone = packed_dataloader(packed, batch_size=6, seed=4, epoch_size=60)
    expected = [sorted(map(sorted, batch["labels"].tolist())) for batch in alone]
    assert together == expected

    # Composer sums the examples of all ranks, which differ from rank to rank.
    examples = [sum(counts) for counts in zip(first["examples"], second["examples"], strict=True)]
    assert first["examples"] != second["examples"]
    assert first["state"]["sample_in_epoch"] == 5 * 6
    resumed = packed_dataloader(packed, batch_size=6, seed=4, epoch_size=60)
    resumed.load_state_dict(first["state"])
    rest = [sorted(map(sorted, batch["labels"].tolist())) for batch in resumed]
    assert rest == expected[5:]
    assert resumed.dataset.state_dict(sum(examples[:5]), True) == first["state"]


def test_a_count_of_rows_is_refused_as_a_position(packed):
    loader = packed_dataloader(packed, batch_size=4)
    batch = next(iter(loader))
    loader.dataset.state_dict(len(batch["task_ids"]), True)
    with pytest.raises(
        ValueError, match="4 examples of epoch 0 are not a whole number of its rows"
    ):
        loader.dataset.state_dict(4, True)


def test_a_state_of_other_rows_is_refused(mini, packed, tmp_path):
    pack_mini(mini, tmp_path / "other", samples=300, seed=5)
    state = packed_dataloader(packed, batch_size=4).state_dict()
    with pytest.raises(ValueError, match="a run resumes only on the same data"):
        packed_dataloader(tmp_path / "other", batch_size=4).load_state_dict(state)


def test_damage_is_named(packed, tmp_path):
    import shutil

    def copy(name):
        return shutil.copytree(packed, tmp_path / name)

    cut = copy("cut")
    shard = next((cut / "rows").glob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{shard.name}: \d+ bytes; index.json says"):
        packed_dataloader(cut, batch_size=4)
    table = copy("table")
    (table / "rows" / "segments.npy").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"segments.npy: damaged; its sha256"):
        packed_dataloader(table, batch_size=4)
    other = copy("tokenizer")
    file = other / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace("a", "b"))
    with pytest.raises(ValueError, match="tokenizer_sha256 is"):
        packed_dataloader(other, batch_size=4)
    leaving = copy("leaving")
    record = json.loads((leaving / "manifest.json").read_text())
    record["files"]["../x"] = "0"
    (leaving / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"files: '../x' leaves the directory"):
        read_packed_manifest(leaving)
    with pytest.raises(ValueError, match=r"nowhere/manifest.json: no such file"):
        read_packed_manifest("nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"max_target_tokens": 0}, "max_target_tokens is 0"),
        ({"window": -1}, "window is -1"),
        ({"overlong": "ignore"}, "overlong is 'ignore'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PackOptions(**options)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04" + bytes(40),
        b"\x80\x04N.",
        b"\x93NUMPY\x01\x00\x48\x00"
        + b"{'descr': '<u4', 'fortran_order': False, 'shape': (10000000000000,)}".ljust(71)
        + b"\n",
    ],
    ids=["empty", "archive", "pickle", "40 TB"],
)
def test_a_table_of_rows_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "segments.npy").write_bytes(content)
    with pytest.raises(ShardError, match=r"segments\.npy: missing or damaged table of rows"):
        read_segments(tmp_path)


def test_more_examples_than_memory_holds_are_refused_before_work(mini, tmp_path):
    with pytest.raises(ValueError, match=r"epochs is 1000000000, which makes \d+ examples"):
        pack_mini(mini, tmp_path / "out", epochs=10**9)
    assert not list(tmp_path.iterdir())
