"""Router replay through a whole model: encoder, decoder, gradient checkpointing."""

import torch

from flan_moe.model import FlanMoEForConditionalGeneration, flan_moe_config
from flan_moe.routing.replay import Recording, record_routing, replay_routing


def make_model(seed):
    torch.manual_seed(seed)
    # The balance loss, and weights that sum to one, are over choices before capacity; a replay
    # knows those that it left.
    raw = {"name": "top_k", "num_experts": 4, "capacity_factor": 1.0, "min_capacity": 1}
    config = flan_moe_config(
        "flan-moe-tiny", balance_coef=0.0, encoder_router=raw, decoder_router=raw
    )
    return FlanMoEForConditionalGeneration(config).train()


BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 1], [10, 11, 12, 1, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
    "labels": torch.tensor([[8, 9, 3, 1], [17, 1, -100, -100]]),
}


def run(model):
    """Loss and gradients, in training mode: capacity may drop tokens."""
    model.zero_grad()
    output = model(**BATCH)
    output.loss.backward()
    return {"loss": output.loss.detach()} | {n: p.grad for n, p in model.named_parameters()}


def test_a_replayed_training_step_is_the_recorded_one(tmp_path):
    model = make_model(0)
    with record_routing(model) as recording:
        recorded = run(model)
    assert len(recording.calls) == 2  # one sparse layer each in encoder and decoder
    assert recording.choices("encoder.layers.1.feed_forward.router").shape[0] == 10  # no padding

    recording.save(tmp_path / "routing.pt")
    loaded = Recording.load(tmp_path / "routing.pt")
    model.gradient_checkpointing_enable()
    with replay_routing(model, loaded):
        replayed = run(model)
    for name, value in recorded.items():
        assert torch.equal(replayed[name], value), name


def test_another_model_trains_its_own_routers_on_recorded_choices():
    model, other = make_model(0), make_model(1)
    with record_routing(model) as recording:
        model(**BATCH)
    with record_routing(other) as live, replay_routing(other, recording):
        gradients = run(other)
    for name, calls in recording.calls.items():
        assert torch.equal(live.calls[name][0].sort().values, calls[0].sort().values)
        assert gradients[f"{name}.weight"].abs().sum() > 0
