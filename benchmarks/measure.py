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
