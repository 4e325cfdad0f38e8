"""torch.compile: one graph where nothing is padded, the same numbers everywhere."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(module, **options):
    return torch.compile(module, backend="aot_eager", **options)


@pytest.mark.parametrize(("stack", "training"), [("encoder", True), ("decoder", False)])
def test_each_block_is_one_graph(sparse_model, batch, stack, training):
    """Dense and sparse blocks at the shapes of a batch with padding."""
    model = sparse_model(num_layers=2).train(training)
    calls = []
    hooks = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((module, args, kwargs)), with_kwargs=True
        )
        for block in getattr(model, stack).layers
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    assert len(calls) == model.config.layer_count(stack)
    for block, args, kwargs in calls:
        args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        expected, _ = block(*args, **kwargs)
        found, _ = compiled(block, fullgraph=True)(*args, **kwargs)
        torch.testing.assert_close(found, expected)


def test_a_batch_without_padding_is_one_graph(sparse_model, batch):
    model = sparse_model(num_layers=2)
    inputs = {"input_ids": batch["input_ids"], "decoder_input_ids": batch["input_ids"][:, :5]}
    whole = compiled(model, fullgraph=True)
    torch.testing.assert_close(whole(**inputs).logits, model(**inputs).logits)


def test_padding_breaks_the_graph_where_tokens_are_counted_and_nowhere_else(sparse_model, batch):
    model = sparse_model(num_layers=2)
    explained = torch._dynamo.explain(model)(**batch)
    assert explained.graph_break_count > 0
    assert all("nonzero" in str(reason.reason) for reason in explained.break_reasons)


def test_training_steps_are_the_same(sparse_model, batch):
    model = sparse_model(num_layers=2, z_coef=0.1).train()
    losses, gradients = [], []
    for run in (model, compiled(model)):
        model.zero_grad()
        loss = run(**batch).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0])
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected)
