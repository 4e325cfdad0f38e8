"""A mixture of 1,836 tasks against 1,836 separate streams and against 4 plain streams.

Synthetic samples with the lengths of instruction data (64-448 input and 8-56 target tokens), 100
per task, in a temporary folder, read by every side in batches of 64 with one ``collate_fn``:

- ``ours``: `flan_moe.data`: task quotas in four settings, caps, exact resuming. From MDS shards
  with `build_mixture_dataset`, from tars with the dataset behind `webdataset_loader`. It reads and
  checks manifest and task tables, which no other side has; no side hashes shards.
- ``4 streams``: the same four folders without any notion of tasks: mosaicml-streaming's own
  `StreamingDataset`, or a webdataset pipeline of shuffled tars and a shuffling buffer.
- ``1836 streams``: a folder per task: `StreamingDataset` with a `Stream` each, or webdataset's
  ``RandomMix`` over a pipeline each.

Start-up is from nothing to the first batch, samples per second are counted after it. Every
measurement is made in a forked process, with a folder of its own for streaming's lock files: those
of other runs, which streaming looks through, would slow down the start of all MDS sides. Sides
take turns; the table has medians.

Run ``python benchmarks data [--repeats N] [--quick] [--json PATH]``.
"""

import argparse
import gc
import itertools
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset
from streaming import Stream, StreamingDataLoader, StreamingDataset
from torch.utils.data import DataLoader, IterableDataset

from flan_moe.data.mixing.spec import MixtureSpec, SubMixture
from flan_moe.data.storage.manifest import Manifest, file_sha256
from flan_moe.data.storage.shards import Sample, write_mds, write_webdataset
from flan_moe.data.storage.task_table import TaskEntry, TaskTable
from flan_moe.data.streaming.mixture import build_mixture_dataset
from flan_moe.data.streaming.web_loader import webdataset_loader
from flan_moe.data.template_types import TEMPLATE_TYPES
from flan_moe.data.tokenization.tokenizer import tokenizer_fingerprint
from measure import print_table, write_json

BATCH = 64
VOCABULARY = 32_000
INPUT, TARGET = (64, 448), (8, 56)
TASKS = {"muffin": 80, "t0_sf": 193, "niv2": 1_554, "cot": 9}
WEIGHTS = {"muffin": 0.46, "t0_sf": 0.279, "niv2": 0.242, "cot": 0.019}
CAPS = {"muffin": 30_000, "t0_sf": 20_000, "niv2": 5_000, "cot": 100_000}
SPEC = MixtureSpec(
    name="benchmark",
    sub_mixtures={
        name: SubMixture(
            weight=WEIGHTS[name],
            mixtures=(name,),
            cap=CAPS[name],
            template_shares=dict.fromkeys(TEMPLATE_TYPES, 0.25),
        )
        for name in TASKS
    },
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much there is and how much is read."""

    tasks: dict[str, int]
    per_task: int = 100
    epoch: int = 100_000
    samples: int = 20_000
    tar: int = 1_000

    @property
    def number(self) -> int:
        """Tasks of all mixtures."""
        return sum(self.tasks.values())


QUICK = Sizes(
    tasks={"muffin": 8, "t0_sf": 12, "niv2": 30, "cot": 4},
    per_task=20,
    epoch=1_280,
    samples=640,
    tar=60,
)


def samples_of(task: int, count: int) -> list[Sample]:
    """The samples of a task, setting by setting."""
    rng = np.random.default_rng(task)

    def ids(bounds: tuple[int, int]) -> np.ndarray:
        return rng.integers(2, VOCABULARY, rng.integers(*bounds, endpoint=True), dtype=np.uint16)

    return [
        {
            "input_ids": ids(INPUT),
            "labels": ids(TARGET),
            "task": task,
            "template": f"{TEMPLATE_TYPES[number * 4 // count]}/plain/0",
        }
        for number in range(count)
    ]


def write_data(folder: Path, sizes: Sizes) -> None:
    """The data directory, with tars, and beside it a folder of shards and of tars per task."""
    token = np.dtype(np.uint16)
    quarter = sizes.per_task // 4
    tasks, splits, task = [], {}, 0
    for mixture, number in sizes.tasks.items():
        entries, stored = [], []
        for index in range(number):
            samples = samples_of(task, sizes.per_task)
            write_mds(folder / "mds" / f"{task}", samples, dtype=token)
            write_webdataset(folder / "tar" / f"{task}", samples)
            entries.append(
                TaskEntry(
                    id=task,
                    name=f"{mixture}_{index}",
                    start=len(stored),
                    count=len(samples),
                    cap=CAPS[mixture],
                    max_input_tokens=INPUT[1],
                    max_target_tokens=TARGET[1],
                    types=dict.fromkeys(TEMPLATE_TYPES, quarter),
                )
            )
            counts = {"train": len(samples), "validation": 0, "eval": 0, "eval_removed": 0}
            name = {"name": entries[-1].name, "mixture": mixture, "group": "held_in"}
            tasks.append({"id": task, **name, **counts})
            stored += samples
            task += 1
        shards = folder / "data" / "train" / mixture
        write_mds(shards, stored, dtype=token)
        TaskTable(mixture=mixture, tasks=tuple(entries)).write(shards)
        write_webdataset(
            folder / "data" / "webdataset" / "train" / mixture, stored, samples_per_shard=sizes.tar
        )
        splits[mixture] = {"examples": len(stored), "input_tokens": 0, "target_tokens": 0}
    data = folder / "data"
    (data / "tokenizer").mkdir()
    (data / "tokenizer" / "tokenizer.json").write_text("{}")  # opened for its hash only
    files = [*data.rglob("index.json"), *data.rglob("tasks.json"), *data.glob("tokenizer/*")]
    Manifest(
        name="benchmark",
        vocab_size=VOCABULARY,
        tokenizer_sha256=tokenizer_fingerprint(data / "tokenizer"),
        pad_token_id=0,
        eos_token_id=1,
        max_input_tokens=INPUT[1],
        max_target_tokens=TARGET[1],
        seed=0,
        splits={"train": splits},
        tasks=tuple(tasks),
        dropped={},
        files={file.relative_to(data).as_posix(): file_sha256(file) for file in sorted(files)},
    ).write(data)


def collate(samples: list[Sample]) -> dict[str, list]:
    """The samples of a batch side by side, task first."""
    return {key: [sample[key] for sample in samples] for key in ("task", "input_ids", "labels")}


def collate_members(members: list[dict]) -> dict[str, list]:
    """The same from tar members that webdataset has decoded."""
    return collate([member["json"] for member in members])


def as_arrays(member: dict) -> dict:
    """What every reader of these tars has to do: token ids as arrays."""
    record = member["json"]
    for key in ("input_ids", "labels"):
        record[key] = np.array(record[key], dtype=record["dtype"])
    return member


def mds_ours(folder: Path, sizes: Sizes, workers: int) -> DataLoader:
    """Our mixture of the four folders."""
    dataset = build_mixture_dataset(
        folder / "data", batch_size=BATCH, mixture=SPEC, epoch_size=sizes.epoch, verify=False
    )
    return StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=collate, num_workers=workers)


def mds_streams(streams: list[Stream], sizes: Sizes, workers: int) -> DataLoader:
    """Streaming's own dataset."""
    dataset = StreamingDataset(
        streams=streams,
        batch_size=BATCH,
        shuffle=True,
        epoch_size=sizes.epoch,
        num_canonical_nodes=1,
    )
    return StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=collate, num_workers=workers)


def mds_4(folder: Path, sizes: Sizes, workers: int) -> DataLoader:
    """A stream per mixture."""
    train = folder / "data" / "train"
    streams = [Stream(local=str(train / name), proportion=WEIGHTS[name]) for name in sizes.tasks]
    return mds_streams(streams, sizes, workers)


def mds_1836(folder: Path, sizes: Sizes, workers: int) -> DataLoader:
    """A stream per task."""
    shares = [WEIGHTS[name] / n for name, n in sizes.tasks.items() for _ in range(n)]
    streams = [
        Stream(local=str(folder / "mds" / f"{task}"), proportion=share)
        for task, share in enumerate(shares)
    ]
    return mds_streams(streams, sizes, workers)


def tar_ours(folder: Path, sizes: Sizes, workers: int) -> DataLoader:
    """Our mixture of the four folders of tars."""
    loader = webdataset_loader(
        folder / "data", batch_size=BATCH, mixture=SPEC, epoch_size=sizes.epoch
    )
    return DataLoader(loader.dataset, BATCH, collate_fn=collate, num_workers=workers)


def tar_pipeline(source: Iterable, workers: int) -> DataLoader:
    """Batches of what a pipeline yields."""
    return DataLoader(source, BATCH, collate_fn=collate_members, num_workers=workers)


def tar_4(folder: Path, sizes: Sizes, workers: int) -> DataLoader:
    """All tars of the four folders, shuffled, and a shuffling buffer."""
    tars = sorted(map(str, (folder / "data" / "webdataset").rglob("*.tar")))
    stages = (
        webdataset.SimpleShardList([f"file:{tar}" for tar in tars]),
        webdataset.detshuffle(len(tars)),
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(1000),
        webdataset.decode(),
        webdataset.map(as_arrays),
    )
    return tar_pipeline(webdataset.DataPipeline(*stages), workers)


class Repeated(IterableDataset):
    """A task's tar, again and again."""

    def __init__(self, tar: Path) -> None:
        self.tar = tar

    def __iter__(self) -> Iterator[dict]:
        """Its samples."""
        while True:
            yield from webdataset.DataPipeline(
                webdataset.SimpleShardList([f"file:{self.tar}"]),
                webdataset.tarfile_to_samples(),
                webdataset.decode(),
                webdataset.map(as_arrays),
            )


def tar_1836(folder: Path, sizes: Sizes, workers: int) -> DataLoader:
    """A tar per task, mixed at random."""
    shares = [WEIGHTS[name] / n for name, n in sizes.tasks.items() for _ in range(n)]
    tars = [folder / "tar" / f"{task}" / "shard-00000.tar" for task in range(sizes.number)]
    random.seed(0)
    return tar_pipeline(webdataset.RandomMix([Repeated(tar) for tar in tars], shares), workers)


SIDES: dict[str, dict[str, Callable[[Path, Sizes, int], DataLoader]]] = {
    "mds": {"ours": mds_ours, "4 streams": mds_4, "1836 streams": mds_1836},
    "webdataset": {"ours": tar_ours, "4 streams": tar_4, "1836 streams": tar_1836},
}


def measure(
    make: Callable[[Path, Sizes, int], DataLoader], folder: Path, sizes: Sizes, workers: int
) -> tuple[float, float, int]:
    """Seconds to the first batch, samples per second after it, and distinct tasks seen."""
    warnings.filterwarnings("ignore")
    tempfile.tempdir = tempfile.mkdtemp(dir=folder)
    gc.collect()
    start = time.perf_counter()
    iterator = iter(make(folder, sizes, workers))
    tasks = set(next(iterator)["task"])
    ready = time.perf_counter()
    batches = itertools.islice(iterator, sizes.samples // BATCH)
    count = 0
    for batch in batches:
        count += len(batch["task"])
        tasks.update(batch["task"])
    seconds = time.perf_counter() - ready
    if count < sizes.samples - BATCH:
        raise SystemExit(f"{make.__name__}: {count} samples came, expected {sizes.samples}")
    return ready - start, count / seconds, len(tasks)


def in_a_fork(*arguments: object) -> tuple[float, float, int]:
    """`measure` in a process that takes its shared memory with it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        theirs.send(measure(*arguments))

    process = context.Process(target=run)
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        raise SystemExit(f"{arguments[0].__name__} failed; see above") from None
    process.join()
    return result


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="measurements per side")
    parser.add_argument("--quick", action="store_true", help="54 tasks of 20 samples: does it run")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes(tasks=TASKS)
    folder = Path(tempfile.mkdtemp(prefix="flan-moe-data-benchmark-"))
    try:
        write_data(folder, sizes)
        rows = [
            row
            for workers in (0, 2)
            for layout, sides in SIDES.items()
            for row in compare(layout, sides, folder, sizes, workers, arguments.repeats)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_table(rows)
    ratios = ratios_of(rows)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    if arguments.json:
        write_json(
            arguments.json,
            benchmark="data",
            packages=("torch", "numpy", "mosaicml-streaming", "webdataset"),
            rows=rows,
            ratios=ratios,
        )


def compare(
    layout: str,
    sides: dict[str, Callable[[Path, Sizes, int], DataLoader]],
    folder: Path,
    sizes: Sizes,
    workers: int,
    repeats: int,
) -> list[dict[str, object]]:
    """A row per side, measured in turns; the first turn only warms the page cache."""
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, make in sides.items():
            result = in_a_fork(make, folder, sizes, workers)
            if turn:
                found[name].append(result)
    return [
        {
            "layout": layout,
            "workers": workers,
            "side": name,
            "tasks": sizes.number,
            "startup_s": statistics.median(result[0] for result in results),
            "samples_per_s": round(statistics.median(result[1] for result in results)),
            "tasks_seen": max(result[2] for result in results),
        }
        for name, results in found.items()
    ]


def ratios_of(rows: list[dict[str, object]]) -> dict[str, float]:
    """Of MDS without workers under the plain names, of the rest with what they are in the name."""
    table = {(row["layout"], row["workers"], row["side"]): row for row in rows}
    ratios = {}
    for layout, workers in sorted({key[:2] for key in table}):
        suffix = "" if layout == "mds" else f"_{layout}"
        suffix += f"_workers{workers}" if workers else ""
        ours, four, many = (table[layout, workers, side] for side in SIDES[layout])
        ratios |= {
            f"startup_over_4_streams{suffix}": ours["startup_s"] / four["startup_s"],
            f"startup_1836_over_ours{suffix}": many["startup_s"] / ours["startup_s"],
            f"throughput_over_4_streams{suffix}": ours["samples_per_s"] / four["samples_per_s"],
        }
    return ratios


if __name__ == "__main__":
    main()
