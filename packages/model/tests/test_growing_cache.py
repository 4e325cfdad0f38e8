"""The growing cache against transformers' own, which copies everything in every step."""

import copy

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from flan_moe.model.growing_cache import GrowingLayer, let_grow

ROWS, HEADS, WIDTH = 4, 3, 5


def states(length, rows=ROWS):
    return torch.randn(rows, HEADS, length, WIDTH), torch.randn(rows, HEADS, length, WIDTH)


class Both:
    """A growing layer and the plain one that it must equal."""

    def __init__(self):
        self.layers = (GrowingLayer(), DynamicLayer())

    def update(self, length, rows=ROWS):
        new = states(length, rows)
        returned = [layer.update(*new) for layer in self.layers]
        self.check()
        for ours, theirs in zip(*returned, strict=True):
            assert torch.equal(ours, theirs)
        return returned[0]

    def do(self, action):
        for layer in self.layers:
            action(layer)
        self.check()

    def check(self):
        ours, theirs = self.layers
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


@torch.no_grad()
def test_any_steps_hold_what_the_plain_layer_holds():
    both = Both()
    for length in (3, 1, 1, 2, 1, 40, 1, 1):
        both.update(length)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda layer: layer.reorder_cache(torch.tensor([1, 1, 0, 3])), ROWS),
        (lambda layer: layer.batch_repeat_interleave(2), 2 * ROWS),
        (lambda layer: layer.batch_select_indices(torch.tensor([2, 0])), 2),
        (lambda layer: layer.crop(-2), ROWS),
        (lambda layer: setattr(layer, "keys", layer.keys.clone()), ROWS),
        (lambda layer: setattr(layer, "values", layer.values[..., :WIDTH].contiguous()), ROWS),
    ],
    ids=["beams", "repeat", "select", "crop", "keys replaced", "values replaced"],
)
def test_what_is_done_to_a_layer_between_steps_counts(change, rows):
    both = Both()
    for _ in range(4):
        both.update(1)
    both.do(change)
    for _ in range(5):
        both.update(1, rows)


@torch.no_grad()
@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32])
def test_of_two_dtypes_the_wider_is_kept(first):
    both = Both()
    dtypes = [first, first, first, torch.float32, torch.bfloat16, torch.float32]
    for dtype in dtypes:
        keys, values = states(1)
        for layer in both.layers:
            layer.update(keys.to(dtype), values.to(first))
        both.check()
    assert both.layers[0].keys.dtype == torch.float32
    assert both.layers[0].values.dtype == first


@torch.no_grad()
def test_a_step_writes_only_what_is_new():
    layer = GrowingLayer()
    layer.update(*states(8))
    layer.update(*states(1))
    place = layer.keys.data_ptr()
    for _ in range(8):
        layer.update(*states(1))
        assert layer.keys.data_ptr() == place


@torch.no_grad()
def test_beams_cost_no_room():
    layer = GrowingLayer()
    for _ in range(9):
        layer.update(*states(1))
        layer.reorder_cache(torch.tensor([1, 1, 0, 3]))
    held = {layer.keys.untyped_storage().nbytes(), layer.values.untyped_storage().nbytes()}
    assert layer._room is None
    assert held == {layer.keys.nbytes}


@torch.no_grad()
def test_a_step_of_other_rows_is_refused_and_changes_nothing():
    layer = GrowingLayer()
    for _ in range(3):
        layer.update(*states(1))
    held = layer.keys.clone()
    with pytest.raises(RuntimeError, match="Expected size 4 but got size 1"):
        layer.update(*states(1, rows=1))
    assert torch.equal(layer.keys, held)


@torch.no_grad()
def test_what_was_read_from_a_cache_stays_after_a_crop():
    layer = GrowingLayer()
    for _ in range(4):
        layer.update(*states(1))
    read = layer.keys
    before = read.clone()
    layer.crop(-2)
    layer.update(*states(1))
    assert torch.equal(read, before)


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copied_cache_goes_its_own_way(copied):
    layer = GrowingLayer()
    for _ in range(3):
        layer.update(*states(1))
    other = copied(layer)
    held = layer.keys.clone()
    other.update(*states(1))
    layer.update(*states(1))
    assert torch.equal(layer.keys[..., :3, :], held)
    assert torch.equal(other.keys[..., :3, :], held)
    assert not torch.equal(layer.keys, other.keys)


def test_gradients_pass_through_a_cache():
    both = Both()
    new = states(2)
    with torch.no_grad():
        both.update(1)
        both.update(1)
    leaf = new[0].clone().requires_grad_()
    keys, _ = both.layers[0].update(leaf, new[1])
    keys, _ = both.layers[0].update(*states(1))
    keys.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_a_cache_of_inference_mode_can_be_used_outside_of_it():
    both = Both()
    with torch.inference_mode():
        both.update(1)
        both.update(1)
    with torch.no_grad():
        both.update(1)
        both.update(1)
    with torch.inference_mode():
        both.update(1)


def test_only_empty_plain_caches_are_made_to_grow():
    class OtherCache(DynamicCache):
        pass

    filled, other = DynamicCache(), OtherCache()
    filled.update(*states(1), 0)
    for part in (filled, other):
        before = list(part.layers)
        let_grow(EncoderDecoderCache(part, DynamicCache()), 2)
        assert part.layers == before
    empty = EncoderDecoderCache(DynamicCache(), DynamicCache())
    let_grow(empty, 2)
    assert [type(layer) for layer in empty.self_attention_cache.layers] == [GrowingLayer] * 2
