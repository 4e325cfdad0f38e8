"""A slow router that handles one token at a time in plain Python, written from the rules.

It shares nothing with the package but the options' names and, because ties are decided on float32
values, the elementwise score function of torch. Weights and losses are computed in float64.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class Expected:
    """What a router must return."""

    rows: dict = field(default_factory=dict)  # (expert, token) -> weight
    choice_counts: list = field(default_factory=list)
    balance: float = 0.0
    z: float = 0.0


def route(logits, config, training, *, uniform=None, gumbel=None, bias=None, table=None, ids=None):
    """Route (T, E) float32 logits of one group of tokens.

    ``uniform`` (T,) and ``gumbel`` (T, E) are the draws of a random second expert, ``bias`` (E,) a
    selection bias, ``table`` (V, K) and ``ids`` (T,) a hash router's.
    """
    scores = scores_of(logits, config.score)
    tokens, experts = logits.shape
    if config.selection == "expert_choice":
        chosen, rows = experts_choose(logits, scores, config, training)
        counts = [sum(1 for e, _ in chosen if e == i) for i in range(experts)]
        return Expected(rows, counts, 0.0, z_of(logits))
    policy = config.second_expert if training else config.eval_second_expert
    choices = [
        choose(t, logits, scores, config, policy, gumbel, bias, table, ids) for t in range(tokens)
    ]
    wanted = {(t, j) for t in range(tokens) for j in range(config.top_k)}
    if policy in ("threshold", "random"):
        for t in range(tokens):
            first, second = (np.float32(scores[t, e]) for e in choices[t])
            if config.score == "top_k_softmax":  # these scores are logits
                first, second = np.float32(1), np.exp(second - first)
            share = second / max(np.float32(first + second), np.float32(1e-9))
            limit = config.second_threshold
            if policy == "random":
                limit = np.float32(uniform[t]) * np.float32(config.second_threshold)
            if not share > np.float32(limit):
                wanted.discard((t, 1))
    kept = serve(choices, scores, wanted, config, capacity_of(config, training, tokens, experts))
    rows = {}
    for t, j in sorted(kept):
        rows[choices[t][j], t] = weight_of(t, j, choices, logits, scores, kept, config)
    counts = [sum(c.count(e) for c in choices) for e in range(experts)]
    return Expected(rows, counts, balance_of(choices, logits, scores, config), z_of(logits))


def scores_of(logits, score):
    tensor = torch.from_numpy(logits)
    if score == "softmax":
        return tensor.softmax(dim=-1).numpy()
    if score == "sigmoid":
        return tensor.sigmoid().numpy()
    if score == "sqrt_softplus":
        return torch.nn.functional.softplus(tensor).sqrt().numpy()
    return logits


def choose(t, logits, scores, config, policy, gumbel, bias, table, ids):
    """The experts of one token, best first."""
    experts, k = logits.shape[1], config.top_k
    if config.selection == "hash":
        return [int(e) for e in table[ids[t]]]
    if config.selection == "uniform":
        return [(t * k + j) % experts for j in range(k)]
    worth = [
        np.float32(scores[t, e] + (bias[e] if bias is not None else 0)) for e in range(experts)
    ]
    allowed = set(range(experts))
    if config.top_groups < config.num_groups:
        size = experts // config.num_groups
        groups = [range(g * size, (g + 1) * size) for g in range(config.num_groups)]
        values = [np.float32(sum(sorted((worth[e] for e in g), reverse=True)[:2])) for g in groups]
        best = sorted(range(len(groups)), key=lambda g: (-values[g], g))[: config.top_groups]
        allowed = {e for g in best for e in groups[g]}
    ranked = sorted(allowed, key=lambda e: (-worth[e], e))
    if policy == "sampling":
        others = [e for e in range(experts) if e != ranked[0]]
        return [ranked[0], max(others, key=lambda e: (logits[t, e] + gumbel[t, e], -e))]
    return ranked[:k]


def capacity_of(config, training, tokens, experts):
    factor = config.capacity_factor if training else config.eval_capacity_factor
    if factor is None and config.selection == "expert_choice":
        factor = config.capacity_factor
    if factor is None:
        return None
    k = config.top_k if config.capacity_per == "total" else 1
    even = factor * tokens * k / experts
    size = {
        "round": round(even),
        "floor": int(even),
        "ceil": int(even) + (even > int(even)),
        "per_choice_ceil": k * int(factor * (-(-tokens // experts))),
    }[config.capacity_rounding]
    size = max(size, config.min_capacity)
    while size % config.capacity_multiple:
        size += 1
    return min(size, tokens)


def serve(choices, scores, wanted, config, capacity):
    """The (token, choice) pairs that find room, served one after the other."""
    tokens, k = len(choices), config.top_k
    left_to_right = list(range(tokens))
    if config.drop_order == "priority":
        left_to_right.sort(key=lambda t: (-scores[t, choices[t][0]], t))
    queue = [(t, j) for j in range(k) for t in left_to_right]
    if config.drop_order == "token":
        queue = [(t, j) for t in range(tokens) for j in range(k)]
    if config.drop_order == "gate":
        queue.sort(key=lambda pair: (-scores[pair[0], choices[pair[0]][pair[1]]], pair))
    room, kept = {}, set()
    for t, j in queue:
        expert = choices[t][j]
        if (t, j) in wanted and (capacity is None or room.get(expert, 0) < capacity):
            room[expert] = room.get(expert, 0) + 1
            kept.add((t, j))
    return kept


def gate(t, e, logits, scores, config):
    """A gate before renormalising, in float64; relative to others of its token only."""
    if config.score in ("softmax", "top_k_softmax"):
        row = logits[t].astype(np.float64)
        return math.exp(row[e] - row.max()) / np.exp(row - row.max()).sum()
    return float(scores[t, e])


def weight_of(t, j, choices, logits, scores, kept, config):
    if config.weights == "uniform":
        return config.weight_scale / config.top_k
    value = gate(t, choices[t][j], logits, scores, config)
    if config.renormalise != "never" or config.score == "top_k_softmax":
        after = config.renormalise == "after_drop"
        over = [i for i in range(config.top_k) if not after or (t, i) in kept]
        top = max(logits[t, choices[t][i]] for i in over)
        if config.score in ("softmax", "top_k_softmax"):
            exps = {i: math.exp(float(logits[t, choices[t][i]]) - float(top)) for i in over}
            value = exps[j] / sum(exps.values())
        else:
            value /= sum(gate(t, choices[t][i], logits, scores, config) for i in over) + 1e-20
    return value * config.weight_scale


def experts_choose(logits, scores, config, training):
    tokens, experts = logits.shape
    capacity = capacity_of(config, training, tokens, experts)
    chosen = {
        (e, t)
        for e in range(experts)
        for t in sorted(range(tokens), key=lambda t: (-scores[t, e], t))[:capacity]
    }
    rows = {}
    for e, t in chosen:
        value = gate(t, e, logits, scores, config)
        if config.renormalise != "never":
            value /= sum(gate(t, i, logits, scores, config) for i, u in chosen if u == t)
        rows[e, t] = value * config.weight_scale
    return chosen, rows


def probabilities(logits, scores, config):
    """(T, E) float64 that sum to one for each token."""
    if config.score in ("softmax", "top_k_softmax"):
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        return shifted / shifted.sum(axis=-1, keepdims=True)
    scores = scores.astype(np.float64)
    return scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)


def balance_of(choices, logits, scores, config):
    tokens, experts = logits.shape
    if tokens == 0:
        return 0.0
    counted = 1 if config.balance_count == "first_choice" else config.top_k
    counts = [sum(c[:counted].count(e) for c in choices) for e in range(experts)]
    divisor = tokens * (counted if config.balance_normalisation == "one" else 1)
    mean = probabilities(logits, scores, config).mean(axis=0)
    return experts * sum(counts[e] / divisor * mean[e] for e in range(experts))


def z_of(logits):
    if len(logits) == 0:
        return 0.0
    rows = logits.astype(np.float64)
    top = rows.max(axis=-1)
    return float(((np.log(np.exp(rows - top[:, None]).sum(axis=-1)) + top) ** 2).mean())
