"""What the host decides at each launch: programs, precision, and how a weight is loaded."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from flan_moe.experts.kernels.config import TileConfig

_INTERPRETER_PROGRAMS = 3
_TMA_ALIGNMENT = 16  # bytes


def programs(pieces: int, device: torch.device, config: TileConfig) -> int:
    """How many programs of a persistent kernel share ``pieces`` of work: no more than fit.

    Tensors on CPU can only mean Triton's interpreter, where a few programs show what many do.
    """
    if device.type == "cuda":
        resident = torch.cuda.get_device_properties(device).multi_processor_count
        resident *= config.programs_per_sm
    else:
        resident = _INTERPRETER_PROGRAMS
    return max(1, min(pieces, resident))


def dot_precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied: as torch would, by ``torch.backends.cuda.matmul``."""
    if dtype != torch.float32:
        return "ieee"
    settings = torch.backends.cuda.matmul
    if hasattr(settings, "fp32_precision"):  # torch 2.9; the older name may raise then
        return "tf32" if settings.fp32_precision == "tf32" else "ieee"
    return "tf32" if settings.allow_tf32 else "ieee"


def weight_load(w_EKN: Tensor, config: TileConfig, *by_descriptor: str) -> str:
    """How a kernel is to read ``w_EKN``: "pointers", "descriptor" or "transposed".

    A descriptor where ``config.tma`` asks for one, memory allows it, and the kernel knows how: N
    has unit stride ("descriptor") or K ("transposed"), and the first element and every other stride
    are aligned to 16 bytes. Else pointers, which read any strides. See `operands.weight_source`.

    Args:
        w_EKN: the weight.
        config: of the kernel.
        by_descriptor: which of "descriptor" and "transposed" the kernel knows.
    """
    stride_e, stride_k, stride_n = w_EKN.stride()
    load, outer = ("descriptor", stride_k) if stride_n == 1 else ("transposed", stride_n)
    unit = 1 in (stride_k, stride_n)
    known = config.tma and load in by_descriptor
    if not (known and unit and _descriptor_fits(w_EKN, [stride_e, outer])):
        return "pointers"
    triton.set_allocator(_allocate)
    return load


def rows_load(rows_RK: Tensor, config: TileConfig) -> str:
    """How a kernel is to read consecutive rows: "descriptor" or "pointers", by the same rule."""
    stride_r, stride_k = rows_RK.stride()
    if not config.tma or stride_k != 1 or not _descriptor_fits(rows_RK, [stride_r]):
        return "pointers"
    triton.set_allocator(_allocate)
    return "descriptor"


def _descriptor_fits(tensor: Tensor, strides: list[int]) -> bool:
    """Whether memory is aligned as a descriptor needs; ``strides`` are in elements."""
    size = tensor.element_size()
    return tensor.data_ptr() % _TMA_ALIGNMENT == 0 and all(
        stride > 0 and stride * size % _TMA_ALIGNMENT == 0 for stride in strides
    )


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory in which a kernel builds its descriptors; torch's alignment is 512 bytes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
