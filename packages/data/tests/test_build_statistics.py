"""What tables say about lengths, against the samples themselves; samples against MDS itself."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.data.building.lengths import QUANTILES, bucket, histogram, quantiles, total
from flan_moe.data.progress import Progress
from flan_moe.data.storage.shards import encode_sample, mds_writer, read_mds
from flan_moe.data.storage.task_table import read_task_table

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=200)


@given(LENGTHS)
def test_quantiles_are_the_inverse_of_the_distribution(lengths):
    found = quantiles(Counter(lengths))
    assert list(found) == list(QUANTILES)
    for name, share in QUANTILES.items():
        assert found[name] == np.quantile(lengths, share, method="inverted_cdf")


@given(LENGTHS)
def test_the_histogram_counts_every_length_once_in_the_bucket_that_holds_it(lengths):
    counts = histogram(Counter(lengths))
    edges = [int(edge) for edge in counts]
    assert edges == sorted(edges)
    below = np.cumsum(list(counts.values()))
    assert [int(sum(length <= edge for length in lengths)) for edge in edges] == below.tolist()
    assert total(Counter(lengths)) == sum(lengths)


def test_buckets_widen_by_a_fourth_of_an_octave():
    edges = list(dict.fromkeys(map(bucket, range(1, 129))))
    assert edges == [*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]


def test_tables_tell_the_lengths_of_the_stored_samples(mini):
    for mixture in ("muffin", "cot"):
        table = read_task_table(mini / "train" / mixture)
        samples = list(read_mds(mini / "train" / mixture))
        for task in table.tasks:
            mine = samples[task.start : task.start + task.count]
            for key, name in (("input_ids", "input"), ("labels", "target")):
                lengths = [len(sample[key]) for sample in mine]
                assert getattr(task, f"{name}_tokens") == sum(lengths)
                assert getattr(task, f"max_{name}_tokens") == max(lengths)
                assert getattr(task, f"{name}_quantiles") == quantiles(Counter(lengths))
        for key, found in (("input_ids", table.input_lengths), ("labels", table.target_lengths)):
            assert found == histogram(Counter(len(sample[key]) for sample in samples))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@settings(max_examples=20, deadline=None)
@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 255, 256, 65_535, 65_536])] * 2),
    task=st.integers(0, 2**40),
    template=st.text(max_size=20),
)
def test_a_sample_is_encoded_as_the_mds_writer_does(tmp_path_factory, dtype, sizes, task, template):
    writer = mds_writer(tmp_path_factory.mktemp("mds") / "out", dtype=np.dtype(dtype))
    input_ids, labels = (np.arange(size).astype(dtype) for size in sizes)
    sample = {"input_ids": input_ids, "labels": labels, "task": task, "template": template}
    assert encode_sample(sample) == writer.encode_sample(sample)


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(capsys, monkeypatch):
    def work():
        progress = Progress()
        with progress.steps("tasks", 3, done=1) as advance:
            for name in ("one", "two"):
                advance(name)
        progress.line("done")

    work()
    assert capsys.readouterr().err == "  [2/3] one\n  [3/3] two\ndone\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    work()
    shown = capsys.readouterr().err
    assert "tasks: 100%" in shown
    assert "3/3" in shown
    assert shown.endswith("done\n")
