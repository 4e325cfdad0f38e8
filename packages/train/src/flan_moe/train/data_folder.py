"""The data side of a recipe: a folder that ``flan-moe-data`` built."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.train.conform import suggestion
from flan_moe.train.mixture_choice import ChosenMixture
from flan_moe.train.recipe import LoadedRecipe
from flan_moe.train.recipe_schema import Recipe
from flan_moe.train.row_lengths import RowLengths

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

    from flan_moe.data import Manifest, MixtureSpec
    from flan_moe.data.storage.task_table import TaskTable
    from flan_moe.data.streaming.loader import MixtureLoader
    from flan_moe.data.streaming.remote import OpenedDirectory


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """A checked data folder.

    Attributes:
        opened: Where it is; of a URL, the folder that its files are kept in as well.
        path: The folder on this machine.
        manifest: What it holds.
        tokenizer: Its tokenizer.
        fingerprint: SHA-256 of its manifest, which lists the hashes of everything else.
        tables: Split, then stored mixture, then its task table.
        mixture: What the recipe's ``data.mixture`` makes of its tasks, if it names one.
    """

    opened: OpenedDirectory
    path: Path
    manifest: Manifest
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    tables: Mapping[str, Mapping[str, TaskTable]]
    mixture: ChosenMixture | None

    @classmethod
    def open(cls, loaded: LoadedRecipe) -> DataFolder:
        """Open the folder of a recipe.

        Raises:
            RecipeError: If the folder is missing, incomplete or damaged, cannot be fetched, has no
                such mixture, or was built for shorter sequences than the recipe needs.
        """
        from flan_moe.data import load_tokenizer
        from flan_moe.data.offline.manifest import is_packed
        from flan_moe.data.storage.manifest import open_with_tables
        from flan_moe.data.streaming.remote import open_location

        section = loaded.recipe.data
        path = Path(section.path)
        if "://" not in section.path and not path.is_dir():
            raise loaded.error(
                "data.path",
                f"expected a folder built by flan-moe-data, got {section.path!r}, which "
                f"{'is a file' if path.exists() else 'does not exist'}",
            )
        try:
            opened = open_location(section.path, cache=section.cache)
            path = opened.folder
            manifest, tables = open_with_tables(path, complete=opened.source is None)
            tokenizer = load_tokenizer(path / "tokenizer")
            manifest.check_tokenizer(tokenizer, path / "manifest.json")
        except (OSError, ValueError) as error:
            hint = "; give the folder they were packed from" if is_packed(path) else ""
            raise loaded.error("data.path", f"{error}{hint}") from None
        digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
        folder = cls(
            opened=opened,
            path=path,
            manifest=manifest,
            tokenizer=tokenizer,
            fingerprint=digest,
            tables=tables,
            mixture=ChosenMixture.of(loaded, tables["train"]),
        )
        folder._check_mixtures(loaded)
        folder._check_lengths(loaded)
        folder._check_epoch(loaded)
        return folder

    @property
    def tokenizer_size(self) -> int:
        """Token ids that the shards may hold."""
        return self.manifest.vocab_size

    def describe(self) -> str:
        """One line for people."""
        train = self.manifest.splits["train"]
        counts = ", ".join(f"{name} {c['examples']:,}" for name, c in train.items())
        return (
            f"{self.manifest.name}: {counts} training examples, "
            f"{self.manifest.vocab_size:,} token ids, fingerprint {self.fingerprint[:12]}"
        )

    def describe_mixture(self) -> str | None:
        """One line on the recipe's ``data.mixture``, if it names one."""
        if self.mixture is None:
            return None
        tasks, stages = len(self.mixture.tasks), len(self.mixture.curriculum.stages)
        held_out = len({s.task.name for s in self.mixture.shares[0] if s.held_out})
        line = f"mixture {self.mixture.name}: {tasks:,} tasks, {held_out:,} held out"
        if stages > 1:
            line += f", {stages - 1} change{'s' if stages > 2 else ''} of weights"
        if self.mixture.unserved:
            line += (
                f"; no task for {', '.join(self.mixture.unserved)}: the others divide the weight"
            )
        return line

    def train_loader(self, recipe: Recipe) -> MixtureLoader:
        """Packed training batches, resumable."""
        from composer.utils import dist

        from flan_moe.data import dataloader

        section = recipe.data
        return dataloader(
            self.opened,
            batch_size=section.batch_size // dist.get_world_size(),
            weights=self._weights(section.mixtures),
            mixture=None if self.mixture is None else self.mixture.curriculum,
            epoch_size=section.epoch_size,
            seed=recipe.seed,
            max_input_tokens=section.input_length,
            max_target_tokens=section.target_length,
            num_workers=section.workers,
        )

    def validation_loaders(self, recipe: Recipe) -> dict[str, DataLoader]:
        """Packed validation batches of each mixture: the same examples every time.

        Of a recipe with ``data.mixture``, of each of its sub-mixtures, without held-out tasks.
        """
        from composer.utils import dist

        from flan_moe.data import dataloader

        section = recipe.data
        return {
            label: dataloader(
                self.opened,
                split="validation",
                batch_size=section.batch_size // dist.get_world_size(),
                epoch_size=min(recipe.evaluation.examples, available),
                shuffle=False,
                max_input_tokens=section.input_length,
                max_target_tokens=section.target_length,
                **choice,
            )
            for label, (available, choice) in self._validation(recipe).items()
        }

    def mixtures(self, recipe: Recipe) -> list[str]:
        """Stored mixtures that the recipe trains on."""
        chosen, tables = recipe.data.mixtures, self.tables["train"]
        if self.mixture is not None:
            tasks = self.mixture.tasks
            return [m for m, table in tables.items() if any(t.name in tasks for t in table.tasks)]
        return [m for m in tables if chosen is None or chosen.get(m)]

    def _validation(self, recipe: Recipe) -> dict[str, tuple[int, dict[str, Any]]]:
        """Label, then the validation examples there are, and how a dataloader chooses them."""
        tables = self.tables.get("validation", {})
        if self.mixture is not None:
            return {
                label: (self._available(spec), {"mixture": spec})
                for label, spec in self.mixture.validation(tables).items()
            }
        return {
            mixture: (tables[mixture].num_samples, {"weights": self._weights({mixture: 1.0})})
            for mixture in self.mixtures(recipe)
            if mixture in tables
        }

    def _available(self, spec: MixtureSpec) -> int:
        """Validation examples of a mixture, up to its caps."""
        from flan_moe.data.streaming.mixture import plan_epoch

        return plan_epoch(
            self.path,
            self.manifest,
            "validation",
            None,
            None,
            shuffle=False,
            mixture=spec,
            tables=self.tables["validation"],
        ).epoch_size

    def row_lengths(self, recipe: Recipe) -> RowLengths:
        """Length of the recipe's packed rows."""
        return RowLengths.of(recipe.data, self.manifest)

    def cut_examples(self, recipe: Recipe) -> str | None:
        """One line naming the tasks with examples longer than a row, which are cut; else None."""
        rows = self.row_lengths(recipe)
        budgets = {"input": rows.input, "target": rows.target}
        cut = []
        for mixture in self.mixtures(recipe):
            for task in self.tables["train"][mixture].tasks:
                if self.mixture is not None and task.name not in self.mixture.tasks:
                    continue
                longest = {"input": task.max_input_tokens, "target": task.max_target_tokens}
                cut += [
                    f"{mixture}/{task.name} ({longest[side]:,} {side} tokens)"
                    for side, budget in budgets.items()
                    if longest[side] > budget
                ]
        if not cut:
            return None
        named = ", ".join(cut[:3]) + (f" and {len(cut) - 3} more" if len(cut) > 3 else "")
        return (
            f"examples longer than a row of {rows.input:,} input and {rows.target:,} target tokens "
            f"are cut: {named}"
        )

    def _weights(self, chosen: Mapping[str, float] | None) -> dict[str, float] | None:
        """Weights of all mixtures, 0 for those that are not chosen."""
        return chosen and {m: chosen.get(m, 0.0) for m in self.manifest.splits["train"]}

    def _check_mixtures(self, loaded: LoadedRecipe) -> None:
        known = self.manifest.splits["train"]
        for name in loaded.recipe.data.mixtures or ():
            if name not in known:
                raise loaded.error(
                    f"data.mixtures.{name}",
                    f"no such mixture in {self.path}; {suggestion(name, known)}",
                )
        if loaded.recipe.evaluation.interval is not None and not self._validation(loaded.recipe):
            raise loaded.error(
                "evaluation.interval", f"expected null: {self.path} has no validation examples"
            )

    def _check_epoch(self, loaded: LoadedRecipe) -> None:
        """Every mixture has a sample in an epoch."""
        from flan_moe.data.packing import MAX_WORKERS
        from flan_moe.data.streaming.mixture import plan_epoch

        section = loaded.recipe.data
        if section.workers > MAX_WORKERS:
            raise loaded.error(
                "data.workers", f"expected at most {MAX_WORKERS}, got {section.workers}"
            )
        key = "mixtures" if self.mixture is None else "mixture"
        key = key if section.epoch_size is None else "epoch_size"
        try:
            plan_epoch(
                self.path,
                self.manifest,
                "train",
                self._weights(section.mixtures),
                section.epoch_size,
                shuffle=True,
                mixture=None if self.mixture is None else self.mixture.curriculum,
                tables=self.tables["train"],
            )
        except ValueError as error:
            raise loaded.error(f"data.{key}", str(error)) from None

    def _check_lengths(self, loaded: LoadedRecipe) -> None:
        """Rows longer than any example was built for are legal; shorter ones would cut examples."""
        for key, built in (
            ("input_length", self.manifest.max_input_tokens),
            ("target_length", self.manifest.max_target_tokens),
        ):
            value = getattr(loaded.recipe.data, key)
            if value is not None and value < built:
                raise loaded.error(
                    f"data.{key}",
                    f"expected at least {built}, the length {self.path} was built for, got {value}",
                )
