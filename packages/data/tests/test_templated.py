"""Templated dumps: every layout and container gives the same rows; damage is named."""

import gzip
import sys
from pathlib import Path

import pytest

from flan_moe.data.readers import RawDataError
from flan_moe.data.readers.layouts import (
    FlanNaming,
    RowLabels,
    config_of,
    find_layout,
    plain_name,
    split_of,
)
from flan_moe.data.readers.templated import TemplatedFile, read_templated_rows, templated_files
from flan_moe.data.template_types import TEMPLATE_TYPES

CONTAINERS = ("parquet", "jsonl", "jsonl.gz")


def read(location, **options):
    return [
        row for file in templated_files(location) for row in read_templated_rows(file, **options)
    ]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("layout", ["passthrough", "submix", "source_target"])
def test_layouts_with_labels_in_the_row(tmp_path, layout, container, dump):
    expected = dump.rows("rte")
    file = dump.write_rows(
        tmp_path / f"part-0.{container}", [getattr(dump, layout)(row) for row in expected]
    )
    found = read(file)
    # The dump spells the task's name super_glue/rte:1.0.2.
    assert [(r.mixture, r.task, r.prompt, r.target) for r in found] == [
        ("muffin", "rte", row["prompt"], row["target"]) for row in expected
    ]
    index = "" if layout == "submix" else "/{index}"
    assert [r.template for r in found] == [
        ("{setting}/templated" + index).format(**row) for row in expected
    ]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("folder", "name", "mixture", "setting"),
    [
        ("", "flan_zs_opt_train", "muffin", "zs_opt"),
        ("", "t0_fs_noopt_train", "t0_sf", "fs_noopt"),
        ("", "dialog_zs_opt_train", "muffin", "zs_opt"),
        ("niv2_fsopt_data", "part.3", "niv2", "fs_opt"),
        ("cot_zsnoopt_data", "part.3", "cot", "zs_noopt"),
    ],
)
def test_layouts_with_labels_in_the_path(tmp_path, folder, name, mixture, setting, container, dump):
    expected = dump.rows("some_task")
    dump.write_rows(
        tmp_path / "dump" / folder / f"{name}.{container}", list(map(dump.by_file, expected))
    )
    found = read(tmp_path / "dump")
    assert {(r.mixture, r.task, r.template) for r in found} == {
        (mixture, "some_task", f"{setting}/templated")
    }
    assert [r.prompt for r in found] == [row["prompt"] for row in expected]


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_layout_with_labels_in_the_task(tmp_path, container, dump):
    records = [dump.by_file(row) for row in dump.rows("aeslc_10templates")]
    for split in ("train", "validation", "test"):
        dump.write_rows(tmp_path / split / f"aeslc_10templates_{split}.{container}", records)
    found = read(tmp_path)
    kept = [row for row in found if not isinstance(row, str)]
    assert {(r.mixture, r.task, r.template) for r in kept} == {
        ("muffin", "aeslc", "zs_opt/templated")
    }
    assert len(kept) == 12
    assert sorted(row for row in found if isinstance(row, str)) == (
        ["split 'test'"] * 12 + ["split 'validation'"] * 12
    )


@pytest.mark.parametrize("container", CONTAINERS)
def test_p3_rows_are_named_by_their_folder(tmp_path, container, dump):
    expected = dump.rows("x", mixture="t0_sf")
    dump.write_rows(
        tmp_path / "P3" / "cos_e_v1.11_rationale" / "train" / f"0000.{container}",
        list(map(dump.rendered, expected)),
    )
    found = read(tmp_path / "P3")
    assert [(r.mixture, r.task, r.template, r.prompt, r.target) for r in found] == [
        ("t0_sf", "cos_e_v1.11_rationale", "zs_opt/templated", row["prompt"], row["target"])
        for row in expected
    ]


def test_unknown_columns_are_listed(tmp_path, dump):
    for container in CONTAINERS:
        file = dump.write_rows(tmp_path / f"x.{container}", [{"question": "a", "answer": "b"}])
        with pytest.raises(
            RawDataError, match=r"x\.\S+: columns answer, question; expected .*_task"
        ):
            read(file)
    with pytest.raises(RawDataError, match=r"columns \(none\); expected"):
        find_layout([], "x")


def test_what_is_left_out_is_told(tmp_path, dump):
    first, *others = map(dump.source_target, dump.rows("task", count=6))
    others[0]["source"] = "  "
    others[1]["target"] = ""
    others[2]["task_source"] = "elsewhere"
    others[3]["template_type"] = "zs"
    others[4]["split"] = "validation"
    found = read(dump.write_rows(tmp_path / "x.jsonl", [first, *others]))
    assert found[0].prompt == first["source"]
    assert found[1:] == [
        "empty input",
        "empty answer",
        "unknown task source 'elsewhere'",
        "unknown template type 'zs'",
        "split 'validation'",
    ]
    assert not isinstance(read(tmp_path / "x.jsonl", splits=("validation",))[5], str)


def test_malformed_rows_are_refused_by_number(tmp_path, dump):
    good = dump.submix(dump.rows("task")[0])
    for bad, message in (
        ({**good, "inputs": 3}, r"x\.jsonl:2: inputs: int; expected text"),
        ({"inputs": "a", "targets": "b"}, r"x\.jsonl:2: column 'task_name' is missing"),
        ([1], r"x\.jsonl:2: list; expected a JSON object"),
        ({**good, "inputs": "\ud800"}, r"x\.jsonl:2: not Unicode text"),
    ):
        with pytest.raises(RawDataError, match=message):
            read(dump.write_rows(tmp_path / "x.jsonl", [good, bad]))


@pytest.fixture
def files(tmp_path, dump):
    records = [dump.submix(row) for row in dump.rows("task", count=400)]
    return {c: dump.write_rows(tmp_path / f"x.{c}", records) for c in CONTAINERS}


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ("parquet", r"x\.parquet: not a whole Parquet file"),
        ("jsonl", r"x\.jsonl:\d+: the last line has no line end; the file is truncated"),
        ("jsonl.gz", r"x\.jsonl\.gz:\d+: the gzip file is truncated"),
    ],
)
def test_truncated_files_are_named(files, container, message):
    file = files[container]
    data = file.read_bytes()
    for share in (0.3, 0.7, 0.99):
        file.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(RawDataError, match=message):
            read(file)


def test_damaged_files_are_named(files):
    """Bytes overwritten in the middle: found out by the container's own checks."""
    data = bytearray(files["jsonl.gz"].read_bytes())
    data[-6] ^= 1  # of the checksum: every line is readable
    files["jsonl.gz"].write_bytes(data)
    with pytest.raises(RawDataError, match=r"x\.jsonl\.gz:\d+: not a whole gzip file"):
        read(files["jsonl.gz"])
    data = bytearray(files["parquet"].read_bytes())
    data[4:2000] = b"\xff" * 1996
    files["parquet"].write_bytes(data)
    with pytest.raises(RawDataError, match=r"x\.parquet: row group \d+: not a whole Parquet file"):
        read(files["parquet"])
    files["jsonl.gz"].write_bytes(gzip.compress(b"\xff\xfe\n"))
    with pytest.raises(RawDataError, match="not UTF-8"):
        read(files["jsonl.gz"])


def test_a_missing_location_is_named(tmp_path):
    with pytest.raises(RawDataError, match=r"nowhere: expected a \.parquet, \.jsonl or"):
        templated_files(tmp_path / "nowhere")
    for name in ("gone.jsonl", "gone.parquet"):
        file = TemplatedFile(tmp_path / name, (name,))
        with pytest.raises(RawDataError, match=f"{name}: no such file"):
            list(read_templated_rows(file))


def test_parquet_without_pyarrow_says_what_to_install(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RawDataError, match=r"pip install 'flan-moe-data\[parquet\]'"):
        read(files["parquet"])


def test_files_are_found_below_and_by_pattern(tmp_path, dump):
    for name in ("b/2.jsonl", "a/1.parquet", "a/.cache/0.jsonl", "README.md", "c.jsonl.gz"):
        dump.write_rows(tmp_path / name, [dump.submix(dump.rows("task")[0])])
    paths = [Path(*file.path[1:]).as_posix() for file in templated_files(tmp_path)]
    assert paths == ["a/1.parquet", "b/2.jsonl", "c.jsonl.gz"]
    (found,) = templated_files(f"{tmp_path}/*/*.jsonl")
    assert found.file == tmp_path / "b" / "2.jsonl"


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("glue/mnli:2.0.0", "glue_mnli"),
        ("cnn_dailymail:3.4.0", "cnn_dailymail"),
        ("aeslc_10templates", "aeslc"),
        ("t0_task_adaptation:cos_e_v1.11_rationale", "cos_e_v1.11_rationale"),
        ("task074_squad1.1_question_generation", "task074_squad1.1_question_generation"),
        ("web questions (short)", "web_questions_short"),
    ],
)
def test_plain_names(label, name):
    assert plain_name(label) == name


def labels(**given):
    return RowLabels(**{"task": "t", "source": "", "setting": "", "path": ("x.jsonl",), **given})


def test_naming():
    naming = FlanNaming()
    place = naming(labels(task="task074_squad1", setting="fs_opt"))
    assert (place.task, place.mixture, place.setting) == (
        "task074_squad1.1_question_generation",
        "niv2",
        "fs_opt",
    )
    for task, source, name in (
        ("cot_gsm8k_ii", "CoT", "cot_input_inversion_gsm8k"),
        ("wiki_qa_Is_This_True_", "P3", "wiki_qa_Is_This_True_"),
        ("bool_q:1.0.0", "Flan2021", "bool_q"),
        ("bool_q:1.0.0", "CoT", "bool_q"),  # not the registered one, which is in another mixture
        ("my/own:1.2", "Flan2021", "my_own"),
    ):
        assert naming(labels(task=task, source=source, setting="zs_opt")).task == name
    mine = FlanNaming(aliases={"my/own:1.2": "bool_q"})
    assert mine(labels(task="my/own:1.2", setting="zs_opt")).task == "bool_q"
    assert naming(labels(task="::", source="P3")) == "unusable task name '::'"
    assert naming(labels(setting="zs_opt")) == "unknown task source ''"
    assert FlanNaming(mixture="muffin", setting="zs_opt")(labels()).mixture == "muffin"
    # What the row says goes before what its path says.
    both = naming(labels(source="CoT", setting="fs_noopt", path=("flan_zs_opt_train.jsonl",)))
    assert (both.mixture, both.setting) == ("cot", "fs_noopt")
    for setting in TEMPLATE_TYPES:
        assert naming(labels(path=(f"niv2_{setting}_train.jsonl",))).setting == setting
    with pytest.raises(ValueError, match="setting is 'zs'; expected one of zs_opt"):
        FlanNaming(setting="zs")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        (("a.jsonl",), "train"),
        (("test", "a.jsonl"), "test"),
        (("data", "validation-00000-of-00002.parquet"), "validation"),
        (("aeslc_10templates_test.jsonl.gz",), "test"),
        (("the_test_of_time", "0.parquet"), "train"),
    ],
)
def test_splits_of_paths(path, split):
    assert split_of(path) == split


@pytest.mark.parametrize(
    ("path", "config"),
    [
        (("P3", "cos_e", "train", "0.parquet"), "cos_e"),
        (("data", "wiki_qa_is_This_True.parquet"), "wiki_qa_is_This_True"),
        (("cos_e-train-00000-of-00001.parquet",), "cos_e"),
    ],
)
def test_configs_of_paths(path, config):
    assert config_of(path) == config


@pytest.mark.parametrize(
    ("value", "template"),
    [(3, "/3"), (3.0, "/3"), (float("nan"), ""), (None, ""), ("", ""), ("v 1.1", "/v 1.1")],
)
def test_the_number_of_a_wording(tmp_path, value, template, dump):
    row = {**dump.submix(dump.rows("rte")[0]), "template_idx": value}
    (found,) = read(dump.write_rows(tmp_path / "0.jsonl", [row]))
    assert found.template == "zs_opt/templated" + template


@pytest.mark.parametrize("value", [[1], {"a": 1}, 1.5, "\ud800", "a\nb", "x" * 100])
def test_what_is_no_number_of_a_wording_is_refused(tmp_path, value, dump):
    row = {**dump.submix(dump.rows("rte")[0]), "template_idx": value}
    dump.write_rows(tmp_path / "0.jsonl", [row])
    with pytest.raises(RawDataError, match=r"0\.jsonl:1: template_idx is .*expected a number"):
        read(tmp_path / "0.jsonl")


def test_labels_too_long_to_be_names_are_counted_in_short(tmp_path, dump):
    row = dump.submix(dump.rows("rte")[0])
    records = [{**row, "task_name": "x" * 1000}, {**row, "split": "y" * 100_000}]
    dump.write_rows(tmp_path / "0.jsonl", records)
    name, split = read(tmp_path / "0.jsonl")
    assert name == f"unusable task name '{'x' * 37}...'"
    assert split == f"split '{'y' * 37}...'"
