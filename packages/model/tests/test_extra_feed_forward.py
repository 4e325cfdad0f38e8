"""ST-MoE's extra dense network, against the whole model written out once more.

The oracle knows the weights by name and nothing of the package: it takes one sequence after the
other, without padding, and loops over heads, tokens and experts. Only the buckets of relative
positions come from transformers' T5.

Shape suffixes: B rows, S or Q or M positions, D model width, K head width, N heads, E experts, V
vocabulary.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.t5.modeling_t5 import T5Attention

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration

TOP_2 = {"name": "top_k", "num_experts": 4, "capacity_factor": None}
SIZES = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 4, "num_heads": 3, "vocab_size": 29}


def st_moe_config(**options):
    """A small ``flan-st``: every fourth layer sparse, here the last of each stack."""
    return FlanMoEConfig(
        **{
            **SIZES,
            "sparse_every": 4,
            "dropout_rate": 0.0,
            "extra_feed_forward": True,
            "z_coef": 0.1,
            "balance_coef": 0.2,
            "encoder_router": TOP_2,
            "decoder_router": TOP_2,
            "initializer_factor": 1.5,
            **options,
        }
    )


@pytest.fixture
def model():
    """Random, norms included, so that no two of them are equal."""
    torch.manual_seed(0)
    model = FlanMoEForConditionalGeneration(st_moe_config()).double().train()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@pytest.fixture
def ids():
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(2, 29, (3, 10), generator=generator),
        "labels": torch.randint(2, 29, (3, 6), generator=generator),
    }


class Oracle:
    """The model of one config as formulas over its weights."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        self.logits = {}  # router logits by layer, of all sequences

    def __getitem__(self, name):
        return self.weights[name]

    def norm(self, x_SD, name):
        scale = x_SD.square().mean(-1, keepdim=True).add(self.config.layer_norm_epsilon).rsqrt()
        return x_SD * scale * self[f"{name}.weight"]

    def attend(self, x_QD, source_MD, name, bias_NQM):
        width = self.config.d_kv
        query, key, value = (
            x @ self[f"{name}.{p}.weight"].T
            for p, x in (("q", x_QD), ("k", source_MD), ("v", source_MD))
        )
        heads = []
        for n in range(self.config.num_heads):
            part = slice(n * width, (n + 1) * width)
            scores_QM = query[:, part] @ key[:, part].T + bias_NQM[n]
            heads.append(scores_QM.softmax(-1) @ value[:, part])
        return torch.cat(heads, -1) @ self[f"{name}.o.weight"].T

    def bias(self, stack, length):
        places = torch.arange(length)
        buckets = T5Attention._relative_position_bucket(
            places[None] - places[:, None],
            bidirectional=stack == "encoder",
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )
        bias_NSS = self[f"{stack}.position_bias.weight"][buckets].permute(2, 0, 1)
        if stack == "decoder":
            future = places[None] > places[:, None]
            bias_NSS = bias_NSS.masked_fill(future, -math.inf)
        return bias_NSS

    def network(self, x_D, wi_DH, wo_FD):
        gate, linear = (x_D @ wi_DH).chunk(2, -1)
        return (F.gelu(gate, approximate="tanh") * linear) @ wo_FD

    def dense(self, x_SD, name):
        return self.network(x_SD, self[f"{name}.wi.weight"].T, self[f"{name}.wo.weight"].T)

    def sparse(self, x_SD, name):
        logits_SE = x_SD @ self[f"{name}.router.weight"].T
        self.logits.setdefault(name, []).append(logits_SE)
        rows = []
        for x_D, p_E in zip(x_SD, logits_SE.softmax(-1), strict=True):
            best = p_E.topk(2).indices
            wi, wo = self[f"{name}.experts.wi"], self[f"{name}.experts.wo"]
            rows.append(sum(p_E[e] * self.network(x_D, wi[e], wo[e]) for e in best))
        return torch.stack(rows)

    def stack(self, stack, ids, memory_MD=None):
        x_SD = self["shared.weight"][ids]
        bias = self.bias(stack, len(ids))
        for i in range(self.config.num_layers):
            name = f"{stack}.layers.{i}"
            y_SD = self.norm(x_SD, f"{name}.self_attention_norm")
            x_SD = x_SD + self.attend(y_SD, y_SD, f"{name}.self_attention", bias)
            if memory_MD is not None:
                y_SD = self.norm(x_SD, f"{name}.cross_attention_norm")
                flat = torch.zeros(self.config.num_heads, len(ids), len(memory_MD)).to(x_SD)
                x_SD = x_SD + self.attend(y_SD, memory_MD, f"{name}.cross_attention", flat)
            y_SD = self.norm(x_SD, f"{name}.feed_forward_norm")
            if i % 4 == 3:
                x_SD = x_SD + self.sparse(y_SD, f"{name}.feed_forward")
                y_SD = self.norm(x_SD, f"{name}.extra_feed_forward_norm")
                x_SD = x_SD + self.dense(y_SD, f"{name}.extra_feed_forward")
            else:
                x_SD = x_SD + self.dense(y_SD, f"{name}.feed_forward")
        return self.norm(x_SD, f"{stack}.final_norm")

    def logits_BLV(self, input_ids, labels):
        rows = []
        for source, target in zip(input_ids, labels, strict=True):
            shifted = torch.cat([torch.zeros(1, dtype=torch.long), target[:-1]])
            out_LD = self.stack("decoder", shifted, self.stack("encoder", source))
            rows.append(out_LD @ self["lm_head.weight"].T)
        return torch.stack(rows)

    def aux_losses(self):
        """Means over layers: z, and balance with both choices counted (2 at balance)."""
        z, balance = [], []
        for parts in self.logits.values():
            logits_TE = torch.cat(parts)
            z.append(logits_TE.logsumexp(-1).square().mean())
            p_TE = logits_TE.softmax(-1)
            chosen_TE = torch.zeros_like(p_TE).scatter(-1, p_TE.topk(2).indices, 1.0)
            balance.append(4 * (chosen_TE.mean(0) * p_TE.mean(0)).sum())
        return torch.stack(z).mean(), torch.stack(balance).mean()


def oracle_loss(oracle, ids):
    logits = oracle.logits_BLV(**ids)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), ids["labels"].flatten())
    z, balance = oracle.aux_losses()
    return logits, cross_entropy + 0.1 * z + 0.2 * balance


def test_forward_and_backward_equal_the_plain_computation(model, ids):
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits, loss = oracle_loss(Oracle(model.config, weights), ids)
    loss.backward()
    out = model(**ids)
    out.loss.backward()
    assert logits.std() > 0.5  # not a comparison of nothing with nothing
    torch.testing.assert_close(out.logits, logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.loss, loss, rtol=1e-6, atol=1e-6)
    compared = 0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, weights[name].grad, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m
        )
        compared += "extra" in name and bool(parameter.grad.abs().max() > 1e-4)
    assert compared == 2 * 3  # norm, wi and wo in each stack, and none of them idle


def test_only_sparse_layers_have_one(model):
    for stack in (model.encoder, model.decoder):
        assert [hasattr(b, "extra_feed_forward") for b in stack.layers] == [False] * 3 + [True]
    without = FlanMoEForConditionalGeneration(st_moe_config(extra_feed_forward=False))
    assert not any("extra" in name for name, _ in without.named_parameters())


def test_it_uses_the_dense_dropout(ids):
    config = st_moe_config(dropout_rate=0.25, expert_dropout_rate=0.5)
    block = FlanMoEForConditionalGeneration(config).encoder.layers[3]
    assert block.feed_forward.experts.dropout == 0.5
    assert block.extra_feed_forward.dropout == 0.25


def test_it_starts_as_a_dense_network_of_t5():
    torch.manual_seed(0)
    config = st_moe_config(d_model=64, d_ff=128, initializer_factor=0.5)
    block = FlanMoEForConditionalGeneration(config).decoder.layers[3]
    network = block.extra_feed_forward
    for weight, std in ((network.wi.weight, 64**-0.5), (network.wo.weight, 128**-0.5)):
        tolerance = 4 / math.sqrt(2 * weight.numel())  # four standard errors
        assert weight.std().item() == pytest.approx(0.5 * std, rel=tolerance)
    assert (block.extra_feed_forward_norm.weight == 0.5).all()


def test_a_saved_model_keeps_it(model, ids, tmp_path):
    model.eval().save_pretrained(tmp_path)
    again = FlanMoEForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert again.config.extra_feed_forward
    with torch.no_grad():
        assert torch.equal(again(**ids).logits, model(**ids).logits)


def test_gradient_checkpointing_covers_it(model, ids):
    model(**ids).loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**ids).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name])


def test_cached_decoding_equals_teacher_forcing(model, ids):
    model.eval()
    decoder_ids = torch.cat([torch.zeros(3, 1, dtype=torch.long), ids["labels"][:, :-1]], 1)
    encoded = model.encoder(ids["input_ids"])
    cache, steps = None, []
    with torch.no_grad():
        whole = model(encoder_outputs=encoded, decoder_input_ids=decoder_ids).logits
        for step in range(6):
            out = model(
                encoder_outputs=encoded,
                decoder_input_ids=decoder_ids[:, step : step + 1],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole)
