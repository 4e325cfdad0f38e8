"""The dataloader over WebDataset tars; see `flan_moe.data.streaming.web_mixture`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from flan_moe.data.packing import MAX_WORKERS, Overlong
from flan_moe.data.storage.manifest import Manifest, open_with_tables
from flan_moe.data.storage.shards import INDEX, ShardError, check_webdataset
from flan_moe.data.streaming.loader import MEASURES_KEY, MeasuringCollator
from flan_moe.data.streaming.mixture_plan import Mixture, plan_epoch
from flan_moe.data.streaming.remote import TIMEOUT_S, OpenedDirectory, fetch, open_location
from flan_moe.data.streaming.seen import SeenTasks
from flan_moe.data.streaming.web_mixture import Tar, WebMixture
from flan_moe.data.whole_number import check_whole

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "webdataset"


class WebMixtureLoader(DataLoader):
    """Made by `webdataset_loader`.

    Attributes:
        seen: Samples and tokens of each task that this process has been handed.
    """

    def __init__(self, *args: Any, seen: SeenTasks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen = seen

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches of the next epoch."""
        for batch in super().__iter__():
            self.seen.add(batch["task_ids"].numpy(), batch.pop(MEASURES_KEY).numpy())
            yield batch


def webdataset_loader(
    path: str | Path,
    *,
    batch_size: int,
    split: str = "train",
    weights: Mapping[str, float] | None = None,
    mixture: Mixture | None = None,
    epoch_size: int | None = None,
    seed: int = 0,
    first_epoch: int = 0,
    max_input_tokens: int | None = None,
    max_target_tokens: int | None = None,
    pack: bool = True,
    rows: int | None = None,
    overlong: Overlong = "truncate",
    num_workers: int = 0,
    open_tars: int = 32,
    buffer: int = 1000,
    verify: bool | None = None,
    cache: str | Path | None = None,
    timeout: float = TIMEOUT_S,
) -> WebMixtureLoader:
    """Batches as of `dataloader`, from the tars of a data directory built with ``--webdataset``.

    Every epoch holds exactly the samples that `dataloader` gives with the same arguments. The order
    depends on the numbers of ranks and workers as well, and there is no resuming within an epoch.

    Args:
        path: Built by ``flan-moe-data``; a folder or the URL of one.
        batch_size: Raw examples in the batch of one device.
        split: ``"train"`` or ``"validation"``.
        weights: As of `dataloader`.
        mixture: As of `dataloader`.
        epoch_size: As of `dataloader`.
        seed: Of choice and order.
        first_epoch: Where to start.
        max_input_tokens: As of `dataloader`.
        max_target_tokens: As of `dataloader`.
        pack: As of `dataloader`.
        rows: As of `dataloader`.
        overlong: As of `dataloader`.
        num_workers: Processes that read and pack.
        open_tars: How many tars each of them has open.
        buffer: Samples among which each of them draws the next.
        verify: Whether to check the hash of every tar first; None and False check sizes only.
        cache: As of `dataloader`.
        timeout: As of `dataloader`.

    Raises:
        ValueError: The directory is damaged, has no tars, or an argument does not fit.
        DownloadError: A remote file is missing, cannot be reached or is damaged; names its URL.
    """
    numbers = {"batch_size": batch_size, "open_tars": open_tars, "buffer": buffer}
    for key, value in numbers.items():
        check_whole(key, value)
    if epoch_size is not None:
        check_whole("epoch_size", epoch_size)
    numbers = {"seed": seed, "first_epoch": first_epoch, "num_workers": num_workers}
    for key, value in numbers.items():
        check_whole(key, value, least=0)
    if not 0 <= num_workers <= MAX_WORKERS:
        raise ValueError(f"num_workers is {num_workers!r}; expected 0 to {MAX_WORKERS}")
    opened = open_location(path, cache=cache, timeout=timeout)
    manifest, tables = open_with_tables(opened.folder, hashes=False, complete=opened.source is None)
    collator = MeasuringCollator.of(
        manifest,
        max_input_tokens=max_input_tokens,
        max_target_tokens=max_target_tokens,
        pack=pack,
        rows=rows,
        overlong=overlong,
    )
    plan = plan_epoch(
        opened.folder,
        manifest,
        split,
        weights,
        epoch_size,
        shuffle=True,
        mixture=mixture,
        tables=tables.get(split),
    )
    dataset = WebMixture(
        plan=plan,
        tars=tuple(
            _tars(opened, manifest, f"{FOLDER}/{split}/{name}", table.num_samples, bool(verify))
            for name, table in plan.tables.items()
        ),
        batch_size=batch_size,
        seed=seed,
        first_epoch=first_epoch,
        open_tars=open_tars,
        buffer=buffer,
    )
    if overlong == "error":
        collator.refuse_overlong(tuple(plan.tables.values()))
    return WebMixtureLoader(
        dataset,
        seen=SeenTasks({task["id"]: task["name"] for task in manifest.tasks}),
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,  # they count the epochs
    )


def _tars(
    opened: OpenedDirectory, manifest: Manifest, name: str, samples: int, verify: bool
) -> tuple[Tar, ...]:
    folder, source = opened.folder / name, opened.source
    if f"{name}/{INDEX}" not in manifest.files:
        raise ValueError(f"{folder}: no tars; build the data directory with --webdataset")
    if source is not None and not (folder / INDEX).is_file():
        fetch(source / f"{name}/{INDEX}", folder / INDEX, sha256=manifest.files[f"{name}/{INDEX}"])
    index = check_webdataset(folder, hashes=verify, complete=source is None)
    tars = tuple(
        Tar(
            file=folder / shard["name"],
            source=source and source / f"{name}/{shard['name']}",
            size=shard["bytes"],
            sha256=shard["sha256"],
            samples=shard["samples"],
        )
        for shard in index["shards"]
    )
    stored = sum(tar.samples for tar in tars)
    if stored != samples:
        raise ShardError(
            f"{folder / INDEX}: {stored} samples; the task table has {samples}, the same expected"
        )
    return tars
