"""`Experts` and `SparseFeedForward`: thin modules around `expert_ffn` and a router.

Shape suffixes: T tokens, K choices, D model width, E experts, F hidden width, H = 2F if gated,
else F.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flan_moe.experts.activations import get_activation
from flan_moe.experts.backend import MainGrads
from flan_moe.experts.ffn import check_backend, check_dropout, expert_ffn
from flan_moe.experts.names import stack_per_expert, to_per_expert
from flan_moe.experts.shared import SharedExperts
from flan_moe.experts.sizes import check_sizes
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import Router, Routing

if TYPE_CHECKING:
    from flan_moe.experts.parallel import ExpertParallel

STATE_NAMES = ("stacked", "per_expert")


class Experts(nn.Module):
    """E feed-forward networks, each the T5 one.

    ``load_state_dict`` takes the stacked parameters, or the per-expert names of Switch
    Transformers and T5 (`flan_moe.experts.names`); ``state_dict`` gives what ``state_names`` says.

    Args:
        num_experts: E.
        d_model: D.
        d_ff: F, the hidden width of one expert.
        activation: a key of `ACTIVATIONS`.
        dropout: expert dropout, on the hidden activation, in training.
        bias: whether the two products have biases.
        output_scale: whether each expert's output has a learnt factor, 1 at first.
        backend: see `expert_ffn`.
        state_names: ``"stacked"`` or ``"per_expert"``.
        device: where to make the parameters.
        dtype: of the parameters.

    Attributes:
        wi: (E, D, H) parameter; see `ExpertWeights` for the layout.
        wo: (E, F, D) parameter.
        bi: (E, H) parameter or None.
        bo: (E, D) parameter or None.
        scale: (E,) parameter or None.
        parallel: how the experts are spread over ranks; None unless
            `flan_moe.experts.parallel.shard_experts` did that.

    Raises:
        ValueError: naming the option, its value and what was expected.
    """

    def __init__(
        self,
        num_experts: int,
        d_model: int,
        d_ff: int,
        *,
        activation: str = "geglu",
        dropout: float = 0.0,
        bias: bool = False,
        output_scale: bool = False,
        backend: str = "auto",
        state_names: str = "stacked",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_experts=num_experts, d_model=d_model, d_ff=d_ff)
        check_backend(backend)
        check_dropout(dropout)
        if state_names not in STATE_NAMES:
            raise ValueError(f"state_names={state_names!r}: expected one of {STATE_NAMES}")
        self._gated = get_activation(activation).gated
        h_width = 2 * d_ff if self._gated else d_ff
        self.activation = activation
        self.dropout = dropout
        self.backend = backend
        self.state_names = state_names
        self.parallel: ExpertParallel | None = None
        self._main_grads: MainGrads | None = None

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.wi = parameter(num_experts, d_model, h_width)
        self.wo = parameter(num_experts, d_ff, d_model)
        self.bi = parameter(num_experts, h_width) if bias else None
        self.bo = parameter(num_experts, d_model) if bias else None
        self.scale = parameter(num_experts) if output_scale else None
        self.register_load_state_dict_pre_hook(_stack_names)
        self.register_state_dict_post_hook(_unstack_names)
        self.reset_parameters()

    @property
    def num_experts(self) -> int:
        """E."""
        return self.wi.shape[0]

    @property
    def d_model(self) -> int:
        """D."""
        return self.wi.shape[1]

    @property
    def weights(self) -> ExpertWeights:
        """The parameters as `expert_ffn` takes them."""
        return ExpertWeights(self.wi, self.wo, self.bi, self.bo)

    def reset_parameters(self, init_factor: float = 1.0) -> None:
        """Initialise every expert as T5 initialises its feed-forward layer.

        ``wi`` from N(0, init_factor * D**-0.5), ``wo`` from N(0, init_factor * F**-0.5): the fan-in
        is that of one expert, not of the stack. Biases are 0, scales 1.
        """
        nn.init.normal_(self.wi, mean=0.0, std=init_factor * self.wi.shape[1] ** -0.5)
        nn.init.normal_(self.wo, mean=0.0, std=init_factor * self.wo.shape[1] ** -0.5)
        for bias in (self.bi, self.bo):
            if bias is not None:
                nn.init.zeros_(bias)
        if self.scale is not None:
            nn.init.ones_(self.scale)

    def reserve_gradients(self, *, accumulate: bool) -> None:
        """Give ``wi`` and ``wo`` lasting gradient buffers; see `MainGrads`.

        A buffer is the weight's ``main_grad`` and, for float32 weights, also its ``grad``, so that
        an optimizer needs to know nothing. Keep it there: clear gradients with
        ``zero_grad(set_to_none=False)``, or, with ``accumulate=False``, not at all; or call this
        again after a ``zero_grad()`` that took the gradients away. Called again, it uses the same
        memory, and what that holds stays unless ``zero_grad()`` had cleared it. Autograd does
        not see these gradients: hooks on the two parameters do not run, so that this is not for
        DDP or FSDP. A frozen weight gets no buffer, and so is nothing to an optimizer.

        Args:
            accumulate: False if the next backward pass through this module is the first one of its
                optimizer step: it overwrites the buffers, which until then hold old gradients.

        Raises:
            RuntimeError: if the experts are spread over ranks.
        """
        if self.parallel is not None:
            raise RuntimeError("reserve_gradients: not for experts that are spread over ranks")
        before = self._main_grads or MainGrads()
        self._main_grads = MainGrads(
            _reserve(self.wi, before.wi_EDH, accumulate=accumulate),
            _reserve(self.wo, before.wo_EFD, accumulate=accumulate),
            accumulate,
        )

    @property
    def has_reserved_gradients(self) -> bool:
        """Whether `reserve_gradients` was called."""
        return self._main_grads is not None

    def forward(
        self,
        x_TD: Tensor,
        routing: Routing,
        *,
        meanwhile: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """The weighted sum of each token's experts, (T, D); see `expert_ffn`.

        Args:
            x_TD: (T, D) tokens.
            routing: of them.
            meanwhile: is called once, and its result, (T, D), added. Where the experts are spread
                over ranks, it runs while rows are on their way, and so does its backward pass
                while gradients are.

        Raises:
            RuntimeError: if a reserved gradient buffer no longer is its weight's gradient.
        """
        finish = self._start(x_TD, routing)
        if meanwhile is None:
            return finish()
        other_TD = meanwhile()
        return finish() + other_TD

    def _start(self, x_TD: Tensor, routing: Routing) -> Callable[[], Tensor]:
        if self.parallel is not None:
            return self.parallel.start(self, x_TD, routing)
        if self._main_grads is not None and torch.is_grad_enabled():
            self._check_reserved_gradients()
        return partial(
            expert_ffn,
            x_TD,
            routing,
            self.weights,
            activation=self.activation,
            dropout=self.dropout,
            training=self.training,
            scale_E=self.scale,
            main_grads=self._main_grads,
            backend=self.backend,
        )

    def _check_reserved_gradients(self) -> None:
        buffers = self._main_grads
        for name, weight, buffer in (
            ("wi", self.wi, buffers.wi_EDH),
            ("wo", self.wo, buffers.wo_EFD),
        ):
            if buffer is None:
                continue
            if getattr(weight, "main_grad", None) is not buffer:
                lost = f"{name}.main_grad"
            elif weight.dtype == buffer.dtype and weight.grad is not buffer:
                lost = f"{name}.grad"
            else:
                continue
            raise RuntimeError(
                f"{lost} is not the buffer of reserve_gradients any more, so that the optimizer "
                f"would not see its gradient: clear gradients with zero_grad(set_to_none=False) or "
                f"reserve again after it, and after moving, copying or replacing the weights"
            )

    def extra_repr(self) -> str:
        """Sizes and options, for ``print(model)``."""
        experts, d_ff, d_model = self.wo.shape
        return (
            f"num_experts={experts}, d_model={d_model}, d_ff={d_ff}, "
            f"activation={self.activation!r}, dropout={self.dropout}, "
            f"bias={self.bi is not None}, output_scale={self.scale is not None}, "
            f"backend={self.backend!r}"
        )


def _reserve(weight: nn.Parameter, before: Tensor | None, *, accumulate: bool) -> Tensor | None:
    """The lasting gradient buffer of a weight, ``before`` if it fits; None if it is frozen."""
    if not weight.requires_grad:
        return None
    dtype = torch.promote_types(weight.dtype, torch.float32)
    ours = before is not None and getattr(weight, "main_grad", None) is before
    if not ours or (before.shape, before.dtype, before.device) != (
        weight.shape,
        dtype,
        weight.device,
    ):
        before = torch.zeros_like(weight, dtype=dtype, requires_grad=False)
    elif accumulate and dtype == weight.dtype and weight.grad is not before:
        before.zero_()  # it was cleared, by taking it away
    weight.main_grad = before
    if dtype == weight.dtype:
        weight.grad = before
    return before


def _stack_names(module: Experts, state: dict[str, Any], prefix: str, *_: object) -> None:
    stack_per_expert(state, prefix, num_experts=module.num_experts, gated=module._gated)


def _unstack_names(module: Experts, state: dict[str, Any], prefix: str, *_: object) -> None:
    if module.state_names == "per_expert":
        if type(module.wi.data) is not Tensor:
            raise ValueError(
                f"{prefix}state_names='per_expert': expected plain parameters, not "
                f"{type(module.wi.data).__name__}; gather them, or save 'stacked'"
            )
        names = [name for name in ("wi", "wo", "bi", "bo") if prefix + name in state]
        stacked = {name: state.pop(prefix + name) for name in names}
        named = to_per_expert(stacked, gated=module._gated)
        state.update({prefix + name: value for name, value in named.items()})


class SparseFeedForward(nn.Module):
    """A router and the experts it routes to.

    Args:
        router: decides which expert works on which token.
        experts: do the work.
        shared: a network that every token passes; its output is added.

    Raises:
        ValueError: if the parts disagree on the number of experts or the width.
    """

    def __init__(
        self, router: Router, experts: Experts, shared: SharedExperts | None = None
    ) -> None:
        super().__init__()
        routed = (router.num_experts, router.d_model)
        if routed != (experts.num_experts, experts.d_model):
            raise ValueError(
                f"the router is for {routed[0]} experts of width {routed[1]}, the experts are "
                f"{experts.num_experts} of width {experts.d_model}"
            )
        if shared is not None and shared.wi.shape[0] != experts.d_model:
            raise ValueError(
                f"the shared experts are of width {shared.wi.shape[0]}, the experts of width "
                f"{experts.d_model}"
            )
        self.router = router
        self.experts = experts
        self.shared = shared

    def forward(
        self,
        x_TD: Tensor,
        *,
        sequence_T: Tensor | None = None,
        token_id_T: Tensor | None = None,
        forced_experts: Tensor | None = None,
    ) -> tuple[Tensor, Routing]:
        """Route flat tokens and run their experts.

        Args:
            x_TD: (T, D) tokens without padding.
            sequence_T: (T,) sequence ids, for the router.
            token_id_T: (T,) vocabulary ids, for a hash router.
            forced_experts: (T, K) experts to use instead of selecting, for the router.

        Returns:
            (T, D) outputs, zero for tokens that no expert took and no shared expert takes, and the
            routing with its auxiliary losses and statistics.
        """
        routing = self.router(
            x_TD, sequence_T=sequence_T, token_id_T=token_id_T, forced_experts=forced_experts
        )
        shared = None if self.shared is None else partial(self.shared, x_TD)
        return self.experts(x_TD, routing, meanwhile=shared), routing
