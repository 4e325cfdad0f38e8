"""A specification applied to tasks at hand: names checked, evaluation sets looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from flan_moe.data.mixing.shares import TaskShare, TaskSize, task_shares
from flan_moe.data.mixing.spec import MixtureSpec
from flan_moe.data.registry.registry import Registry, load_registry
from flan_moe.data.registry.task import RegisteredTask
from flan_moe.data.suggestion import suggestion


def apply_mixture(
    spec: MixtureSpec, tasks: Sequence[TaskSize], *, registry: Registry | None = None
) -> tuple[TaskShare, ...]:
    """The share of every task at hand, in the order given.

    As `task_shares`, after every name and pattern of the specification was found to mean something
    and ``@SET`` entries were looked up in the registry.

    Args:
        spec: The mixture.
        tasks: With at least one sample each.
        registry: Tasks and evaluation sets that are known; None for the packaged one.

    Raises:
        ValueError: A pattern matches neither a task at hand nor a registered one, a mixture or an
            evaluation set is unknown, or as `task_shares`; names the key and the value.
    """
    if registry is None and _is_plain(spec, tasks):
        return task_shares(spec, tasks)
    registry = load_registry() if registry is None else registry
    check_names(spec, tasks, registry)
    reasons = held_out_reasons(spec, [task.name for task in tasks], registry)
    return task_shares(spec, tasks, held_out=reasons)


def _is_plain(spec: MixtureSpec, tasks: Sequence[TaskSize]) -> bool:
    """Whether the registry, which takes a while to read, has nothing to add."""
    try:
        check_names(spec, tasks, ())
    except ValueError:  # a name that the registry may know
        return False
    return not spec.held_out


def held_out_reasons(
    spec: MixtureSpec, names: Iterable[str], registry: Registry
) -> Mapping[str, str]:
    """Tasks that the specification holds out, in the order given, each with the reason.

    A name without wildcards stands for all spellings of a registered task, and so do the tasks that
    ``@SET`` stands for. A task that is told from its namesake by its mixture and a point, such as
    ``t0_sf.bool_q``, answers to the name without as well.

    Raises:
        ValueError: An evaluation set is unknown.
    """
    result: dict[str, str] = {}
    sets: dict[str, dict[str, str]] = {}
    for entry in spec.held_out:
        if entry.startswith("@"):
            try:
                found = registry.overlapping(entry[1:])
            except ValueError as error:
                raise ValueError(f"mixture {spec.name!r}: held_out: {error}") from None
            sets[entry] = {task.name: f"{overlap.set}: {overlap.reason}" for task, overlap in found}
    prefixes = tuple(f"{mixture}." for mixture in sorted({task.mixture for task in registry}))
    for name in names:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        plain = name.removeprefix(prefix)
        known = registry.find(name) or registry.find(plain)
        called = {name, plain} | (set() if known is None else set(known.spellings))
        for entry in spec.held_out:
            if entry.startswith("@"):
                reason = None if known is None else sets[entry].get(known.name)
            else:
                matches = entry in called or any(fnmatchcase(n, entry) for n in (name, plain))
                reason = f"named by held_out, {entry!r}" if matches else None
            if reason is not None:
                result.setdefault(name, reason)
    return result


def check_names(
    spec: MixtureSpec, tasks: Sequence[TaskSize], registry: Iterable[RegisteredTask]
) -> None:
    """Check that every mixture and pattern of a specification means something.

    Raises:
        ValueError: One matches neither a task at hand nor a registered one; names it and suggests
            what may have been meant.
    """
    names = {task.name for task in tasks}
    names |= {spelling for task in registry for spelling in task.spellings}
    mixtures = {task.mixture for task in tasks} | {task.mixture for task in registry} | {"jsonl"}
    where = f"mixture {spec.name!r}: "
    for key, sub in spec.sub_mixtures.items():
        for mixture in sub.mixtures:
            if mixture not in mixtures:
                raise ValueError(
                    f"{where}sub_mixtures.{key}.mixtures: no mixture {mixture!r}"
                    f"{suggestion(mixture, mixtures)}; expected one of "
                    f"{', '.join(sorted(mixtures))}"
                )
        for attribute in ("tasks", "without", "factors"):
            for pattern in getattr(sub, attribute):
                _check_pattern(pattern, names, f"{where}sub_mixtures.{key}.{attribute}")
    for entry in spec.held_out:
        if not entry.startswith("@"):
            _check_pattern(entry, names, f"{where}held_out")


def _check_pattern(pattern: str, names: Iterable[str], where: str) -> None:
    if pattern in names or any(fnmatchcase(name, pattern) for name in names):
        return
    raise ValueError(
        f"{where}: {pattern!r} matches no task, at hand or registered{suggestion(pattern, names)}"
    )
