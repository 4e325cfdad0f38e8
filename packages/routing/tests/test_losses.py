"""Each auxiliary loss against its published formula, written out in plain Python."""

import math

import pytest
import torch
from small_routers import D_MODEL, make_router, route

from flan_moe.routing import PRESETS, ROUTER_NAMES, balance_loss, importance_loss, load_loss, z_loss


def written_out(probs, experts, divisor):
    """``E * sum_e f_e P_e`` of one group of tokens, f relative to tokens / divisor."""
    tokens, num_experts = len(probs), len(probs[0])
    total = 0.0
    for e in range(num_experts):
        count = sum(chosen.count(e) for chosen in experts)
        total += count / (tokens * divisor) * sum(row[e] for row in probs) / tokens
    return num_experts * total


def some_tokens(tokens=12, experts=4, k=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(tokens, experts, generator=generator)
    probs_TE = logits_TE.softmax(dim=-1)
    return logits_TE, probs_TE, probs_TE.topk(k, dim=-1).indices


def test_the_two_normalisations_differ_by_k():
    _, probs_TE, expert_TK = some_tokens()
    one = float(balance_loss(probs_TE, expert_TK, normalisation="one"))
    assert one == pytest.approx(written_out(probs_TE.tolist(), expert_TK.tolist(), 2), rel=1e-5)
    k = float(balance_loss(probs_TE, expert_TK, normalisation="k"))
    assert k == pytest.approx(2 * one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalisation": "switch"}, "normalisation='switch': expected 'one' or 'k'"),
        ({"expert_TK": torch.zeros(5, 2).long()}, r"expert_TK has shape \(5, 2\); expected \(12, "),
        ({"expert_TK": torch.zeros(12, 0).long()}, r"expert_TK has shape \(12, 0\); .* at least"),
        ({"expert_TK": torch.zeros(12).long()}, r"expert_TK has shape \(12,\)"),
    ],
)
def test_a_balance_loss_of_something_else_is_refused(change, message):
    _, probs_TE, expert_TK = some_tokens()
    arguments = {"probs_TE": probs_TE, "expert_TK": expert_TK, "normalisation": "one"}
    with pytest.raises(ValueError, match=message):
        balance_loss(**(arguments | change))


def test_first_choices_only():
    _, probs_TE, expert_TK = some_tokens()
    first = float(balance_loss(probs_TE, expert_TK[:, :1], normalisation="one"))
    expected = written_out(probs_TE.tolist(), expert_TK[:, :1].tolist(), 1)
    assert first == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ids", [[0] * 12, [0, 0, 1, 1, 1, 1, 1, 5, 5, 5, 7, 7], [11, 3] * 6])
@pytest.mark.parametrize("normalisation", ["one", "k"])
def test_scope_sequence_is_the_mean_of_each_sequences_own_loss(ids, normalisation):
    _, probs_TE, expert_TK = some_tokens()
    alone = []
    for sequence in sorted(set(ids)):
        mine = [i for i, s in enumerate(ids) if s == sequence]
        probs = [probs_TE[i].tolist() for i in mine]
        experts = [expert_TK[i].tolist() for i in mine]
        alone.append(written_out(probs, experts, 2 if normalisation == "one" else 1))
    loss = balance_loss(
        probs_TE, expert_TK, normalisation=normalisation, sequence_T=torch.tensor(ids)
    )
    assert float(loss) == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def test_scope_global_takes_the_load_of_the_larger_batch():
    _, probs_TE, expert_TK = some_tokens()
    load_E = torch.tensor([10.0, 0.0, 30.0, 8.0])
    loss = balance_loss(probs_TE, expert_TK, normalisation="one", load_E=load_E)
    mean_E = probs_TE.mean(dim=0)
    expected = 4 * sum(float(load_E[e] / 48 * mean_E[e]) for e in range(4))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # The larger batch being this batch, it is the batch loss.
    own_E = torch.bincount(expert_TK.flatten(), minlength=4).float()
    same = balance_loss(probs_TE, expert_TK, normalisation="one", load_E=own_E)
    torch.testing.assert_close(same, balance_loss(probs_TE, expert_TK, normalisation="one"))


BALANCED = {"k": 2.0, "k = 2": 2.0, "k = 8": 8.0, "1": 1.0}


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_the_value_at_balance_is_the_documented_one(name):
    """Undecided probabilities, and a load that is even whatever was chosen."""
    preset = PRESETS[name]
    k = preset.options.get("top_k", 1)
    router = make_router(name, num_experts=16, top_k=k)
    if router.weight is not None:
        torch.nn.init.zeros_(router.weight)
    routing = route(router, torch.randn(64, D_MODEL))
    expected = 0.0 if name == "expert_choice" else BALANCED[preset.balanced_loss]
    # With equal probabilities sum_e f_e P_e = 1 / E whatever f is.
    assert float(routing.losses["balance"].detach()) == pytest.approx(expected, rel=1e-5)


def test_z_loss_is_the_mean_squared_log_partition():
    logits_TE, _, _ = some_tokens()
    rows = logits_TE.tolist()
    expected = sum(math.log(sum(map(math.exp, row))) ** 2 for row in rows) / len(rows)
    assert float(z_loss(logits_TE)) == pytest.approx(expected, rel=1e-5)
    assert float(z_loss(torch.zeros(5, 8))) == pytest.approx(math.log(8) ** 2, rel=1e-6)


def test_importance_is_the_squared_variation_of_summed_probabilities():
    _, probs_TE, _ = some_tokens()
    sums = probs_TE.sum(dim=0).tolist()
    mean = sum(sums) / 4
    expected = sum((s - mean) ** 2 for s in sums) / 4 / mean**2
    assert float(importance_loss(probs_TE)) == pytest.approx(expected, rel=1e-4)
    assert float(importance_loss(torch.full((9, 4), 0.25))) == pytest.approx(0, abs=1e-7)
    assert float(importance_loss(torch.eye(4)[[2] * 9])) == pytest.approx(3.0, rel=1e-5)


def test_load_is_the_squared_variation_of_the_chances_to_be_chosen():
    logits_TE, _, _ = some_tokens()
    noisy_TE = logits_TE + 0.5 * torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    load = [0.0] * 4
    for clean, noisy in zip(logits_TE.tolist(), noisy_TE.tolist(), strict=True):
        threshold = sorted(noisy, reverse=True)[1]
        for e in range(4):
            load[e] += 0.5 * (1 + math.erf((clean[e] - threshold) / 0.5 / math.sqrt(2)))
    mean = sum(load) / 4
    expected = sum((x - mean) ** 2 for x in load) / 4 / mean**2
    assert float(load_loss(logits_TE, noisy_TE, 0.5, k=2)) == pytest.approx(expected, rel=1e-4)


def test_extra_losses_are_computed_where_they_are_asked_for_and_train_the_router():
    router = make_router("top_k", noise=0.5, extra_losses=("importance", "load"))
    x_TD = torch.randn(64, D_MODEL) + 1.0
    losses = route(router, x_TD).losses
    assert set(losses) == {"balance", "z", "importance", "load"}
    for name in ("importance", "load"):
        (gradient,) = torch.autograd.grad(losses[name], router.weight, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert float(route(router.eval(), x_TD).losses["load"]) == 0, "no noise in evaluation"


def test_noise_is_for_training_and_moves_choices_not_the_z_loss():
    router = make_router("top_k", noise=3.0)
    x_TD = torch.randn(64, D_MODEL)
    first, second = route(router, x_TD, seed=0), route(router, x_TD, seed=1)
    assert not torch.equal(first.row_token_R, second.row_token_R)
    assert torch.equal(first.losses["z"], second.losses["z"])
    router.eval()
    first, second = route(router, x_TD, seed=0), route(router, x_TD, seed=1)
    assert torch.equal(first.row_token_R, second.row_token_R)
