"""From a plan to a trained run folder, with Composer doing the loop."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.train.preflight import Plan, check_recipe
from flan_moe.train.recipe import LoadedRecipe
from flan_moe.train.run_folder import RunFolder

if TYPE_CHECKING:
    from composer import Callback, Evaluator, Trainer
    from composer.loggers import LoggerDestination

    from flan_moe.data.streaming.seen import Seen
    from flan_moe.train.callbacks.metrics_log import MetricsLog
    from flan_moe.train.callbacks.task_counts import TaskCounts
    from flan_moe.train.interruption import StopSignal


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def train(
    loaded: LoadedRecipe, out: str | Path, report: Callable[[str], None] = say
) -> dict[str, Any]:
    """Run a recipe, or continue the run that ``out`` already holds.

    Args:
        loaded: The recipe.
        out: The run folder.
        report: Receives progress lines.

    Returns:
        Summary of the finished run: batches, examples, tokens, examples that were longer than a
        row and cut, training seconds and the losses of the last batch.

    Raises:
        RecipeError: If the recipe is impossible; nothing has been written then.
        RunFolderError: If ``out`` holds something else or only damaged checkpoints, or another
            process is training there.
        TrainingInterruptedError: If SIGTERM or SIGINT arrived; the state has been saved.
        TrainingDivergedError: If a weight is no longer finite; earlier checkpoints stay.
        OSError: If ``out`` cannot be written; the checkpoints that are there are whole.
    """
    plan = check_recipe(loaded)
    folder = RunFolder(out)
    try:
        return _train(plan, folder, report)
    finally:
        folder.release()


def _train(plan: Plan, folder: RunFolder, report: Callable[[str], None]) -> dict[str, Any]:
    from composer.utils import dist

    from flan_moe.train.callbacks.task_counts import overlong_line
    from flan_moe.train.interruption import StopSignal

    leads = dist.get_global_rank() == 0
    if leads:
        folder.open(
            plan.loaded.recipe,
            plan.data.fingerprint,
            None if plan.data.mixture is None else plan.data.mixture.record(),
        )
        plan.config.save_pretrained(folder.model_folder)
        shutil.copytree(plan.data.path / "tokenizer", folder.tokenizer_folder, dirs_exist_ok=True)
    else:
        report = _silent
    summary = folder.finished()
    if summary is not None:
        report(f"{folder.path}: this run is finished")
        return summary
    checkpoint = folder.latest_checkpoint(warn=report)
    if checkpoint is not None:
        report(f"{folder.path}: continuing after batch {checkpoint[0]}")
    for line in (plan.data.describe_mixture(), plan.data.cut_examples(plan.loaded.recipe)):
        if line is not None:
            report(f"{plan.loaded.recipe.name}: {line}")
    with StopSignal() as stop:
        trainer = build_trainer(
            plan, folder, resume=checkpoint and checkpoint[1], stop=stop, report=report
        )
        try:
            if trainer.state.timestamp < trainer.state.max_duration:
                trainer.fit()
            counts = trainer.state.train_dataloader.seen.total()
            summary = _summary(trainer, counts)
        finally:
            trainer.close()
            _close_datasets(trainer)
    overlong = overlong_line(counts)
    if overlong is not None:
        report(f"{plan.loaded.recipe.name}: {overlong}")
    if leads:
        folder.finish(summary)
    return summary


def _close_datasets(trainer: Trainer) -> None:
    """Free the shared memory of the data; Composer keeps the datasets until the process ends."""
    loaders = [evaluator.dataloader.dataloader for evaluator in trainer.state.evaluators]
    for loader in [trainer.state.train_dataloader, *loaders]:
        loader.dataset.close()


def _silent(line: str) -> None:
    """Report nothing: one of several ranks speaks."""


def build_trainer(
    plan: Plan,
    folder: RunFolder,
    *,
    resume: Path | None = None,
    stop: StopSignal | None = None,
    report: Callable[[str], None] = say,
) -> Trainer:
    """The Composer `Trainer` of a plan.

    Microbatches are weighed by their target tokens (``accumulate_train_batch_on_tokens``), so the
    cross-entropy's gradient does not depend on how a batch is divided. Auxiliary losses are those
    of each microbatch, averaged with the same weights.

    Args:
        plan: What to train.
        folder: Where to write.
        resume: A checkpoint of this run.
        stop: The signal to stop at.
        report: Receives progress lines.
    """
    from composer import Trainer
    from composer.algorithms import GradientClipping

    from flan_moe.train.batches import data_spec
    from flan_moe.train.callbacks.metrics_log import MetricsLog
    from flan_moe.train.callbacks.task_counts import TaskCounts
    from flan_moe.train.composer_model import InstructionTuning
    from flan_moe.train.networks import build_network
    from flan_moe.train.optimizers import build_optimizer
    from flan_moe.train.schedules import build_schedule

    recipe = plan.loaded.recipe
    training = recipe.training
    network = build_network(plan.loaded, plan.config)
    model = InstructionTuning(network, rows=plan.data.row_lengths(recipe))
    clip = training.gradient_clip
    loader = plan.data.train_loader(recipe)
    log = MetricsLog(folder.metrics_file)
    counts = TaskCounts(loader.seen, log, report)
    return Trainer(
        model=model,
        optimizers=build_optimizer(recipe.optimizer, model.net),
        schedulers=build_schedule(recipe.schedule),
        step_schedulers_every_batch=True,
        algorithms=[]
        if clip is None
        else [GradientClipping(clipping_type="norm", clipping_threshold=clip)],
        train_dataloader=data_spec(loader),
        eval_dataloader=_evaluators(plan),
        max_duration=training.duration,
        device_train_microbatch_size=training.microbatch_rows or recipe.data.batch_size,
        accumulate_train_batch_on_tokens=True,
        precision=training.precision,
        device=None if training.device == "auto" else training.device,
        deterministic_mode=training.deterministic,
        seed=recipe.seed,
        run_name=recipe.name,
        load_path=None if resume is None else str(resume),
        load_progress_bar=False,
        callbacks=_callbacks(plan, folder, counts, stop, report),
        loggers=_loggers(plan, folder, log),
        progress_bar=False,
        log_to_console=False,
        auto_log_hparams=False,
        python_log_level="warning",
    )


def _callbacks(
    plan: Plan,
    folder: RunFolder,
    counts: TaskCounts,
    stop: StopSignal | None,
    report: Callable[[str], None],
) -> list[Callback]:
    from composer.callbacks import LRMonitor, SpeedMonitor

    from flan_moe.train.callbacks.checkpoint_writer import CheckpointWriter
    from flan_moe.train.callbacks.lasting_gradients import LastingGradients
    from flan_moe.train.callbacks.progress import Progress
    from flan_moe.train.callbacks.router_balancing import RouterBalancing
    from flan_moe.train.callbacks.router_monitor import RouterMonitor
    from flan_moe.train.callbacks.step_seed import StepSeed

    recipe = plan.loaded.recipe
    logging, checkpoint = recipe.logging, recipe.checkpoint
    callbacks: list[Callback] = [
        StepSeed(recipe.seed),
        LRMonitor(),
        SpeedMonitor(window_size=10),
        RouterBalancing(),
        LastingGradients(),
        counts,
        CheckpointWriter(folder, checkpoint.interval, checkpoint.keep, stop, before=counts.write),
    ]
    if logging.router_every:
        callbacks.append(RouterMonitor(logging.router_every))
    if logging.progress_every:
        callbacks.append(Progress(recipe.name, logging.progress_every, report))
    return callbacks


def _loggers(plan: Plan, folder: RunFolder, log: MetricsLog) -> list[LoggerDestination]:
    loggers: list[LoggerDestination] = [log]
    if plan.loaded.recipe.logging.tensorboard:
        from composer.loggers import TensorboardLogger

        loggers.append(TensorboardLogger(log_dir=str(folder.path / "tensorboard")))
    return loggers


def _evaluators(plan: Plan) -> list[Evaluator] | None:
    from composer import Evaluator

    from flan_moe.train.batches import data_spec

    recipe = plan.loaded.recipe
    if recipe.evaluation.interval is None:
        return None
    return [
        Evaluator(
            label=mixture,
            dataloader=data_spec(loader),
            eval_interval=recipe.evaluation.interval,
            device_eval_microbatch_size=recipe.training.microbatch_rows,
        )
        for mixture, loader in plan.data.validation_loaders(recipe).items()
    ]


def _summary(trainer: Trainer, counts: dict[str, Seen]) -> dict[str, Any]:
    now = trainer.state.timestamp
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "batches": now.batch.value,
        "examples": now.sample.value,
        "tokens": now.token.value,
        "overlong_examples": sum(count.overlong for count in counts.values()),
        "training_seconds": round(now.total_wct.total_seconds(), 3),
        "losses": {
            key.removeprefix("loss/train/"): value
            for key, value in (trainer.state.total_loss_dict or {}).items()
        },
    }
