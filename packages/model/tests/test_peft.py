"""LoRA of PEFT on attention and on stacked experts."""

import pytest
import torch

peft = pytest.importorskip("peft", reason="PEFT is not a dependency; install it to run these")

ATTENTION = {"target_modules": ["q", "v"]}
EXPERTS = {"target_modules": [], "target_parameters": ["experts.wi", "experts.wo"]}


def adapt(model, targets):
    return peft.get_peft_model(model, peft.LoraConfig(r=2, lora_dropout=0.0, **targets))


@pytest.mark.parametrize("targets", [ATTENTION, EXPERTS], ids=["attention", "experts"])
def test_an_adapter_starts_at_nothing_trains_alone_and_merges(sparse_model, batch, targets):
    model = sparse_model()
    with torch.no_grad():
        before = model(**batch).logits
        frozen = {name: weight.clone() for name, weight in model.named_parameters()}
    adapted = adapt(model, targets)
    torch.testing.assert_close(adapted(**batch).logits, before)

    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = adapted(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(p.grad.abs().sum() > 0 for p in trained.values())

    with torch.no_grad():
        after = adapted(**batch).logits
        assert (after - before).abs().max() > 1e-3
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, after)
    changed = {n for n, p in merged.named_parameters() if not torch.equal(p, frozen[n])}
    endings = tuple(targets.get("target_parameters") or (".q.weight", ".v.weight"))
    assert changed == {name for name in frozen if name.endswith(endings)}


@pytest.mark.parametrize("targets", [ATTENTION, EXPERTS], ids=["attention", "experts"])
def test_an_adapted_model_generates_and_its_adapter_is_saved(
    sparse_model, batch, targets, tmp_path
):
    adapted = adapt(sparse_model(), targets).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    arguments = {**ids, "max_new_tokens": 5, "no_repeat_ngram_size": 1}
    expected = adapted.generate(**arguments)
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(sparse_model(), tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, adapted(**batch).logits)
    assert torch.equal(loaded.generate(**arguments), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q", "shared"]},
        {"target_modules": ["q"], "modules_to_save": ["shared"]},
        {"target_modules": ["q"], "trainable_token_indices": {"shared": [5, 6]}},
    ],
    ids=["LoRA", "whole", "tokens"],
)
def test_an_adapted_embedding_is_the_one_that_is_read(sparse_model, batch, options):
    model = sparse_model()
    batch["input_ids"][:, 0] = 5
    batch["labels"][:, 0] = 6
    adapted = adapt(model, options)
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad and "shared" in n}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):  # LoRA's second matrix starts at zero: the first has no gradient before
        optimizer.zero_grad()
        adapted(**batch).loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    with torch.no_grad():
        after = adapted(**batch).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, after)
    assert type(merged.shared) is torch.nn.Embedding
