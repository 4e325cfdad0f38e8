"""The grouped backend: a few experts at a time over contiguous rows, for CPU and any device.

Rows of one expert are contiguous, so that each expert is a few matrix products on slices, written
straight into preallocated buffers. Neighbouring experts form a chunk of some hundred rows: what
lies between two products is done for a chunk at once, in few calls, while its rows are in the
cache and in scratch memory that the next chunk uses again. Experts without rows are not touched,
except that their weight gradients are set to zero.

Kept for the backward pass is what `backend.Backend` says and no more: the hidden activation is
computed again, the tokens are gathered again, the dropout mask is drawn again, and the expert
outputs are not needed, because the gradient of a row's weight is <dO, a W_o> = <dO W_o^T, a>
(SonicMoE, Guo et al. 2025, section 3).

Reads the expert offsets on the host: no cost on CPU, one wait for the device on a GPU, unless
`torch.nn.functional.grouped_mm` can do the products there. On CPU it makes the same products one
by one into fresh memory, and gains nothing.

Shape suffixes: T tokens, R rows, E experts, D model width, F hidden width, H pre-activation
width, M x N any matrix, P strips of m rows of it; lower-case r: the rows of one expert, c: of one
chunk.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flan_moe.experts import grouped_mm
from flan_moe.experts.backend import Gradients, MainGrads, Options, RowIndex, Wanted
from flan_moe.experts.combine import sum_rows
from flan_moe.experts.dropout import dropout_scale
from flan_moe.experts.hidden import dot, hidden
from flan_moe.experts.weights import ExpertWeights

_CHUNK_ROWS = 256
_FEW_ROWS = range(7, 48)
"""Rows of an expert for which ``(W x^T)^T`` is quicker than ``x W^T``, copy included. Measured with
MKL on two AVX-512 cores, d of 512 to 1024: 1.0 to 1.4 times there, half as quick with 2 rows."""


def forward(
    x_TD: Tensor,
    weights: ExpertWeights,
    row_weight_R: Tensor,
    index: RowIndex,
    options: Options,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `backend.Backend.forward`. Only weights of experts that have rows are read (and cast)."""
    if _by_grouped_mm(x_TD, weights, options):
        return grouped_mm.forward(x_TD, weights, row_weight_R, index, options, keep=keep)
    act, dtype = options.activation, options.matmul_dtype
    wi_EDH, wo_EFD, bi_EH, bo_ED = weights
    offsets = index.expert_offsets.tolist()
    x_cast_TD = x_TD.to(dtype)
    kept_width = wo_EFD.shape[1] if act.keeps_output else wi_EDH.shape[2]
    kept = x_cast_TD.new_empty(row_weight_R.shape[0], kept_width) if keep else None
    chunks = _chunks(offsets)
    h_scratch = None if keep else x_cast_TD.new_empty(_most_rows(chunks), wi_EDH.shape[2])
    y_RD = x_cast_TD.new_empty(offsets[-1], x_TD.shape[1])
    for chunk in chunks:
        x_cD = x_cast_TD.index_select(0, index.row_token_R[chunk.rows])
        h_cH = kept[chunk.rows] if keep else h_scratch[: chunk.size]
        for expert, here in chunk.experts:
            torch.mm(x_cD[here], wi_EDH[expert].to(dtype), out=h_cH[here])
            if bi_EH is not None:
                h_cH[here] += bi_EH[expert]
        a_cF = act.forward_(h_cH)
        if options.dropout is not None:
            a_cF *= dropout_scale(options.dropout, *a_cF.shape, first_row=chunk.rows.start)
        y_cD = y_RD[chunk.rows]
        for expert, here in chunk.experts:
            torch.mm(a_cF[here], wo_EFD[expert].to(dtype), out=y_cD[here])
            if bo_ED is not None:
                y_cD[here] += bo_ED[expert]
    return sum_rows(y_RD, row_weight_R[: offsets[-1]], index, dtype=x_TD.dtype), kept


def backward(
    dy_TD: Tensor,
    x_TD: Tensor | None,
    kept: Tensor,
    weights: ExpertWeights,
    row_weight_R: Tensor,
    index: RowIndex,
    options: Options,
    wanted: Wanted,
    main_grads: MainGrads,
) -> Gradients:
    """See `backend.Backend.backward`. A weight gradient is written once, into one tensor."""
    if _by_grouped_mm(dy_TD, weights, options):
        return grouped_mm.backward(
            dy_TD, x_TD, kept, weights, row_weight_R, index, options, wanted, main_grads
        )
    dtype = options.matmul_dtype
    wi_EDH, wo_EFD, bi_EH, bo_ED = weights
    offsets = index.expert_offsets.tolist()
    needs_dh = wanted.x or wanted.wi or wanted.bi
    x_cast_TD = x_TD.to(dtype) if wanted.wi else None
    dy_cast_TD = dy_TD.to(dtype)
    dx_RD = dy_cast_TD.new_empty(offsets[-1], dy_TD.shape[1]) if wanted.x else None
    dwi_EDH = _gradient_of(wi_EDH, main_grads.wi_EDH) if wanted.wi else None
    dwo_EFD = _gradient_of(wo_EFD, main_grads.wo_EFD) if wanted.wo else None
    add_wi = main_grads.accumulate and main_grads.wi_EDH is not None
    add_wo = main_grads.accumulate and main_grads.wo_EFD is not None
    dbi_EH = bi_EH.new_zeros(bi_EH.shape) if wanted.bi else None
    dbo_ED = bo_ED.new_zeros(bo_ED.shape) if wanted.bo else None
    drow_weight_R = row_weight_R.new_zeros(row_weight_R.shape) if wanted.row_weight else None
    chunks = _chunks(offsets)
    da_scratch = dy_cast_TD.new_empty(_most_rows(chunks), wo_EFD.shape[1])

    for chunk in chunks:
        token_c = index.row_token_R[chunk.rows]
        weight_c1 = row_weight_R[chunk.rows, None]
        dy_cD = dy_cast_TD.index_select(0, token_c)
        a_cF, pullback = hidden(kept[chunk.rows], chunk.rows.start, options)
        if needs_dh or wanted.row_weight:
            # Without the row's weight yet: as such it is what the weight's own gradient needs.
            da_cF = da_scratch[: chunk.size]
            _times_transposed(dy_cD, wo_EFD, chunk, out_cM=da_cF)
        if wanted.row_weight:
            drow_weight_R[chunk.rows] = dot(da_cF, a_cF)
            if bo_ED is not None:
                for expert, here in chunk.experts:
                    drow_weight_R[chunk.rows][here] += dot(dy_cD[here], bo_ED[expert])
        dy_cD *= weight_c1
        if wanted.wo:
            for expert, here in chunk.experts:
                _product_into(dwo_EFD[expert], a_cF[here].T, dy_cD[here], add=add_wo)
        if wanted.bo:
            for expert, here in chunk.experts:
                dbo_ED[expert] = dy_cD[here].sum(0)
        if not needs_dh:
            continue
        dh_cH = pullback(da_cF.mul_(weight_c1))
        if wanted.wi:
            x_cD = x_cast_TD.index_select(0, token_c)
            for expert, here in chunk.experts:
                _product_into(dwi_EDH[expert], x_cD[here].T, dh_cH[here], add=add_wi)
        if wanted.bi:
            for expert, here in chunk.experts:
                dbi_EH[expert] = dh_cH[here].sum(0)
        if wanted.x:
            _times_transposed(dh_cH, wi_EDH, chunk, out_cM=dx_RD[chunk.rows])

    for gradient, add in ((dwi_EDH, add_wi), (dwo_EFD, add_wo)):
        if gradient is not None and not add:
            for expert, (start, end) in enumerate(pairwise(offsets)):
                if start == end:
                    gradient[expert].zero_()
    dx_TD = sum_rows(dx_RD, None, index, dtype=dy_TD.dtype) if wanted.x else None
    return Gradients(
        dx_TD,
        dwi_EDH if main_grads.wi_EDH is None else None,
        dwo_EFD if main_grads.wo_EFD is None else None,
        dbi_EH,
        dbo_ED,
        drow_weight_R,
    )


def _by_grouped_mm(x_TD: Tensor, weights: ExpertWeights, options: Options) -> bool:
    return (
        x_TD.is_cuda
        and grouped_mm.is_available()
        and options.matmul_dtype == torch.bfloat16  # the one that torch has a kernel for
        and grouped_mm.fits(weights, options.matmul_dtype)
    )


def _times_transposed(
    left_cN: Tensor, weight_EMN: Tensor, chunk: _Chunk, *, out_cM: Tensor
) -> None:
    """Each expert's rows times its weight transposed."""
    dtype, on_cpu = left_cN.dtype, left_cN.device.type == "cpu"
    for expert, here in chunk.experts:
        weight_MN = weight_EMN[expert].to(dtype)
        if on_cpu and here.stop - here.start in _FEW_ROWS:
            out_cM[here] = torch.mm(weight_MN, left_cN[here].T).T
        else:
            torch.mm(left_cN[here], weight_MN.T, out=out_cM[here])


def _gradient_of(weight: Tensor, main_grad: Tensor | None) -> Tensor:
    # Contiguous whatever the weight is, as the operator tells the compiler.
    return weight.new_empty(weight.shape) if main_grad is None else main_grad


def _product_into(gradient_MN: Tensor, left_Mc: Tensor, right_cN: Tensor, *, add: bool) -> None:
    """Set an expert's weight gradient to a product, or add the product to it."""
    if gradient_MN.dtype != left_Mc.dtype:  # torch.mm cannot write into a wider dtype
        product_MN = left_Mc @ right_cN
        gradient_MN.add_(product_MN) if add else gradient_MN.copy_(product_MN)
        return
    parts = _parts(left_Mc, right_cN)
    if parts > 1:
        gradient_PmN = gradient_MN.unflatten(0, (parts, -1))
        left_Pmc, right_PcN = left_Mc.unflatten(0, (parts, -1)), right_cN.expand(parts, -1, -1)
        if add:
            gradient_PmN.baddbmm_(left_Pmc, right_PcN)
        else:
            torch.bmm(left_Pmc, right_PcN, out=gradient_PmN)
    elif add:
        gradient_MN.addmm_(left_Mc, right_cN)
    else:
        torch.mm(left_Mc, right_cN, out=gradient_MN)


def _parts(left_Mc: Tensor, right_cN: Tensor) -> int:
    """P, into how many horizontal strips a product is cut, one for each thread.

    With few rows and M > N (the gradient of W_o) MKL divides the work among threads badly: strips
    are written 1.0 to 1.5 times as fast (M = 3072, N = 768; M = 2048, N = 512; two AVX-512 cores).
    """
    height, rows = left_Mc.shape
    threads = torch.get_num_threads()
    pays = (
        left_Mc.device.type == "cpu"
        and left_Mc.dtype == torch.float32
        and rows < _FEW_ROWS.stop
        and height > right_cN.shape[1]
        and height % threads == 0
    )
    return threads if pays else 1


class _Chunk(NamedTuple):
    """Neighbouring experts: their rows, and for each that has any, its place among these."""

    rows: slice
    experts: list[tuple[int, slice]]

    @property
    def size(self) -> int:
        return self.rows.stop - self.rows.start


def _chunks(offsets: list[int]) -> list[_Chunk]:
    """All rows in order, in chunks of at least `_CHUNK_ROWS` but for the last."""
    chunks: list[_Chunk] = []
    first, experts = 0, []
    for expert, (start, end) in enumerate(pairwise(offsets)):
        if end > start:
            experts.append((expert, slice(start - first, end - first)))
        if experts and (end - first >= _CHUNK_ROWS or expert == len(offsets) - 2):
            chunks.append(_Chunk(slice(first, end), experts))
            first, experts = end, []
    return chunks


def _most_rows(chunks: list[_Chunk]) -> int:
    return max((chunk.size for chunk in chunks), default=0)
