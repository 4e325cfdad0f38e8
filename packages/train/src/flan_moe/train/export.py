"""From a run folder to a ``save_pretrained`` directory that anyone can load safely."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.train.run_folder import RunFolder, RunFolderError, damage

if TYPE_CHECKING:
    from torch import Tensor

    from flan_moe.model import FlanMoEForConditionalGeneration

PREFIX = "net."
"""Where `flan_moe.train.composer_model.InstructionTuning` keeps the network."""


def export_run(
    run: str | Path, out: str | Path, *, batch: int | None = None, average: int = 1
) -> Path:
    """Write a run's model in the Hugging Face format.

    The directory holds ``config.json``, ``model.safetensors``, ``generation_config.json``, the
    tokenizer and ``recipe.yaml``. It appears whole or not at all.

    Args:
        run: The run folder. Its checkpoints are pickles: export only runs you trust.
        out: The directory to create.
        batch: Which checkpoint; default: the newest undamaged one.
        average: Average the weights of this many checkpoints, ending with that one.

    Returns:
        ``out``.

    Raises:
        RunFolderError: If ``run`` is no run, has no usable checkpoint or too few for ``average``.
        FileExistsError: If ``out`` exists.
        OSError: If ``out`` cannot be written.
    """
    from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration

    folder, out = RunFolder(run), Path(out)
    if average < 1:
        raise RunFolderError(f"average: expected a positive whole number, got {average!r}")
    if out.exists():
        raise FileExistsError(f"{out}: already exists; choose another directory or delete it")
    folder.identity()
    paths = _chosen(folder, batch, average)
    model = FlanMoEForConditionalGeneration(FlanMoEConfig.from_pretrained(folder.model_folder))
    model.load_state_dict(_mean_weights(paths))

    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_model(model, partial)
        for file in folder.tokenizer_folder.iterdir():
            shutil.copy(file, partial)
        _name_inputs(partial / "tokenizer_config.json")
        shutil.copy(folder.recipe_file, partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write_model(model: FlanMoEForConditionalGeneration, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:  # a full disk, most likely
        raise OSError(f"{folder}: the weights cannot be written: {error}") from error


def _chosen(folder: RunFolder, batch: int | None, average: int) -> list[Path]:
    checkpoints = folder.checkpoints()
    if not checkpoints:
        raise RunFolderError(f"{folder.checkpoint_folder}: no checkpoint to export")
    names = ", ".join(str(b) for b, _ in checkpoints)
    if batch is not None:
        checkpoints = [c for c in checkpoints if c[0] <= batch]
        if not checkpoints or checkpoints[-1][0] != batch:
            raise RunFolderError(
                f"{folder.checkpoint_folder}: expected one of the checkpoints {names}, got {batch}"
            )
    if len(checkpoints) < average:
        raise RunFolderError(
            f"{folder.checkpoint_folder}: expected {average} checkpoints to average, "
            f"found {len(checkpoints)} ({names})"
        )
    paths = [path for _, path in checkpoints[-average:]]
    for path in paths:
        problem = damage(path)
        if problem is not None:
            raise RunFolderError(f"{path}: damaged checkpoint: {problem}")
    return paths


def _name_inputs(file: Path) -> None:
    """Have the tokenizer make what the model takes.

    By default transformers' fast tokenizers make ``token_type_ids`` too, and
    ``model.generate(**tokenizer(text))`` refuses them.
    """
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _mean_weights(paths: list[Path]) -> dict[str, Tensor]:
    """The mean over checkpoints of each weight, summed in float64."""
    import torch

    if len(paths) == 1:
        return model_weights(paths[0])
    total: dict[str, Tensor] = {}
    for path in paths:
        for name, weight in model_weights(path).items():
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + weight.double()
    return {name: (weight / len(paths)).float() for name, weight in total.items()}


def model_weights(path: Path) -> dict[str, Any]:
    """The network's weights in a checkpoint of our own run."""
    import torch

    # Composer's checkpoints hold more than tensors; see run_folder about trust.
    state = torch.load(path, map_location="cpu", weights_only=False)["state"]["model"]
    return {name.removeprefix(PREFIX): weight for name, weight in state.items()}
