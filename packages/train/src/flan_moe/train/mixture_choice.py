"""The mixture that a recipe asks for, resolved: presets and files read, held-out tasks named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.train.conform import suggestion
from flan_moe.train.recipe import LoadedRecipe
from flan_moe.train.recipe_schema import examples

if TYPE_CHECKING:
    from flan_moe.data import Curriculum, MixtureSpec
    from flan_moe.data.mixing.shares import TaskShare
    from flan_moe.data.storage.task_table import TaskTable


@dataclass(frozen=True, kw_only=True)
class ChosenMixture:
    """A mixture, and what it makes of the tasks at hand.

    Attributes:
        name: Of the specification.
        curriculum: Which specification holds from which example on.
        shares: For each of its stages, the share of every training task.
    """

    name: str
    curriculum: Curriculum
    shares: tuple[tuple[TaskShare, ...], ...]

    @classmethod
    def of(cls, loaded: LoadedRecipe, tables: Mapping[str, TaskTable]) -> ChosenMixture | None:
        """Resolve ``data.mixture`` and ``data.curriculum`` of a recipe.

        Args:
            loaded: The recipe.
            tables: Stored mixture, then the table of its training tasks.

        Returns:
            None if the recipe names no mixture.

        Raises:
            RecipeError: The preset or file does not exist or is wrong, a name in it or in the
                curriculum means nothing, or no task gets a share.
        """
        from flan_moe.data import Curriculum, apply_mixture

        section = loaded.recipe.data
        if section.mixture is None:
            return None
        spec = _read(loaded, section.mixture)
        weights: dict[int, Mapping[str, float]] = {}
        for key, changes in (section.curriculum or {}).items():
            for name in changes:
                if name not in spec.sub_mixtures:
                    raise loaded.error(
                        f"data.curriculum.{key}.{name}",
                        f"no such sub-mixture in {spec.name!r}; "
                        f"{suggestion(name, spec.sub_mixtures)}",
                    )
            weights[examples(key)] = changes
            try:
                curriculum = Curriculum.reweighted(spec, weights)
            except ValueError as error:
                raise loaded.error(f"data.curriculum.{key}", str(error)) from None
        curriculum = Curriculum.reweighted(spec, weights)
        sizes = _sizes(tables)
        shares = []
        for begin, stage in curriculum.stages.items():
            try:
                shares.append(apply_mixture(stage, sizes))
            except ValueError as error:
                key = "mixture" if begin == 0 else f"curriculum.{_written(section, begin)}"
                raise loaded.error(f"data.{key}", str(error)) from None
        return cls(name=spec.name, curriculum=curriculum, shares=tuple(shares))

    @property
    def tasks(self) -> frozenset[str]:
        """Names of the tasks that some stage draws from."""
        return frozenset(s.task.name for stage in self.shares for s in stage if s.share > 0)

    @property
    def unserved(self) -> list[str]:
        """Sub-mixtures with a weight at some time, of which no task is at hand."""
        served = {s.sub_mixture for stage in self.shares for s in stage if s.rate > 0}
        weighted = {
            name
            for spec in self.curriculum.stages.values()
            for name, sub in spec.sub_mixtures.items()
            if sub.weight > 0
        }
        return sorted(weighted - served)

    def record(self) -> dict[str, Any]:
        """Everything that decides what is drawn, as JSON values; ``stages`` is what counts."""
        stages = {}
        for (begin, spec), shares in zip(self.curriculum.stages.items(), self.shares, strict=True):
            stages[str(begin)] = {
                "sub_mixtures": {name: asdict(sub) for name, sub in spec.sub_mixtures.items()},
                "held_out": [s.task.name for s in shares if s.held_out],
            }
        return json.loads(json.dumps({"name": self.name, "stages": stages}))

    def validation(self, tables: Mapping[str, TaskTable]) -> dict[str, MixtureSpec]:
        """For each sub-mixture that is trained on, a mixture of its tasks' validation examples.

        Args:
            tables: Stored mixture, then the table of its validation tasks.

        Returns:
            Only tasks that training draws from, in the proportions that it draws them in;
            sub-mixtures without validation examples are left out.
        """
        from flan_moe.data import MixtureSpec

        spec = next(iter(self.curriculum.stages.values()))
        homes = {share.task.name: share.sub_mixture for share in self.shares[0]}
        found = {}
        for label, sub in spec.sub_mixtures.items():
            ours = [
                size
                for size in _sizes(tables)
                if size.name in self.tasks
                and homes[size.name] == label
                and _has_setting(size.types, sub.template_shares)
            ]
            if ours:
                names = [size.name for size in ours]
                # Named one by one: a pattern may mean training tasks without validation examples.
                only = replace(
                    sub,
                    weight=1.0,
                    mixtures=tuple(dict.fromkeys(size.mixture for size in ours)),
                    tasks=tuple(escape(name) for name in names),
                    without=(),
                    factors=_named_factors(sub.factors, names),
                )
                found[label] = MixtureSpec(name=label, sub_mixtures={label: only})
        return found


def mixture_fingerprint(record: Mapping[str, Any] | None) -> str | None:
    """SHA-256 of what counts in a `ChosenMixture.record`."""
    if record is None:
        return None
    return hashlib.sha256(json.dumps(record["stages"]).encode()).hexdigest()


def _read(loaded: LoadedRecipe, name: str) -> MixtureSpec:
    from flan_moe.data import load_mixture

    path = Path(name)
    is_file = path.suffix in (".yaml", ".yml") or path.name != name
    try:
        return load_mixture(loaded.folder("data.mixture") / path if is_file else name)
    except (OSError, ValueError) as error:
        raise loaded.error("data.mixture", str(error)) from None


def _written(section: Any, begin: int) -> str:
    return next(key for key in section.curriculum if examples(key) == begin)


def _sizes(tables: Mapping[str, TaskTable]) -> list[Any]:
    from flan_moe.data.mixing.shares import TaskSize

    return [
        TaskSize(name=task.name, mixture=mixture, count=task.count, types=task.types)
        for mixture, table in tables.items()
        for task in table.tasks
    ]


def _has_setting(types: Mapping[str, int], shares: Mapping[str, float] | None) -> bool:
    return shares is None or any(shares.get(name, 0) > 0 for name in types)


def _named_factors(factors: Mapping[str, float], names: list[str]) -> dict[str, float]:
    """The same factors with patterns replaced by names; the first match counts."""
    from fnmatch import fnmatchcase

    found = {}
    for name in names:
        factor = next((f for pattern, f in factors.items() if fnmatchcase(name, pattern)), None)
        if factor is not None:
            found[escape(name)] = factor
    return found
