"""`FlanMoEConfig`: everything that fixes the shape and behaviour of a Flan-MoE model."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from transformers import GenerationConfig, PretrainedConfig

from flan_moe.experts import ACTIVATIONS
from flan_moe.routing import RouterConfig

STACK_NAMES = ("encoder", "decoder")

# Sizes beyond this are typing errors, and torch fails on them without naming the key.
_LARGEST_INT = 2**31 - 1

# Beyond these a damaged file, not a model: everything that lists layers or experts would never end.
_MOST_LAYERS = 10_000
_MOST_EXPERTS = 65_536

StackName = Literal["encoder", "decoder"]

# Keys that some transformers version writes into a config.json or passes to a config, and that are
# neither parameters of another version's PretrainedConfig nor attributes of its instances.
_FOREIGN_KEYS = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "quantization_config",
        "tie_last_hidden_states",
        "torch_dtype",
        "transformers_version",
        "transformers_weights",
        # in transformers 4 only
        "add_cross_attention",
        "bos_token_id",
        "cross_attention_hidden_size",
        "finetuning_task",
        "is_decoder",
        "prefix",
        "pruned_heads",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "torchscript",
        "use_bfloat16",
    }
)


class FlanMoEConfig(PretrainedConfig):
    """Configuration of a T5 v1.1-style encoder-decoder with dense and sparse layers.

    A stack (encoder or decoder) is dense when its router is None or ``sparse_every`` is 0;
    otherwise layer i has a router and experts in place of the dense feed-forward network iff
    ``i % sparse_every == sparse_every - 1`` (1, 3, 5, ... for 2; flaxformer's MIXED layout).

    The values are checked when the config is made, when a model is built from it and when it is
    saved. A key that neither this class nor transformers knows is refused.

    Args:
        vocab_size: V, rows of the embedding and of the language-model head.
        d_model: D, width of the residual stream.
        d_kv: width of one attention head. Need not be ``d_model / num_heads``.
        d_ff: F, hidden width of a feed-forward network and, unless ``expert_d_ff`` says otherwise,
            of each expert.
        num_layers: encoder layers.
        num_decoder_layers: decoder layers; None for as many as in the encoder.
        num_heads: attention heads.
        relative_attention_num_buckets: buckets of the relative position bias, a multiple of 4.
        relative_attention_max_distance: distances from here on share the last bucket.
        dropout_rate: dropout on embeddings, attention weights, hidden activations and residual
            branches, in [0, 1).
        expert_dropout_rate: dropout on the experts' hidden activations; None for
            ``dropout_rate``. Flan-MoE uses 0.2 beside a dropout of 0.05.
        layer_norm_epsilon: epsilon of the root-mean-square norms.
        initializer_factor: scales every initial standard deviation except the router's.
        activation: ``"relu"``, ``"gelu"``, ``"geglu"`` (T5 v1.1) or ``"swiglu"``; the last two
            are gated.
        tie_word_embeddings: use the embedding as head, after scaling the hidden state by
            ``d_model ** -0.5`` (T5 1.0, Switch). Untied heads (T5 v1.1) do not scale.
        sparse_every: distance between sparse layers; 0 for a model without any.
        encoder_router: options of `flan_moe.routing.RouterConfig` as a dict, or None for a dense
            encoder.
        decoder_router: the same for the decoder, whose router must be causal: expert choice is
            refused.
        expert_d_ff: hidden width of each expert; None for ``d_ff``.
        extra_feed_forward: in every sparse layer, a dense network of width ``d_ff`` follows the
            experts, with a norm and a residual branch of its own (ST-MoE, Zoph et al. 2022).
        dense_ff_widths: ``{"encoder": [...], "decoder": [...]}`` (either key may be absent), the
            hidden width of each layer of a dense stack in place of ``d_ff``. This is how
            `flan_moe.model.dense_twin` matches the FLOPs of a sparse model.
        balance_coef: weight of the mean balance loss in ``loss``.
        z_coef: weight of the mean router z-loss in ``loss``.
        importance_coef, load_coef: weights of the losses that a router's ``extra_losses`` name.
        pad_token_id: padding token.
        eos_token_id: end of sequence.
        decoder_start_token_id: first input of the decoder (T5: the padding token).
        **kwargs: options of `transformers.PretrainedConfig`.

    Raises:
        ValueError: naming the key, its value and what was expected.
    """

    model_type = "flan_moe"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "cache",
        "aux_losses",
        "routings",
        "cross_entropy",
    ]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    def __init__(
        self,
        *,
        vocab_size: int = 32128,
        d_model: int = 512,
        d_kv: int = 64,
        d_ff: int = 1024,
        num_layers: int = 8,
        num_decoder_layers: int | None = None,
        num_heads: int = 6,
        relative_attention_num_buckets: int = 32,
        relative_attention_max_distance: int = 128,
        dropout_rate: float = 0.1,
        expert_dropout_rate: float | None = None,
        layer_norm_epsilon: float = 1e-6,
        initializer_factor: float = 1.0,
        activation: str = "geglu",
        tie_word_embeddings: bool = False,
        sparse_every: int = 2,
        encoder_router: Mapping[str, Any] | RouterConfig | None = None,
        decoder_router: Mapping[str, Any] | RouterConfig | None = None,
        expert_d_ff: int | None = None,
        extra_feed_forward: bool = False,
        dense_ff_widths: Mapping[str, Sequence[int]] | None = None,
        balance_coef: float = 0.01,
        z_coef: float = 0.0,
        importance_coef: float = 0.0,
        load_coef: float = 0.0,
        pad_token_id: int = 0,
        eos_token_id: int = 1,
        decoder_start_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        _refuse_unknown(kwargs)
        for key in ("dtype", "torch_dtype"):
            _require_dtype(key, kwargs.get(key))
        if kwargs.pop("is_encoder_decoder", True) is not True:
            _refuse("is_encoder_decoder", False, "true: Flan-MoE is an encoder-decoder")
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.d_kv = d_kv
        self.d_ff = d_ff
        self.num_layers = num_layers
        self.num_decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
        self.num_heads = num_heads
        self.relative_attention_num_buckets = relative_attention_num_buckets
        self.relative_attention_max_distance = relative_attention_max_distance
        self.dropout_rate = dropout_rate
        self.expert_dropout_rate = expert_dropout_rate
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_factor = initializer_factor
        self.activation = activation
        self.sparse_every = sparse_every
        self.encoder_router = _router_dict("encoder_router", encoder_router)
        self.decoder_router = _router_dict("decoder_router", decoder_router)
        self.expert_d_ff = expert_d_ff
        self.extra_feed_forward = extra_feed_forward
        self.dense_ff_widths = _width_lists(dense_ff_widths)
        self.balance_coef = balance_coef
        self.z_coef = z_coef
        self.importance_coef = importance_coef
        self.load_coef = load_coef
        super().__init__(is_encoder_decoder=True, **kwargs)
        # After the base class, whose versions differ in which of these they set or swallow.
        self.tie_word_embeddings = tie_word_embeddings
        self.pad_token_id = pad_token_id
        self.eos_token_id = eos_token_id
        self.decoder_start_token_id = decoder_start_token_id
        self.check()

    def check(self) -> None:
        """Check every key, alone and against the others.

        Raises:
            ValueError: naming the key, its value and what was expected.
        """
        for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads"):
            _require_int(key, getattr(self, key), minimum=1)
        for key in ("num_layers", "num_decoder_layers"):
            _require_int(key, getattr(self, key), minimum=1, maximum=_MOST_LAYERS)
        _require_int("sparse_every", self.sparse_every, minimum=0)
        self._check_position_buckets()
        for key in ("dropout_rate", "expert_dropout_rate"):
            value = getattr(self, key)
            if value is None and key == "expert_dropout_rate":
                continue
            if not _is_number(value) or not 0.0 <= value < 1.0:
                _refuse(key, value, "a number in [0, 1)")
        for key in ("layer_norm_epsilon", "initializer_factor"):
            value = getattr(self, key)
            if not _is_number(value) or not 0.0 < value < math.inf:
                _refuse(key, value, "a positive number")
        for key in ("balance_coef", "z_coef", "importance_coef", "load_coef"):
            value = getattr(self, key)
            if not _is_number(value) or not 0.0 <= value < math.inf:
                _refuse(key, value, "a number that is not negative")
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            _refuse("activation", self.activation, f"one of {_quoted(tuple(ACTIVATIONS))}")
        for key in ("tie_word_embeddings", "extra_feed_forward"):
            if not isinstance(getattr(self, key), bool):
                _refuse(key, getattr(self, key), "true or false")
        for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            value = getattr(self, key)
            _require_int(key, value, minimum=0)
            if value >= self.vocab_size:
                _refuse(key, value, f"a token id below vocab_size, which is {self.vocab_size}")
        for stack in STACK_NAMES:
            self._check_router(stack)
        if self.expert_d_ff is not None:
            _require_int("expert_d_ff", self.expert_d_ff, minimum=1)
            if not (self.encoder_router or self.decoder_router):
                _refuse(
                    "expert_d_ff", self.expert_d_ff, "None unless a router makes a stack sparse"
                )
        if self.extra_feed_forward and not (self.encoder_router or self.decoder_router):
            _refuse("extra_feed_forward", True, "false unless a router makes a stack sparse")
        self._check_extra_losses()
        self._check_widths()

    def router_config(self, stack: StackName) -> RouterConfig | None:
        """The router of a stack; None for a dense one."""
        values = getattr(self, f"{stack}_router")
        if values is None:
            return None
        router = RouterConfig.from_dict(values)
        if router.selection == "hash" and router.vocab_size is None:
            router = dataclasses.replace(router, vocab_size=self.vocab_size)
        return router

    @property
    def aux_coefs(self) -> dict[str, float]:
        """Weight of each auxiliary loss in ``loss``, by the name that routers give it."""
        names = ("balance", "z", "importance", "load")
        return {name: getattr(self, f"{name}_coef") for name in names}

    def layer_count(self, stack: StackName) -> int:
        """Layers of a stack."""
        return self.num_layers if stack == "encoder" else self.num_decoder_layers

    def is_sparse(self, stack: StackName, layer: int) -> bool:
        """Whether a layer has a router and experts."""
        return (
            getattr(self, f"{stack}_router") is not None
            and self.sparse_every > 0
            and layer % self.sparse_every == self.sparse_every - 1
        )

    def has_extra_feed_forward(self, stack: StackName, layer: int) -> bool:
        """Whether a dense network follows the experts of a layer."""
        return self.extra_feed_forward and self.is_sparse(stack, layer)

    def ff_width(self, stack: StackName, layer: int) -> int:
        """Hidden width of a layer's dense network, or of each of its experts."""
        if self.expert_d_ff is not None and self.is_sparse(stack, layer):
            return self.expert_d_ff
        widths = (self.dense_ff_widths or {}).get(stack)
        return self.d_ff if widths is None else widths[layer]

    @property
    def is_gated(self) -> bool:
        """Whether the activation multiplies two projections."""
        return ACTIVATIONS[self.activation].gated

    def get_text_config(
        self,
        decoder: bool | None = None,
        encoder: bool | None = None,
    ) -> FlanMoEConfig:
        """This config, with ``num_hidden_layers`` of the decoder if only that is asked for.

        transformers sizes key-value caches from it, and would otherwise take the encoder's depth.
        """
        if not decoder or encoder or self.num_decoder_layers == self.num_layers:
            return self
        config = copy.deepcopy(self)
        config.num_layers = self.num_decoder_layers
        return config

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Check the values, then write ``config.json`` as `PretrainedConfig` does."""
        self.check()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _check_position_buckets(self) -> None:
        buckets = self.relative_attention_num_buckets
        _require_int("relative_attention_num_buckets", buckets, minimum=4)
        if buckets % 4:
            _refuse("relative_attention_num_buckets", buckets, "a multiple of 4")
        distance = self.relative_attention_max_distance
        _require_int("relative_attention_max_distance", distance, minimum=1)
        if distance <= buckets // 2:
            _refuse(
                "relative_attention_max_distance",
                distance,
                f"more than half of relative_attention_num_buckets, {buckets // 2}",
            )

    def _check_router(self, stack: StackName) -> None:
        key = f"{stack}_router"
        values = getattr(self, key)
        if values is None:
            return
        router = RouterConfig.from_dict(_router_dict(key, values))
        _require_int(f"{key}.num_experts", router.num_experts, minimum=1, maximum=_MOST_EXPERTS)
        if self.sparse_every == 0:
            _refuse("sparse_every", 0, f"at least 1 because {key} is set (or {key}=None)")
        if self.layer_count(stack) < self.sparse_every:
            _refuse(
                "sparse_every",
                self.sparse_every,
                f"at most the {self.layer_count(stack)} layers of the {stack}; with this value "
                f"{key} would never be used",
            )
        if stack == "decoder" and not router.is_causal:
            _refuse(
                f"{key}.name",
                router.name,
                "a causal router: this one looks at later tokens, which a decoder must not "
                "(use it in encoder_router)",
            )

        if router.vocab_size is not None and router.vocab_size < self.vocab_size:
            _refuse(
                f"{key}.vocab_size",
                router.vocab_size,
                f"at least vocab_size, which is {self.vocab_size} (or null for that)",
            )

    def _check_extra_losses(self) -> None:
        routers = [self.router_config(stack) for stack in STACK_NAMES]
        computed = {loss for router in routers if router for loss in router.extra_losses}
        for loss in ("importance", "load"):
            value = getattr(self, f"{loss}_coef")
            if value and loss not in computed:
                _refuse(
                    f"{loss}_coef", value, f"0 unless a router has {loss!r} in its extra_losses"
                )

    def _check_widths(self) -> None:
        if self.dense_ff_widths is None:
            return
        for stack, widths in self.dense_ff_widths.items():
            key = f"dense_ff_widths.{stack}"
            if stack not in STACK_NAMES:
                _refuse(key, widths, f"only the keys {_quoted(STACK_NAMES)}")
            if getattr(self, f"{stack}_router") is not None:
                _refuse(key, widths, f"no widths, because {stack}_router makes the stack sparse")
            if len(widths) != self.layer_count(stack):
                _refuse(key, widths, f"one width for each of {self.layer_count(stack)} layers")
            for layer, width in enumerate(widths):
                _require_int(f"{key}[{layer}]", width, minimum=1)


def _router_dict(
    key: str,
    value: Mapping[str, Any] | RouterConfig | None,
) -> dict[str, Any] | None:
    """A router's complete options as a plain dict, so that they survive JSON."""
    if value is None or isinstance(value, RouterConfig):
        return None if value is None else value.to_dict()
    if not isinstance(value, Mapping):
        _refuse(key, value, "a mapping of router options, or None for a dense stack")
    try:
        return RouterConfig.from_dict(value).to_dict()
    except (TypeError, ValueError) as error:
        raise ValueError(f"FlanMoEConfig: {key}: {error}") from error


def _width_lists(value: Mapping[str, Sequence[int]] | None) -> dict[str, list[int]] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(
        isinstance(widths, list | tuple) for widths in value.values()
    ):
        _refuse("dense_ff_widths", value, 'a mapping such as {"encoder": [512, 1024]}, or None')
    return {stack: list(widths) for stack, widths in value.items()}


def _refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    if not kwargs:
        return
    own = {
        name
        for name, parameter in inspect.signature(FlanMoEConfig.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    base = set(inspect.signature(PretrainedConfig.__init__).parameters)
    known = base | set(PretrainedConfig().__dict__) | set(GenerationConfig().__dict__)
    known |= _FOREIGN_KEYS | set(FlanMoEConfig.attribute_map)
    router_options = {field.name for field in dataclasses.fields(RouterConfig)}
    for key, value in kwargs.items():
        # transformers 4 puts its default for sampling, top_k=50, into every config's to_dict().
        if key in router_options and (key, value) != ("top_k", 50):
            _refuse(key, value, "to be inside encoder_router or decoder_router")
        if key not in known:
            close = difflib.get_close_matches(key, sorted(own), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(own))}"
            raise ValueError(f"FlanMoEConfig: unknown key {key!r} (value {value!r}); {hint}")


def _require_int(key: str, value: object, *, minimum: int, maximum: int = _LARGEST_INT) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        _refuse(key, value, f"an integer of at least {minimum}")
    if value > maximum:
        _refuse(key, value, f"an integer of at most {maximum}")


def _require_dtype(key: str, value: object) -> None:
    named = getattr(torch, value, None) if isinstance(value, str) else value
    if value is not None and not isinstance(named, torch.dtype):
        _refuse(key, value, "the name of a torch dtype, such as 'float32'")


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, float) or abs(value) <= _LARGEST_INT


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _refuse(key: str, value: object, expected: str) -> None:
    raise ValueError(f"FlanMoEConfig: {key}={value!r}: expected {expected}")
