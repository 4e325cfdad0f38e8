"""Adafactor: the library's on matrices and vectors, and on a stack as if each expert were alone."""

import pytest
import torch
from transformers.optimization import Adafactor as LibraryAdafactor

from flan_moe.train.adafactor import ExpertAdafactor

STEPS = 7


def gradients(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-3, 1, STEPS)
    return [torch.randn(shape, generator=generator) * scale for scale in scales]


def run(optimizer_of, start, grads):
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optimizer_of([parameter])
    for gradient in grads:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7,)])
@pytest.mark.parametrize("scale_parameter", [True, False])
def test_matrices_and_vectors_are_treated_as_by_transformers(shape, scale_parameter):
    start, grads = torch.randn(shape, generator=torch.Generator().manual_seed(1)), gradients(shape)
    ours = run(
        lambda p: ExpertAdafactor(
            p, lr=0.03, scale_parameter=scale_parameter, min_dim_size_to_factor=1
        ),
        start,
        grads,
    )
    theirs = run(
        lambda p: LibraryAdafactor(
            p, lr=0.03, relative_step=False, scale_parameter=scale_parameter
        ),
        start,
        grads,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert (ours - start).abs().max() > 1e-3, "the comparison must be of real updates"


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [1, 128])
def test_each_expert_is_optimised_as_if_it_were_alone(weight_decay, threshold):
    """T5X's BATCH axis: factoring, clipping and parameter scale all stay within an expert."""
    experts, shape = 4, (6, 10)
    generator = torch.Generator().manual_seed(2)
    # Experts of very different scale, one of them with exploding gradients: sharing anything shows.
    scale = torch.tensor([1e-4, 0.1, 1.0, 30.0])[:, None, None]
    start = torch.randn(experts, *shape, generator=generator) * scale
    grads = [g * scale.flip(0) for g in gradients((experts, *shape))]

    def optimizer(p):
        return ExpertAdafactor(
            p, lr=0.03, weight_decay=weight_decay, min_dim_size_to_factor=threshold
        )

    stacked = run(optimizer, start, grads)
    alone = [run(optimizer, start[e], [g[e] for g in grads]) for e in range(experts)]
    torch.testing.assert_close(stacked, torch.stack(alone), rtol=1e-6, atol=0)


def test_the_library_lets_one_expert_shorten_the_steps_of_another():
    """Why there is an Adafactor here at all; when this fails, the library's will do."""
    quiet = torch.ones(6, 10)
    grads = [torch.ones(6, 10)]
    wild = [torch.ones(6, 10).index_fill(0, torch.tensor([0]), 1e4)]
    start = torch.stack([quiet, 50 * quiet])

    def optimizer(p):
        return LibraryAdafactor(p, lr=0.1, relative_step=False, scale_parameter=True)

    stacked = run(optimizer, start, [torch.stack([grads[0], wild[0]])])
    alone = run(optimizer, start[0], grads)
    assert not torch.allclose(stacked[0], alone, rtol=0.1)


@pytest.mark.parametrize("shape", [(6, 10), (4, 6, 10)])
@pytest.mark.parametrize(("threshold", "factored"), [(6, True), (7, False)])
def test_an_expert_is_factored_where_a_lone_matrix_of_its_size_is(shape, threshold, factored):
    """Otherwise a sparse model and its dense twin are trained by two optimizers."""
    parameter = torch.nn.Parameter(torch.ones(shape))
    optimizer = ExpertAdafactor([parameter], lr=0.1, min_dim_size_to_factor=threshold)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    sizes = {key: value.shape for key, value in optimizer.state[parameter].items()}
    whole = {"step": (), "square": shape}
    rows_and_columns = {"step": (), "row": shape[:-1], "column": (*shape[:-2], shape[-1])}
    assert sizes == (rows_and_columns if factored else whole)


def test_the_step_size_is_the_learning_rate_times_the_parameter_scale():
    """A constant gradient gives an update of root mean square 1, so the step is lr * rms(w)."""
    start = torch.full((8, 8), 2.0)
    moved = run(
        lambda p: ExpertAdafactor(p, lr=0.01, min_dim_size_to_factor=1), start, [torch.ones(8, 8)]
    )
    torch.testing.assert_close(start - moved, torch.full((8, 8), 0.02))


def test_experts_without_tokens_stay_where_they_are():
    """An expert that got no tokens has a zero gradient; it must not become NaN or move."""
    start = torch.ones(2, 4, 4)
    grads = [torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])] * 3
    moved = run(lambda p: ExpertAdafactor(p, lr=0.1), start, grads)
    assert torch.equal(moved[0], start[0])
    assert not torch.equal(moved[1], start[1])


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0},
        {"lr": 1, "decay": -1},
        {"lr": 1, "weight_decay": -1},
        {"lr": 1, "min_dim_size_to_factor": 0},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="expected a"):
        ExpertAdafactor([torch.nn.Parameter(torch.ones(1))], **bad)
