"""A mixture of more than 1,400 real tasks in the shape of Flan 2022: rates, settings, packing."""

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flan_moe.data import (
    BuildOptions,
    RawOptions,
    build_data_directory,
    build_mixture_dataset,
    dataloader,
    read_manifest,
    read_task_table,
)
from flan_moe.data.mixing.apply import apply_mixture
from flan_moe.data.mixing.load import load_mixture
from flan_moe.data.mixing.shares import TaskSize
from flan_moe.data.packing import choose_target_budget
from flan_moe.data.sources.raw import raw_sources

REAL = Path(__file__).parents[4] / "shared/data"
FOLDERS = ("muffin", "arc", "boolq", "t0_sf", "flan_cot", "cot_fallback")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (REAL / "raw.tar.xz").is_file(), reason=f"needs the real raw files in {REAL}"
    ),
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    with tarfile.open(REAL / "raw.tar.xz") as tar:
        for member in tar:
            if member.name.removeprefix("./").startswith(tuple(f"raw/{x}/" for x in FOLDERS)):
                tar.extract(member, path, filter="data")
    raw = path / "raw"
    sources = raw_sources(
        RawOptions(examples=64, evaluation=8, validation=4),
        natural_instructions=REAL / "natural_instructions_wide.jsonl.xz",
        cot=raw / "flan_cot",
        cot_stand_ins=raw / "cot_fallback",
        muffin=raw,
        t0_sf=raw / "t0_sf",
        stand_ins=True,
        inversion=True,
    )
    options = BuildOptions(
        name="wide", source="test", vocab_size=16384, max_input_tokens=1024, max_target_tokens=512
    )
    build_data_directory(path / "built", sources, options, report=lambda line: None)
    return path / "built"


def sizes(directory):
    return {
        task.id: TaskSize(name=task.name, mixture=mixture, count=task.count, types=task.types)
        for mixture in read_manifest(directory).splits["train"]
        for task in read_task_table(directory / "train" / mixture).tasks
    }


def test_observed_shares_are_the_explained_ones(wide):
    """Chi-squared of 200,000 samples, by task and by task and setting.

    Quotas are within one sample of the shares, so the statistic is far below the degrees of
    freedom, where independent draws would put it.
    """
    by_id = sizes(wide)
    shares = apply_mixture(load_mixture("flan2022"), list(by_id.values()))
    share_of = dict(zip(by_id, shares, strict=True))
    assert sum(share.share > 0 for share in shares) > 1400
    dataset = build_mixture_dataset(wide, batch_size=256, mixture="flan2022", epoch_size=200_000)
    seen = Counter((sample["task"], sample["template"].split("/")[0]) for sample in dataset)
    assert seen.total() == 200_000
    cells = {
        (number, kind): share
        for number, each in share_of.items()
        for kind, share in each.types.items()
        if share > 0
    }
    assert set(seen) <= set(cells)
    tasks = Counter()
    for (number, _), count in seen.items():
        tasks[number] += count
    wanted = {number: each.share for number, each in share_of.items() if each.share > 0}
    for observed, expected in ((seen, cells), (tasks, wanted)):
        counts = np.array([observed[key] for key in expected], float)
        exact = np.array([200_000 * share for share in expected.values()])
        assert np.abs(counts - exact).max() < 1.0001
        assert ((counts - exact) ** 2 / exact).sum() < len(expected)


def test_a_stateless_packer_fills_both_budgets(wide):
    raw = 512
    dataset = build_mixture_dataset(wide, batch_size=raw, mixture="flan2022", epoch_size=40 * raw)
    lengths = np.array([(len(s["input_ids"]), len(s["labels"])) for s in dataset])
    chosen = choose_target_budget(lengths, 2048)
    budget = (2048, chosen.max_target_tokens)
    loader = dataloader(
        wide,
        batch_size=raw,
        mixture="flan2022",
        epoch_size=40 * raw,
        max_input_tokens=budget[0],
        max_target_tokens=budget[1],
        overlong="drop",
    )
    filled, rows, packed = np.zeros(2), 0, 0
    for batch in loader:
        segments = [batch[f"{side}_segments"] for side in ("encoder", "decoder")]
        filled += [int((each > 0).sum()) for each in segments]
        rows += len(segments[0])
        packed += int(segments[0].amax(1).sum())
    encoder, decoder = filled / (rows * np.array(budget))
    counts = loader.collate_fn.counts()
    assert encoder > 0.96
    assert decoder > 0.8
    assert packed + counts["dropped"] == counts["examples"] == 40 * raw
    assert counts["dropped"] == int((lengths > budget).any(1).sum())
