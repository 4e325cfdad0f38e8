"""Selection names every expert at most once, whatever the scores are."""

import pytest
import torch

from flan_moe.routing.second_expert import sampled_second
from flan_moe.routing.select import preferred_experts

RULED_OUT = torch.tensor([[-torch.inf, 0.5, -torch.inf, -torch.inf, 0.7, -torch.inf]])


@pytest.mark.parametrize("k", range(1, 7))
def test_experts_that_are_ruled_out_follow_in_order_and_never_twice(k):
    assert preferred_experts(RULED_OUT, k).tolist() == [[4, 1, 0, 2, 3, 5][:k]]
    assert preferred_experts(torch.full((1, 6), torch.nan), k).tolist() == [list(range(k))]


@pytest.mark.parametrize("first", range(3))
def test_a_second_expert_is_another_one_where_all_others_are_ruled_out(first):
    scores_TE = torch.full((5, 3), -torch.inf)
    scores_TE[:, first] = 1.0
    chosen_TK = sampled_second(scores_TE, scores_TE)
    assert (chosen_TK[:, 0] == first).all()
    assert (chosen_TK[:, 1] != first).all()
