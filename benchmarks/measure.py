"""Side-by-side measurement: both sides alternate in one process, so that noise hits them alike."""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch


def alternate(
    sides: Mapping[str, Callable[[], object]], *, repeats: int = 7, warmup: int = 2
) -> dict[str, float]:
    """Median seconds per call of each side, called in turn ``repeats`` times after ``warmup``."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warmup + repeats):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


class Passes(NamedTuple):
    """A forward pass, and the backward pass of what it returned."""

    forward: Callable[[], torch.Tensor]
    backward: Callable[[torch.Tensor], object]


class PassSeconds(NamedTuple):
    """Median seconds of each pass, and of the two together."""

    forward: float
    backward: float
    both: float


def alternate_passes(
    sides: Mapping[str, Passes], *, device: str, repeats: int, warmup: int
) -> dict[str, PassSeconds]:
    """Time each side's two passes, in turn, ``repeats`` times after ``warmup``.

    On CUDA by events on the stream, without waiting between calls, so that all sides run at the
    clocks of a busy device. Before each call two GiB are overwritten: nothing is left in the
    caches, and the host is ahead of the device when the clock starts, even if the side before
    waited for it.
    """
    cuda = device == "cuda"
    flush = torch.empty(2**31, dtype=torch.uint8, device=device) if cuda else None

    def mark() -> torch.cuda.Event | float:
        if not cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    marks: dict[str, list[tuple]] = {name: [] for name in sides}
    for repeat in range(warmup + repeats):
        for name, (forward, backward) in sides.items():
            if flush is not None:
                flush.zero_()
            start = mark()
            output = forward()
            middle = mark()
            backward(output)
            end = mark()
            del output  # or it would take memory while the next side runs
            if repeat >= warmup:
                marks[name].append((start, middle, end))
    if cuda:
        torch.cuda.synchronize()

    def seconds(first: torch.cuda.Event | float, second: torch.cuda.Event | float) -> float:
        return first.elapsed_time(second) / 1e3 if cuda else second - first

    return {
        name: PassSeconds(
            statistics.median(seconds(start, middle) for start, middle, _ in times),
            statistics.median(seconds(middle, end) for _, middle, end in times),
            statistics.median(seconds(start, end) for start, _, end in times),
        )
        for name, times in marks.items()
    }


def saved_bytes(forward: Callable[[], object], *, but: Sequence[torch.Tensor]) -> int:
    """Bytes of the storages that autograd keeps for backward, those of ``but`` left out."""
    left_out = {tensor.untyped_storage().data_ptr() for tensor in but}
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    del output
    return sum(storage.nbytes() for storage in saved.values())


def require_close(ours: torch.Tensor, theirs: torch.Tensor, *, relative: float, what: str) -> None:
    """Refuse to time two sides that do not compute the same: relative norm error above bound."""
    error = ((ours - theirs).norm() / theirs.norm()).item()
    if not error <= relative:
        raise SystemExit(f"{what}: the sides differ by {error:.2e} relative, over {relative:.0e}")


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows of equal keys as an aligned table."""
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def write_json(
    path: Path,
    *,
    benchmark: str,
    packages: Sequence[str],
    rows: Sequence[Mapping[str, object]],
    ratios: Mapping[str, float],
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write the result as JSON, with commit, machine and versions.

    ``versions`` holds those that are not of installed ``packages``.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    record = {
        "benchmark": benchmark,
        "commit": commit.stdout.strip() + ("-dirty" if dirty.stdout.strip() else ""),
        "machine": {"device": device, "threads": torch.get_num_threads()},
        "versions": {
            "python": sys.version.split()[0],
            **{name: metadata.version(name) for name in packages},
            **(versions or {}),
        },
        "rows": list(rows),
        "ratios": dict(ratios),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.rename(path)
    print(f"wrote {path}")
