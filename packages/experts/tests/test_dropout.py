"""Expert dropout: its statistics, its seeding, and that both backends drop the same elements."""

import pytest
import torch

from flan_moe.experts import ExpertWeights, expert_ffn
from flan_moe.experts.dropout import Dropout, _words_numpy, _words_torch, dropout_scale
from flan_moe.routing import build_routing


def one_expert(tokens):
    """Every token to the only expert with weight one."""
    return build_routing(
        token_N=torch.arange(tokens),
        expert_N=torch.zeros(tokens, dtype=torch.int64),
        weight_N=torch.ones(tokens),
        num_tokens=tokens,
        num_experts=1,
        losses={},
        stats={},
    )


def hidden(x_TF, *, backend="grouped", **options):
    """The dropped-out hidden activation itself: identity weights, ReLU of positive inputs."""
    eye = torch.eye(x_TF.shape[1])[None]
    return expert_ffn(
        x_TF,
        one_expert(x_TF.shape[0]),
        ExpertWeights(eye, eye),
        activation="relu",
        backend=backend,
        **options,
    )


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.5, 0.9])
def test_fraction_dropped_and_expectation(probability):
    torch.manual_seed(0)
    y_TF = hidden(torch.ones(400, 250), dropout=probability, training=True)
    # 100 000 independent elements: five standard deviations.
    bound = 5 * (probability * (1 - probability) / 1e5) ** 0.5
    assert abs(float((y_TF == 0).float().mean()) - probability) < bound
    kept = y_TF[y_TF != 0]
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (1 - probability)), rtol=1e-3, atol=0
    )
    # Neither neighbouring columns nor neighbouring rows are correlated.
    dropped = (y_TF == 0).float() - probability
    variance = probability * (1 - probability)
    for shifted in (dropped[1:] * dropped[:-1], dropped[:, 1:] * dropped[:, :-1]):
        assert abs(float(shifted.mean())) < 5 * variance / 1e5**0.5


@pytest.mark.parametrize("backend", ["reference", "grouped"])
def test_off_in_evaluation_and_at_probability_zero(backend):
    x_TF = torch.rand(20, 10)
    state = torch.get_rng_state()
    assert torch.equal(hidden(x_TF, backend=backend, dropout=0.5, training=False), x_TF)
    assert torch.equal(hidden(x_TF, backend=backend, dropout=0.0, training=True), x_TF)
    assert torch.equal(torch.get_rng_state(), state)  # and draws nothing


@pytest.mark.parametrize("backend", ["reference", "grouped"])
def test_probability_one_drops_everything_with_finite_zero_gradients(backend):
    x_TF = torch.rand(20, 10, requires_grad=True)
    y_TF = hidden(x_TF, backend=backend, dropout=1.0, training=True)
    assert torch.equal(y_TF, torch.zeros(20, 10))
    y_TF.sum().backward()
    assert torch.equal(x_TF.grad, torch.zeros(20, 10))


def test_mask_follows_torchs_generator_and_advances_it():
    x_TF = torch.ones(30, 30)
    torch.manual_seed(3)
    first, second = (hidden(x_TF, dropout=0.5, training=True) for _ in range(2))
    torch.manual_seed(3)
    again = hidden(x_TF, dropout=0.5, training=True, backend="reference")
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def scale_of(probability, rows, width, seed=1, **options):
    return dropout_scale(Dropout(torch.tensor([seed]), probability), rows, width, **options)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_scale_of_odd_sizes(rows):
    scale_RF = scale_of(0.5, rows, 7)
    assert scale_RF.shape == (rows, 7)
    assert set(scale_RF.unique().tolist()) <= {0.0, 2.0}


def test_rows_are_the_same_whichever_part_is_asked_for():
    whole_RF = scale_of(0.3, 20, 37)
    assert torch.equal(scale_of(0.3, 9, 37, first_row=6), whole_RF[6:15])


def test_scale_is_unbiased_after_rounding_the_probability():
    # 0.3 is rounded to 19661 / 65536; the scale belongs to that value.
    assert float(scale_of(0.3, 100, 100).max()) == pytest.approx(65536 / (65536 - 19661), rel=1e-7)


def test_a_probability_below_half_a_level_drops_nothing():
    assert torch.equal(scale_of(5e-6, 1000, 1000), torch.ones(1000, 1000))


def test_bits_are_those_of_philox_4x64():
    # Known answers of Random123 (kat_vectors, philox4x64 10 rounds): counter and key of zeros.
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    words = _words_numpy(torch.tensor([0]), 0, 1)
    assert [word % 2**64 for word in words.tolist()] == expected


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345, 2**63 - 2])
@pytest.mark.parametrize("first", [0, 7, 2**40])
def test_every_device_makes_the_same_bits(seed, first):
    # What a device without numpy's generator computes in integer tensors, run on the CPU.
    seed_1 = torch.tensor([seed])
    assert torch.equal(_words_numpy(seed_1, first, 100), _words_torch(seed_1, first, 100))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_mask_of_the_cpu():
    draw = Dropout(torch.tensor([11]), 0.3)
    on_gpu = dropout_scale(Dropout(draw.seed.cuda(), 0.3), 50, 37)
    assert torch.equal(on_gpu.cpu(), dropout_scale(draw, 50, 37))
