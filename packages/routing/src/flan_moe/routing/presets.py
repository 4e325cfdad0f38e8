"""The named routers: options, source, and the value of the balance loss at perfect balance.

A preset is nothing but choices of the pipeline's stages (see `RouterConfig`); every option can be
overridden. Where implementations of one router differ, the preset names the one that it follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RouterPreset:
    """A named choice of options, and optionally a router class of its own.

    Attributes:
        options: values of `RouterConfig` options; the others keep their neutral default.
        source: what it reproduces.
        balanced_loss: the balance loss when probabilities and load are uniform, in words.
        router: a `Router` subclass for rules that options cannot express; None for `Router`.

    Raises:
        ValueError: naming options that `RouterConfig` does not have.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    balanced_loss: str = "1"
    router: type | None = None

    def __post_init__(self) -> None:
        unknown = sorted(str(key) for key in self.options if key not in NEUTRAL)
        if unknown:
            raise ValueError(
                f"RouterPreset options {', '.join(map(repr, unknown))}: expected some of "
                f"{', '.join(NEUTRAL)}"
            )


NEUTRAL: Mapping[str, Any] = MappingProxyType(
    {
        "num_experts": 8,
        "top_k": 1,
        "score": "softmax",
        "jitter": 0.0,
        "noise": 0.0,
        "selection": "top_k",
        "num_groups": 1,
        "top_groups": 1,
        "second_expert": "all",
        "eval_second_expert": "all",
        "second_threshold": 0.2,
        "bias_update": None,
        "bias_rate": 1e-3,
        "vocab_size": None,
        "hash_seed": 0,
        "capacity_factor": None,
        "eval_capacity_factor": None,
        "min_capacity": 0,
        "capacity_per": "choice",
        "capacity_rounding": "round",
        "capacity_multiple": 1,
        "drop_order": "choice",
        "weights": "score",
        "renormalise": "never",
        "weight_scale": 1.0,
        "balance_count": "all_choices",
        "balance_normalisation": "one",
        "balance_scope": "batch",
        "extra_losses": (),
        "check_finite": False,
        "extra": MappingProxyType({}),
    }
)
"""What an option is where a preset says nothing: dropless softmax top-1."""

_FLAXFORMER = {
    "capacity_factor": 1.25,
    "min_capacity": 4,
    "balance_normalisation": "k",
}
_DEEPSEEK = {
    "num_experts": 256,
    "renormalise": "before_drop",
    "bias_update": "sign",
    "balance_scope": "sequence",
}
_DEEPSEEK_V4 = {**_DEEPSEEK, "score": "sqrt_softplus", "top_k": 6, "weight_scale": 1.5}

PRESETS: Mapping[str, RouterPreset] = MappingProxyType(
    {
        "switch": RouterPreset(
            options=_FLAXFORMER,
            source="Switch Transformer (Fedus et al. 2021) as flaxformer's tokens-choose router "
            "does it; Mesh TensorFlow rounds the capacity down (capacity_rounding='floor')",
        ),
        "top_k": RouterPreset(
            options={**_FLAXFORMER, "top_k": 2},
            source="flaxformer's TokensChooseMaskedRouter for any k, without batch priority",
            balanced_loss="k",
        ),
        "flaxformer_top2": RouterPreset(
            options={**_FLAXFORMER, "top_k": 2, "drop_order": "priority"},
            source="flaxformer tokens_choose_*: top-2, raw gates, batch-prioritised in the encoder",
            balanced_loss="k = 2",
        ),
        "gshard": RouterPreset(
            options={
                "top_k": 2,
                "second_expert": "random",
                "second_threshold": 0.5,
                "capacity_factor": 2.0,
                "capacity_rounding": "ceil",
                "renormalise": "before_drop",
                "balance_count": "first_choice",
            },
            source="GShard (Lepikhin et al. 2020, algorithm 1): the second expert with probability "
            "min(1, 2 g2), at most 2 T / E tokens per expert",
        ),
        "st_moe": RouterPreset(
            options={
                "top_k": 2,
                "second_expert": "random",
                "second_threshold": 0.2,
                "capacity_factor": 1.25,
                "min_capacity": 4,
                "capacity_rounding": "floor",
                "renormalise": "before_drop",
                "balance_count": "first_choice",
            },
            source="ST-MoE (Zoph et al. 2022) as Mesh TensorFlow's _top_2_gating; pair it with a "
            "z-loss coefficient of 1e-3. In evaluation Mesh still draws the second expert "
            "(eval_second_expert='random'); here it always takes part",
        ),
        "nllb": RouterPreset(
            options={
                "top_k": 2,
                "capacity_factor": 1.0,
                "capacity_per": "total",
                "capacity_rounding": "per_choice_ceil",
                "renormalise": "after_drop",
                "balance_count": "first_choice",
            },
            source="NLLB-MoE (fairseq; transformers 4.57 NllbMoeTop2Router with "
            "expert_capacity=None): weights are renormalised over what was kept. The balance loss "
            "is fairseq's, over the softmax; transformers' is over the weights that were left",
        ),
        "expert_choice": RouterPreset(
            options={"selection": "expert_choice", "capacity_factor": 1.0, "min_capacity": 4},
            source="Expert Choice (Zhou et al. 2022) as flaxformer's experts-choose router; the "
            "paper uses a capacity factor of 2. Encoder only",
            balanced_loss="0, always: balanced by construction",
        ),
        "expert_choice_decoder": RouterPreset(
            options={**_FLAXFORMER, "top_k": 2, "capacity_factor": 1.0},
            source="flaxformer experts_choose_*: what its decoders use, top-2 token choice",
            balanced_loss="k = 2",
        ),
        "mixtral": RouterPreset(
            options={
                "top_k": 2,
                "renormalise": "before_drop",
                "balance_normalisation": "k",
            },
            source="Mixtral (Jiang et al. 2024), transformers MixtralSparseMoeBlock",
            balanced_loss="k = 2",
        ),
        "qwen3": RouterPreset(
            options={
                "num_experts": 128,
                "top_k": 8,
                "renormalise": "before_drop",
                "balance_normalisation": "k",
            },
            source="Qwen3-MoE, transformers Qwen3MoeSparseMoeBlock (norm_topk_prob); its authors "
            "train with the global-batch loss (balance_scope='global')",
            balanced_loss="k = 8",
        ),
        "olmoe": RouterPreset(
            options={"num_experts": 64, "top_k": 8},
            source="OLMoE (Muennighoff et al. 2024): raw gates; the balance loss is MegaBlocks', "
            "with which it was trained (transformers' is k times larger)",
        ),
        "gpt_oss": RouterPreset(
            options={"num_experts": 32, "top_k": 4, "score": "top_k_softmax"},
            source="gpt-oss: top-k of the logits, then softmax over these (no router bias)",
        ),
        "deepseek_v3": RouterPreset(
            options={
                **_DEEPSEEK,
                "score": "sigmoid",
                "top_k": 8,
                "weight_scale": 2.5,
                "num_groups": 8,
                "top_groups": 4,
            },
            source="DeepSeek-V3 (2024), transformers DeepseekV3TopkRouter; groups that lose are "
            "excluded (-inf), as in DeepSeek's own code, where transformers 4 sets them to 0",
        ),
        "deepseek_v4": RouterPreset(
            options=_DEEPSEEK_V4,
            source="DeepSeek-V4, transformers 5: sqrt(softplus) scores; its first layers use "
            "deepseek_v4_hash",
        ),
        "deepseek_v4_hash": RouterPreset(
            options={**_DEEPSEEK_V4, "selection": "hash", "bias_update": None},
            source="DeepSeek-V4's first layers: experts by token id, weights from live scores",
        ),
        "hash": RouterPreset(
            options={"selection": "hash", "weights": "uniform"},
            source="Hash layers (Roller et al. 2021), balanced over the vocabulary; nothing is "
            "learned",
        ),
        "uniform": RouterPreset(
            options={"selection": "uniform"},
            source="Round robin: perfectly balanced whatever the tokens, with live weights; for "
            "benchmarks",
        ),
    }
)
"""The routers that come with this package, by name."""
