import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.model.segments import (
    TokenLayout,
    may_attend,
    may_attend_across,
    may_attend_causal,
)
from flan_moe.model.shift import shift_right, trailing_layout

SEGMENTS = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 2, 2, 3, 0, 0]])


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_flatten_takes_the_real_tokens_and_pad_puts_them_back(rows):
    segments = torch.tensor(rows)
    layout = TokenLayout.from_segments(segments)
    x = torch.randn(*segments.shape, 2)
    flat = layout.flatten(x)
    assert torch.equal(flat, x[segments > 0])
    assert layout.num_tokens == flat.shape[0]
    assert torch.equal(layout.pad(flat), x * (segments > 0)[..., None])


def test_a_batch_without_padding_is_a_view():
    layout = TokenLayout.from_mask(torch.ones(2, 3))
    x = torch.randn(2, 3, 4)
    assert layout.index_T is None
    assert layout.flatten(x).data_ptr() == layout.pad(layout.flatten(x)).data_ptr() == x.data_ptr()


def test_sequences_are_numbered_through_the_batch():
    layout = TokenLayout.from_segments(SEGMENTS)
    expected = [0, 0, 1, 1, 1, 2, 3, 3, 4]
    assert layout.sequence_ids(SEGMENTS.device).tolist() == expected
    mask = TokenLayout.from_mask(torch.tensor([[1, 1, 0], [0, 1, 1]]))
    assert mask.sequence_ids(SEGMENTS.device).tolist() == [0, 0, 1, 1]


def test_self_attention_stays_inside_segments():
    allowed = may_attend(TokenLayout.from_segments(SEGMENTS))
    for b, q, k in torch.cartesian_prod(torch.arange(2), torch.arange(6), torch.arange(6)):
        if SEGMENTS[b, q]:
            assert allowed[b, 0, q, k] == (SEGMENTS[b, q] == SEGMENTS[b, k])
    assert allowed.any(-1).all()  # no empty rows, which would make NaN


def test_causal_attention_looks_at_the_past_of_its_segment():
    segments = may_attend(TokenLayout.from_segments(SEGMENTS))
    allowed = may_attend_causal(6, 6, segments, SEGMENTS.device)
    for b, q, k in torch.cartesian_prod(torch.arange(2), torch.arange(6), torch.arange(6)):
        if SEGMENTS[b, q]:
            assert allowed[b, 0, q, k] == (SEGMENTS[b, q] == SEGMENTS[b, k] and k <= q)


def test_causal_attention_after_cached_positions():
    allowed = may_attend_causal(2, 5, None, SEGMENTS.device)
    assert allowed.tolist() == [[True] * 4 + [False], [True] * 5]
    assert may_attend_causal(1, 5, None, SEGMENTS.device) is None


def test_cross_attention_joins_equal_segments():
    decoder = torch.tensor([[1, 2, 2, 0], [3, 3, 1, 2]])
    allowed = may_attend_across(
        TokenLayout.from_segments(decoder), TokenLayout.from_segments(SEGMENTS)
    )
    for b, q, k in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(6)):
        if decoder[b, q]:
            assert allowed[b, 0, q, k] == (decoder[b, q] == SEGMENTS[b, k])


def test_a_decoder_segment_without_encoder_tokens_is_refused():
    decoder = TokenLayout.from_segments(torch.tensor([[1, 1], [1, 4]]))
    with pytest.raises(ValueError, match=r"decoder_segments\[1\] has segment 4, which encoder_seg"):
        may_attend_across(decoder, TokenLayout.from_segments(SEGMENTS))


def test_orphans_are_looked_for_only_where_nobody_waits():
    """Values on the meta device cannot be read, as those on a GPU cannot without waiting."""

    def layout(length):
        segments = torch.ones(2, length, dtype=torch.long, device="meta")
        return TokenLayout(batch_size=2, length=length, segments_BS=segments, packed=True)

    assert may_attend_across(layout(2), layout(6)).shape == (2, 1, 2, 6)


def test_packing_one_side_only_is_refused():
    packed = TokenLayout.from_segments(SEGMENTS)
    with pytest.raises(ValueError, match="must be given together"):
        may_attend_across(TokenLayout.every_position(2, 3), packed)
    with pytest.raises(ValueError, match="decoder has 3 rows, the encoder 2"):
        may_attend_across(TokenLayout.every_position(3, 3), TokenLayout.every_position(2, 3))


def test_every_segment_starts_with_the_start_token():
    labels = torch.tensor([[5, 1, 6, 7, 1, -100]])
    segments = torch.tensor([[1, 1, 2, 2, 2, 0]])
    packed = shift_right(labels, start_token_id=9, pad_token_id=0, segments_BL=segments)
    assert packed[:, :5].tolist() == [[9, 5, 9, 6, 7]]
    plain = shift_right(labels, start_token_id=9, pad_token_id=0)
    assert plain.tolist() == [[9, 5, 1, 6, 7, 1]]
    holes = shift_right(torch.tensor([[5, -100, 6]]), start_token_id=9, pad_token_id=0)
    assert holes.tolist() == [[9, 5, 0]]


def test_only_trailing_positions_without_loss_are_padding():
    layout = trailing_layout(torch.tensor([[-100, 4, -100, 5, -100], [3, 3, 3, 3, 3]]))
    assert layout.index_T.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
