import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.t5.modeling_t5 import T5Attention

from flan_moe.model.position_bias import RelativePositionBias, relative_position_bucket


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (4, 3)])
def test_buckets_equal_those_of_transformers(bidirectional, num_buckets, max_distance):
    distance = torch.arange(-3000, 3001)
    expected = T5Attention._relative_position_bucket(
        distance, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    actual = relative_position_bucket(
        distance, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    assert torch.equal(actual, expected)


@given(
    query_length=st.integers(1, 12),
    cached=st.integers(0, 12),
    bidirectional=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_bias_is_the_weight_of_the_bucket_of_each_distance(query_length, cached, bidirectional):
    module = RelativePositionBias(
        num_heads=3, num_buckets=8, max_distance=9, bidirectional=bidirectional
    )
    torch.nn.init.normal_(module.weight)
    key_length = cached + query_length
    bias = module(query_length, key_length)
    assert bias.shape == (1, 3, query_length, key_length)
    assert bias.is_contiguous(), "fused attention on a CPU refuses other strides"
    for i in range(query_length):
        for j in range(key_length):
            bucket = relative_position_bucket(
                torch.tensor(j - (cached + i)),
                bidirectional=bidirectional,
                num_buckets=8,
                max_distance=9,
            )
            assert torch.equal(bias[0, :, i, j], module.weight[bucket])
