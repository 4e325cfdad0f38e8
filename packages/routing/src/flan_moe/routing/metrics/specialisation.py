"""Specialisation: which experts work together, and for which domains and words.

Everything here is a ratio of counts from a (T, K) table of choices. Ratios do not average over
batches but tables concatenate and counts add: gather first, measure once.

Shape suffixes: T tokens, K experts listed per token (-1: none), E experts, G groups (domains D,
vocabulary V).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def expert_counts(
    chosen_TK: Tensor, group_T: Tensor, *, num_experts: int, num_groups: int
) -> Tensor:
    """How many tokens of each group each expert works on: ``N_{g,e}``.

    Args:
        chosen_TK: (T, K) from `chosen_experts`.
        group_T: (T,) integer in [0, G), the group of each token: a task, a language, a token id.
            Negative: the token does not count.
        num_experts: E.
        num_groups: G.

    Returns:
        (G, E) int64. No tokens: zeros.

    Raises:
        ValueError: if the two are not about the same number of tokens.
        RuntimeError: if an expert or a group does not exist.
    """
    _check_groups(chosen_TK, group_T)
    counts = (chosen_TK >= 0) & (group_T >= 0).unsqueeze(-1)
    cell_TK = _cell(group_T.long().unsqueeze(-1), chosen_TK, num_experts, num_groups)
    return _histogram(cell_TK, counts, num_groups * num_experts).reshape(num_groups, num_experts)


@torch.no_grad()
def co_activation(chosen_TK: Tensor, num_experts: int) -> Tensor:
    """Of the tokens of expert i, the share that expert j works on as well: ``N_ij / N_i``.

    N_i is the number of tokens of expert i, N_ij of those with both. Source: OLMoE
    (arXiv 2409.02060, section 5.2).

    Args:
        chosen_TK: (T, K) from `chosen_experts`.
        num_experts: E.

    Returns:
        (E, E) float32 in [0, 1], row i, column j; not symmetric; the diagonal is 1. Independent
        uniform choices of k: (k - 1) / (E - 1) off the diagonal. Top-1: 0 off the diagonal. An
        expert without tokens: a row and a column of zeros, the diagonal too.

    Raises:
        RuntimeError: if an expert does not exist.
    """
    pair_EE = torch.zeros(num_experts, num_experts, dtype=torch.int64, device=chosen_TK.device)
    # One choice against all at a time: T * K memory, where all pairs would take T * K * K.
    for first_T1 in chosen_TK.split(1, dim=-1):
        both_TK = (first_T1 >= 0) & (chosen_TK >= 0)
        cell_TK = _cell(first_T1.long(), chosen_TK, num_experts, num_experts)
        pairs = _histogram(cell_TK, both_TK, num_experts**2)
        pair_EE += pairs.reshape(num_experts, num_experts)
    tokens_E = pair_EE.diagonal().unsqueeze(-1)
    return (pair_EE.double() / tokens_E.clamp(min=1)).float()


@torch.no_grad()
def domain_specialisation(
    chosen_TK: Tensor, domain_T: Tensor, *, num_experts: int, num_domains: int
) -> Tensor:
    """Of the tokens of domain D, the share that expert i works on: ``N_{D,i} / N_D``.

    N_D counts the domain's tokens, with or without experts. Source: OLMoE (arXiv 2409.02060,
    section 5.3).

    Args:
        chosen_TK: (T, K) from `chosen_experts`.
        domain_T: (T,) integer in [0, D); negative: the token does not count.
        num_experts: E.
        num_domains: D.

    Returns:
        (D, E) float32 in [0, 1]. A row sums to the mean number of experts of the domain's
        tokens, k where none are dropped. Unspecialised and balanced: k / E everywhere. An expert
        that sees all of the domain: 1. A domain without tokens: zeros.

    Raises:
        ValueError: if the two are not about the same number of tokens.
    """
    counts_DE = expert_counts(chosen_TK, domain_T, num_experts=num_experts, num_groups=num_domains)
    tokens_D = _histogram(domain_T.long(), domain_T >= 0, num_domains)
    return (counts_DE.double() / tokens_D.clamp(min=1).unsqueeze(-1)).float()


@torch.no_grad()
def vocabulary_specialisation(
    chosen_TK: Tensor, token_id_T: Tensor, *, num_experts: int, vocab_size: int
) -> Tensor:
    """Of the occurrences of a token id, the share that its most frequent expert works on.

    ``max_i N_{x,i} / N_x``, N_x the occurrences of id x. The ratio is OLMoE's vocabulary
    specialisation (arXiv 2409.02060, section 5.4); its whole (V, E) table is
    `domain_specialisation` with token ids for domains. An id that occurs once has share 1
    whatever the router does: leave out rare ids before averaging.

    Args:
        chosen_TK: (T, K) from `chosen_experts`.
        token_id_T: (T,) integer in [0, V), the input (or the predicted) id at each token;
            negative: the token does not count.
        num_experts: E.
        vocab_size: V.

    Returns:
        (V,) float32 in [0, 1]. Unspecialised: k / E. One expert sees every occurrence: 1. An id
        that does not occur: 0.

    Raises:
        ValueError: if the two are not about the same number of tokens.
    """
    table_VE = domain_specialisation(
        chosen_TK, token_id_T, num_experts=num_experts, num_domains=vocab_size
    )
    return table_VE.amax(dim=-1)


@torch.no_grad()
def expert_vocabulary_specialisation(
    chosen_TK: Tensor,
    token_id_T: Tensor,
    *,
    num_experts: int,
    vocab_size: int,
    min_occurrences: int = 8,
) -> Tensor:
    """Per expert, the mean vocabulary specialisation of the token ids that are its own.

    An id is an expert's own if the expert is the id's most frequent one (ties: the lowest index)
    and the id occurs at least ``min_occurrences`` times; the mean of ``N_{x,i} / N_x`` over
    these ids x. Definition ours, after the per-expert averages of OLMoE (section 5.4).

    Args:
        chosen_TK: (T, K) from `chosen_experts`.
        token_id_T: (T,) integer in [0, V); negative: the token does not count.
        num_experts: E.
        vocab_size: V.
        min_occurrences: rarer ids do not count.

    Returns:
        (E,) float32 in [0, 1]. 1: every id of the expert goes to it at every occurrence. 0: the
        expert has no id of its own.

    Raises:
        ValueError: if the two are not about the same number of tokens.
    """
    table_VE = domain_specialisation(
        chosen_TK, token_id_T, num_experts=num_experts, num_domains=vocab_size
    )
    occurrences_V = _histogram(token_id_T.long(), token_id_T >= 0, vocab_size)
    best_V = table_VE.argmax(dim=-1)  # documented to return the first maximum
    share_V = table_VE.gather(-1, best_V.unsqueeze(-1)).squeeze(-1).double()
    owned_V = ((occurrences_V >= min_occurrences) & (share_V > 0)).double()
    total_E = share_V.new_zeros(num_experts).scatter_add_(0, best_V, share_V * owned_V)
    ids_E = share_V.new_zeros(num_experts).scatter_add_(0, best_V, owned_V)
    return (total_E / ids_E.clamp(min=1)).float()


@torch.no_grad()
def normalised_mutual_information(counts_GE: Tensor) -> Tensor:
    """One number for how much group and expert say about each other.

    ``I(G; E) / min(H(G), H(E))`` over assignments drawn uniformly from the counts, where
    I = H(G) + H(E) - H(G, E). Few counts look specialised by chance: I is biased upwards by
    about (G - 1)(E - 1) / 2N nats for N assignments, so compare only at like counts, or with the
    groups shuffled.

    Args:
        counts_GE: (G, E) from `expert_counts`.

    Returns:
        float32 scalar in [0, 1]. Groups use experts in the same proportions: 0. Group determines
        expert, or expert group: 1. A single group or expert in use, or no counts: 0.
    """
    counts_GE = counts_GE.double()
    p_GE = counts_GE / counts_GE.sum().clamp(min=1)
    entropy_G, entropy_E = _entropy(p_GE.sum(dim=1)), _entropy(p_GE.sum(dim=0))
    information = entropy_G + entropy_E - _entropy(p_GE.flatten())
    smaller = torch.minimum(entropy_G, entropy_E)
    known = smaller > 1e-12  # an entropy that should be 0 is only so up to rounding
    ratio = information / torch.where(known, smaller, 1.0)
    return torch.where(known, ratio, 0.0).clamp(0.0, 1.0).float()


def _entropy(p_N: Tensor) -> Tensor:
    return -torch.xlogy(p_N, p_N).sum()


def _cell(row_TK: Tensor, column_TK: Tensor, num_columns: int, num_rows: int) -> Tensor:
    """Cells by number. A column that does not exist is no cell of the next row but none at all."""
    cell_TK = row_TK * num_columns + column_TK
    return torch.where(column_TK < num_columns, cell_TK, num_columns * num_rows)


def _histogram(cell_N: Tensor, counts_N: Tensor, num_cells: int) -> Tensor:
    """Integer histogram of the cells that count; bincount would wait for the device."""
    cell_N = torch.where(counts_N, cell_N, 0).reshape(-1)
    histogram = torch.zeros(num_cells, dtype=torch.int64, device=cell_N.device)
    return histogram.scatter_add_(0, cell_N, counts_N.reshape(-1).long())


def _check_groups(chosen_TK: Tensor, group_T: Tensor) -> None:
    if chosen_TK.ndim != 2 or group_T.shape != chosen_TK.shape[:1]:
        raise ValueError(
            f"choices of shape {tuple(chosen_TK.shape)} with groups of shape "
            f"{tuple(group_T.shape)}; expected (T, K) and (T,)"
        )
