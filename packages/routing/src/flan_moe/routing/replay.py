"""Router replay: record which experts every router chose, and use the same ones again.

Only the choices are replayed. Weights, losses and gradients come from the live logits, so that a
model can be trained on choices that another engine, precision or checkpoint made (rollout
routing replay, arXiv 2510.11370), and ablations can differ in one thing only.

Shape suffixes: T tokens, D model width, K experts listed per token (-1: none).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker

from flan_moe.routing.contract import Routing
from flan_moe.routing.metrics.choices import chosen_experts
from flan_moe.routing.router import Router

_FORMAT = "flan-moe-routing recording 1"
# Calls of one router that a recomputation is looked for among; a backward pass far behind the
# forward passes (pipelines, long accumulation) needs as many as there are passes in between.
_REMEMBERED_CALLS = 256


@dataclass(frozen=True, kw_only=True, eq=False)  # tensors have no single equality
class Recording:
    """The experts that the routers of a model chose, call by call.

    Attributes:
        num_experts: router name (its module path in the model) -> E.
        calls: router name -> the calls of that router in order, each a (T, K) integer tensor:
            the experts that worked on each token, best first, -1 for none. K differs between
            calls where tokens get different numbers of experts.
    """

    num_experts: Mapping[str, int]
    calls: Mapping[str, list[Tensor]] = field(default_factory=dict)

    def choices(self, router: str) -> Tensor:
        """All calls of one router under each other, (T of all calls, K), for the metrics.

        Raises:
            KeyError: if the recording has no such router.
        """
        calls = self.calls[router]
        width = max((call_TK.shape[1] for call_TK in calls), default=1)
        padded = [F.pad(call_TK, (0, width - call_TK.shape[1]), value=-1) for call_TK in calls]
        return torch.cat(padded) if padded else torch.empty(0, width, dtype=torch.int64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one file, under a temporary name that is renamed when it is whole."""
        path = Path(path)
        content = {
            "format": _FORMAT,
            "num_experts": dict(self.num_experts),
            "calls": {
                name: [call_TK.to("cpu", torch.int32) for call_TK in calls]
                for name, calls in self.calls.items()
            },
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            torch.save(content, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read what `save` wrote; runs no code from the file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: naming the file, if it is damaged or not a recording.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch.load raises whatever its zip and pickle readers do
            raise ValueError(f"{path} is damaged or not a recording of routings") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a recording of routings ({_FORMAT!r})")
        try:
            recording = cls(num_experts=content["num_experts"], calls=content["calls"])
            recording._validate()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged recording of routings: {error}") from error
        return recording

    def _validate(self) -> None:
        if self.num_experts.keys() != self.calls.keys():
            raise ValueError("its routers and their calls do not match")
        for name, calls in self.calls.items():
            for call_TK in calls:
                if call_TK.ndim != 2 or call_TK.dtype not in (torch.int32, torch.int64):
                    raise ValueError(f"a call of {name!r} is not a (T, K) table of integers")
                if call_TK.numel() and not -1 <= int(call_TK.min()) <= int(call_TK.max()) < int(
                    self.num_experts[name]
                ):
                    raise ValueError(f"a call of {name!r} names an expert that does not exist")


@contextmanager
def record_routing(model: nn.Module) -> Iterator[Recording]:
    """Record the chosen experts of every `Router` inside ``model``.

    Forward passes run during backward (activation checkpointing) are repetitions and not
    recorded. The device is waited for once, at the end of the block, not in every call. If the
    block raises, the recording stays empty.

    Args:
        model: any module; routers are named as in ``model.named_modules()``.

    Yields:
        The recording. Its calls are there when the block has ended.

    Raises:
        ValueError: if there is no router in ``model``.
    """
    routers = _routers(model)
    routings: dict[str, list[Routing]] = {name: [] for name in routers}
    recording = Recording(
        num_experts={name: router.config.num_experts for name, router in routers.items()},
        calls={name: [] for name in routers},
    )

    def record_as(name: str) -> Callable[[nn.Module, object, Routing], None]:
        def record(_module: nn.Module, _args: object, routing: Routing) -> None:
            if not _in_backward():
                weight_R = routing.row_weight_R.detach()
                routings[name].append(replace(routing, row_weight_R=weight_R, losses={}, stats={}))

        return record

    with ExitStack() as hooks:
        for name, router in routers.items():
            hooks.callback(router.register_forward_hook(record_as(name)).remove)
        yield recording
    for name, calls in routings.items():
        # Best first, as the router lists its own choices: sums over a token's experts then run
        # in the same order, and the replayed result is the recorded one to the last bit.
        recording.calls[name].extend(chosen_experts(call, best_first=True) for call in calls)


@contextmanager
def replay_routing(model: nn.Module, recording: Recording, *, loop: bool = False) -> Iterator[None]:
    """Make every `Router` inside ``model`` use the recorded experts, call by call.

    Each router starts at the first recorded call, goes through the calls in order and need not
    use all of them. Calls that were recorded under one batch must be replayed with the same
    tokens in the same order.

    Activation checkpointing repeats forward passes during backward. A repeated call gets the
    entry of the call that it repeats and does not move on. If a router had several calls that
    the repetition could be of, it is found by the exact bits of the router's input, which waits
    for the device. **Run backward inside the block**: after it, a repeated forward pass would
    choose freely.

    What is replayed are the experts that worked on a token, after capacity: a dropped assignment
    stays dropped. Two things do not come back, because a `Routing` does not hold what capacity
    refused. With ``renormalise``, live weights are renormalised over what was kept. The
    balance loss is over the replayed choices: it differs from the recorded one where capacity
    dropped some, and from the constant 0 of expert choice. Everything else is the same to the
    last bit if the parameters are (renormalised expert choice: up to rounding).

    Args:
        model: its routers must have the names and numbers of experts of the recorded ones.
        recording: from `record_routing` or `Recording.load`.
        loop: begin again after a router's last recorded call, instead of refusing.

    Yields:
        Nothing.

    Raises:
        TypeError: at once, if ``recording`` is none, such as the path of one.
        ValueError: at once, if ``model`` has no router, or one that is not in the recording or
            has another number of experts; in a forward pass, if the recording has too few calls,
            or a call with another number of tokens; in a backward pass, if a repeated call
            matches no call of the forward pass.
    """
    if not isinstance(recording, Recording):
        raise TypeError(f"replay_routing: expected a Recording, got {recording!r}")
    routers = _routers(model)
    for name, router in routers.items():
        if name not in recording.calls:
            known = ", ".join(map(repr, recording.calls)) or "none"
            raise ValueError(f"the recording has no router {name!r}; it has {known}")
        recorded, present = recording.num_experts[name], router.config.num_experts
        if recorded != present:
            raise ValueError(
                f"router {name!r} was recorded with {recorded} experts, the model has {present}"
            )
    with ExitStack() as hooks:
        for name, router in routers.items():
            tape = _Tape(name, recording.calls[name], loop=loop)
            handle = router.register_forward_pre_hook(tape.force, with_kwargs=True)
            hooks.callback(handle.remove)
        yield


class _Tape:
    """The recorded calls of one router, and what has been handed out of them."""

    def __init__(self, name: str, calls: list[Tensor], *, loop: bool) -> None:
        self.name = name
        self.calls = calls
        self.loop = loop
        self.position = 0
        # (index of the call, T, fingerprint of the input), latest last
        self.handed_out: deque[tuple[int, int, Tensor]] = deque(maxlen=_REMEMBERED_CALLS)

    def force(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The forward pre-hook: put the recorded experts into the router's arguments."""
        if kwargs.get("forced_experts") is not None:
            raise ValueError(f"router {self.name!r} is given forced_experts during a replay")
        x_TD = args[0] if args else kwargs["x_TD"]
        call = self._repeated(x_TD) if _in_backward() else self._next(x_TD)
        forced_TK = self.calls[call].to(x_TD.device, non_blocking=True)
        return args, {**kwargs, "forced_experts": forced_TK}

    def _next(self, x_TD: Tensor) -> int:
        if self.position >= len(self.calls) and not (self.loop and self.calls):
            raise ValueError(
                f"call {self.position} of router {self.name!r} (counted from 0) is not in the "
                f"recording, which has {len(self.calls)} of that router"
            )
        call = self.position % len(self.calls)
        recorded, present = self.calls[call].shape[0], x_TD.shape[0]
        if recorded != present:
            raise ValueError(
                f"call {call} of router {self.name!r} was recorded with {recorded} tokens and is "
                f"replayed with {present}"
            )
        self.position += 1
        self.handed_out.append((call, present, _fingerprint(x_TD)))
        return call

    def _repeated(self, x_TD: Tensor) -> int:
        same_size = [entry for entry in self.handed_out if entry[1] == x_TD.shape[0]]
        candidates = {call for call, _, _ in same_size}
        if len(candidates) == 1:
            return candidates.pop()
        if same_size:
            prints = torch.stack([fingerprint for _, _, fingerprint in same_size])
            matches = (prints == _fingerprint(x_TD)).nonzero().flatten().tolist()
            if matches:
                return same_size[matches[-1]][0]
        raise ValueError(
            f"router {self.name!r} is called during backward, as activation checkpointing does, "
            f"with an input that none of its last {len(self.handed_out)} replayed calls had; run "
            "the forward pass inside the replay block too, and make it deterministic"
        )


def _routers(model: nn.Module) -> dict[str, Router]:
    routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
    if not routers:
        raise ValueError(f"there is no Router inside this {type(model).__name__}")
    return routers


def _in_backward() -> bool:
    """Whether this thread is inside a backward pass, where only recomputation runs forward."""
    return ModuleTracker().is_bw


@torch.no_grad()
def _fingerprint(x_TD: Tensor) -> Tensor:
    """An int64 scalar of the tokens' exact bits and of their order, left on the device."""
    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits_TD = x_TD.detach().view(words[x_TD.element_size()])
    # Odd multipliers that differ by token, so that no two tokens can change places unnoticed.
    # Overflow wraps, on every device.
    odd_T = torch.arange(x_TD.shape[0], device=x_TD.device) * 0x9E3779B1 * 2 + 1
    return (bits_TD.sum(dim=-1) * odd_T).sum()
