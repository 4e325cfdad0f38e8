"""What the device says: memory of a pass, bandwidth of a copy, clock."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import torch
from torch import Tensor

from measure import Passes, alternate, saved_bytes


def memory_of(passes: Passes, parameters: Sequence[Tensor], device: str) -> dict[str, object]:
    """MiB saved, held and at the peak; the last two on CUDA only."""
    mib = 2**20
    memory = {"saved MiB": saved_bytes(passes.forward, but=parameters) / mib}
    if device != "cuda":
        return {**memory, "held MiB": "-", "peak MiB": "-"}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = passes.forward()
    held = torch.cuda.memory_allocated() - before - output.untyped_storage().nbytes()
    passes.backward(output)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return {**memory, "held MiB": held / mib, "peak MiB": peak / mib}


def copy_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = alternate({"copy": lambda: target.copy_(source)}, repeats=11)["copy"]
    return 2 * source.nbytes / seconds


def sm_clock() -> float | str:
    """MHz of the multiprocessors just after the work, or "-" where nvidia-smi is not there."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True)
        return float(answer.stdout.splitlines()[torch.cuda.current_device()])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return "-"
