"""The data side of a recipe: a folder that ``flan-moe-data`` built."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flan_moe.train.conform import suggestion
from flan_moe.train.recipe import LoadedRecipe
from flan_moe.train.recipe_schema import Recipe
from flan_moe.train.row_lengths import RowLengths

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

    from flan_moe.data import Manifest


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """A checked data folder.

    Attributes:
        path: The folder.
        manifest: What it holds.
        tokenizer: Its tokenizer.
        fingerprint: SHA-256 of its manifest, which lists the hashes of everything else.
    """

    path: Path
    manifest: Manifest
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @classmethod
    def open(cls, loaded: LoadedRecipe) -> DataFolder:
        """Open the folder of a recipe.

        Raises:
            RecipeError: If the folder is missing, incomplete or damaged, has no such mixture, or
                was built for shorter sequences than the recipe needs.
        """
        from flan_moe.data import load_tokenizer, open_data_directory

        section = loaded.recipe.data
        path = Path(section.path)
        if not path.is_dir():
            raise loaded.error(
                "data.path",
                f"expected a folder built by flan-moe-data, got {section.path!r}, which "
                f"{'is a file' if path.exists() else 'does not exist'}",
            )
        try:
            manifest = open_data_directory(path)
            tokenizer = load_tokenizer(path / "tokenizer")
            manifest.check_tokenizer(tokenizer, path / "manifest.json")
        except (OSError, ValueError) as error:
            raise loaded.error("data.path", str(error)) from None
        digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
        folder = cls(path=path, manifest=manifest, tokenizer=tokenizer, fingerprint=digest)
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

    def train_loader(self, recipe: Recipe) -> DataLoader:
        """Packed training batches, resumable."""
        from composer.utils import dist

        from flan_moe.data import dataloader

        section = recipe.data
        return dataloader(
            self.path,
            batch_size=section.batch_size // dist.get_world_size(),
            weights=self._weights(section.mixtures),
            epoch_size=section.epoch_size,
            seed=recipe.seed,
            max_input_tokens=section.input_length,
            max_target_tokens=section.target_length,
            num_workers=section.workers,
        )

    def validation_loaders(self, recipe: Recipe) -> dict[str, DataLoader]:
        """Packed validation batches of each mixture: the same examples every time."""
        from composer.utils import dist

        from flan_moe.data import dataloader

        section, splits = recipe.data, self.manifest.splits
        return {
            mixture: dataloader(
                self.path,
                split="validation",
                batch_size=section.batch_size // dist.get_world_size(),
                weights=self._weights({mixture: 1.0}),
                epoch_size=min(
                    recipe.evaluation.examples, splits["validation"][mixture]["examples"]
                ),
                shuffle=False,
                max_input_tokens=section.input_length,
                max_target_tokens=section.target_length,
            )
            for mixture in self.mixtures(recipe)
            if mixture in splits.get("validation", {})
        }

    def mixtures(self, recipe: Recipe) -> list[str]:
        """Mixtures that the recipe trains on."""
        chosen = recipe.data.mixtures
        return [m for m in self.manifest.splits["train"] if chosen is None or chosen.get(m)]

    def row_lengths(self, recipe: Recipe) -> RowLengths:
        """Length of the recipe's packed rows."""
        return RowLengths.of(recipe.data, self.manifest)

    def cut_examples(self, recipe: Recipe) -> str | None:
        """One line naming the tasks with examples longer than a row, which are cut; else None."""
        from flan_moe.data import read_task_table

        rows = self.row_lengths(recipe)
        budgets = {"input": rows.input, "target": rows.target}
        cut = []
        for mixture in self.mixtures(recipe):
            for task in read_task_table(self.path / "train" / mixture).tasks:
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
        if loaded.recipe.evaluation.interval is not None and not any(
            m in self.manifest.splits.get("validation", {}) for m in self.mixtures(loaded.recipe)
        ):
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
        key = "mixtures" if section.epoch_size is None else "epoch_size"
        try:
            plan_epoch(
                self.path,
                self.manifest,
                "train",
                self._weights(section.mixtures),
                section.epoch_size,
                shuffle=True,
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
