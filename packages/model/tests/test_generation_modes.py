"""What `generate` of transformers offers beyond greedy search, with and without a cache."""

import copy

import pytest
import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from flan_moe.model.attention import Attention


def encoder_inputs(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


class StopAtLength(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


def test_stopping_criteria_stop(sparse_model, batch):
    arguments = {"max_new_tokens": 9, "min_new_tokens": 9}
    stop = StoppingCriteriaList([StopAtLength(4)])
    model = sparse_model()
    whole = model.generate(**encoder_inputs(batch), **arguments)
    stopped = model.generate(**encoder_inputs(batch), **arguments, stopping_criteria=stop)
    assert torch.equal(stopped, whole[:, :4])


def test_forced_tokens_stand_where_they_are_forced(sparse_model, batch):
    out = sparse_model().generate(
        **encoder_inputs(batch),
        max_new_tokens=5,
        min_new_tokens=5,
        forced_bos_token_id=7,
        forced_eos_token_id=1,
    )
    assert out[:, 0].tolist() == [0] * 3
    assert out[:, 1].tolist() == [7] * 3
    assert out[:, -1].tolist() == [1] * 3


def test_a_decoder_prompt_is_continued(sparse_model, batch):
    model = sparse_model()
    arguments = {**encoder_inputs(batch), "no_repeat_ngram_size": 1}
    whole = model.generate(**arguments, max_new_tokens=6, min_new_tokens=6)
    continued = model.generate(
        **arguments, decoder_input_ids=whole[:, :4], max_new_tokens=3, min_new_tokens=3
    )
    assert torch.equal(continued, whole)


@pytest.mark.parametrize(
    "mode",
    [
        {"num_beams": 1, "do_sample": True, "top_k": 5, "temperature": 0.7},
        {"num_beams": 1, "do_sample": True, "top_p": 0.8, "num_return_sequences": 2},
        {"num_beams": 3, "do_sample": True},
        {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
    ],
    ids=["top-k", "top-p", "beam-sampling", "beam"],
)
def test_the_cache_changes_no_token(sparse_model, batch, mode):
    """Beams change rows from step to step, so the caches must be reordered with them."""
    model = sparse_model()
    outcomes = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        arguments = {"max_new_tokens": 8, "no_repeat_ngram_size": 2, "use_cache": use_cache}
        outcomes.append(model.generate(**encoder_inputs(batch), **arguments, **mode))
    assert torch.equal(*outcomes)
    assert len(set(outcomes[0].flatten().tolist())) > 4


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_scores_are_those_of_teacher_forcing(sparse_model, batch, beams):
    model = sparse_model()
    out = model.generate(
        **encoder_inputs(batch),
        max_new_tokens=6,
        min_new_tokens=6,
        num_beams=beams,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    beam_indices = getattr(out, "beam_indices", None)
    with torch.no_grad():
        forced = model(**encoder_inputs(batch), decoder_input_ids=out.sequences[:, :-1]).logits
    expected = forced.log_softmax(-1).gather(-1, out.sequences[:, 1:, None])[..., 0]
    steps = torch.stack(out.logits, 1).log_softmax(-1)  # of each beam at each step
    for row in range(3):
        for step in range(6):
            beam = row if beams == 1 else int(beam_indices[row, step])
            token = int(out.sequences[row, step + 1])
            torch.testing.assert_close(
                steps[beam, step, token].double(), expected[row, step], atol=1e-5, rtol=1e-5
            )


def test_assisted_generation_gives_the_tokens_of_the_model_alone(sparse_model, batch):
    """A draft model proposes several tokens; rejected ones are cropped from the cache."""
    model, draft = sparse_model(), sparse_model(seed=1, num_layers=2)
    arguments = {"input_ids": batch["input_ids"][:1], "max_new_tokens": 12}
    alone = model.generate(**arguments)
    assert alone.shape[1] > 6
    assert torch.equal(model.generate(**arguments, assistant_model=draft), alone)
    assert torch.equal(model.generate(**arguments, prompt_lookup_num_tokens=2), alone)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_generation_in_inference_mode_leaves_the_model_trainable(sparse_model, batch, context):
    model = sparse_model()
    with context():
        generated = model.generate(**encoder_inputs(batch), max_new_tokens=4)
        inside = model(**batch)
        loads = [r.stats["expert_load_E"].sum() for _, r in inside.routings]
    assert torch.equal(model.generate(**encoder_inputs(batch), max_new_tokens=4), generated)
    assert float(sum(loads)) > 0
    loss = model.train()(**batch).loss
    loss.backward()
    assert model.shared.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_models_generate_and_stay_close(sparse_model, batch, dtype):
    full = sparse_model(dtype=torch.float32, initializer_factor=1.0)
    narrow = copy.deepcopy(full).to(dtype)
    with torch.no_grad():
        outputs = [model(**batch) for model in (full, narrow)]
    assert outputs[1].logits.dtype == dtype
    assert outputs[1].loss.dtype == torch.float32
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss, atol=0.05, rtol=0.05)
    out = narrow.generate(**encoder_inputs(batch), max_new_tokens=3, num_beams=2)
    assert out.shape[0] == 3


def test_one_sequence_reads_only_the_experts_that_its_tokens_take(sparse_model):
    """Poisoned weights: whoever reads an expert that no token took makes NaN."""
    model = sparse_model(dtype=torch.float32)
    model.set_expert_backend("grouped")
    ids = torch.tensor([[5, 6]])
    prompt = torch.tensor([[0]])
    with torch.no_grad():
        before = model(input_ids=ids, decoder_input_ids=prompt)
        untouched = 0
        for name, routing in before.routings:
            experts = model.get_submodule(name).experts
            for expert in (routing.stats["expert_load_E"] == 0).nonzero().flatten().tolist():
                experts.wi[expert] = experts.wo[expert] = torch.nan
                untouched += 1
        after = model(input_ids=ids, decoder_input_ids=prompt)
    assert untouched > 0
    assert torch.equal(after.logits, before.logits)


def test_a_cached_step_projects_one_position_and_no_encoder_position(sparse_model, batch):
    """Keys of the encoder are made once; a step makes keys and logits of one position."""
    model = sparse_model()
    widths = []

    def note(name):
        return lambda module, args, output: widths.append((name, args[0].shape[0]))

    hooks = [model.lm_head.register_forward_hook(note("head"))]
    hooks += [
        module.k.register_forward_hook(note(type(module).__name__))
        for module in model.decoder.modules()
        if isinstance(module, Attention)
    ]
    steps = LogitsProcessorList([lambda ids, scores: widths.append("step") or scores])
    model.generate(
        **encoder_inputs(batch), max_new_tokens=4, min_new_tokens=4, logits_processor=steps
    )
    for hook in hooks:
        hook.remove()
    assert widths.count("step") == 4
    memory = int(batch["attention_mask"].sum())
    layers = model.config.num_decoder_layers
    assert [w for w in widths if w[0] == "CrossAttention"] == [("CrossAttention", memory)] * layers
    assert {w for w in widths if w[0] == "SelfAttention"} == {("SelfAttention", 3)}
    assert [w for w in widths if w[0] == "head"] == [("head", 3)] * 4
