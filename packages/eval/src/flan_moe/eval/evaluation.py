"""Running a suite: prompts, requests, answers, scores, means."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flan_moe.eval.aggregate import group_scores, task_score
from flan_moe.eval.judge import judge
from flan_moe.eval.language_model import LanguageModel, TokenAware
from flan_moe.eval.plan import Cell, Decoding, plan_cells
from flan_moe.eval.progress import Progress
from flan_moe.eval.prompts import Prompt, fit_prompt
from flan_moe.eval.requests import GenerateRequest, LoglikelihoodRequest, Request, Response
from flan_moe.eval.results import Method, Results, TaskScore
from flan_moe.eval.samples import Sample, SampleLog, log_key, log_path
from flan_moe.eval.suite import Item, Mode, Suite


def evaluate(
    lm: LanguageModel,
    suite: Suite,
    *,
    shots: Sequence[int] = (0,),
    modes: Sequence[Mode] = ("direct", "cot"),
    limit: int | None = None,
    out_dir: str | Path | None = None,
    progress: bool = False,
    model_name: str = "",
    fingerprint: str | None = None,
    decoding: Decoding | None = None,
    chunk_size: int = 64,
    overwrite: bool = False,
) -> Results:
    """Ask a model every question of a suite and score its answers.

    With ``out_dir``, answers go to one log per (task, shots, mode) as they come, and
    ``results.json`` is written at the end. Calling again with the same model and settings answers
    only what is missing. The same prompt is asked once. Chain of thought is asked of the tasks that
    have it; the other tasks are asked directly only.

    Args:
        lm: The model.
        suite: What to ask, see :func:`flan_moe.eval.load_suite`.
        shots: Numbers of exemplars to evaluate with, each on its own.
        modes: "direct", "cot" or both.
        limit: Use the first so many items of each task; None for all.
        out_dir: Where logs and results go; None keeps nothing on disk.
        progress: Report on standard error.
        model_name: Name to put into the results.
        fingerprint: Digest of the model for its logs; None asks the model for it.
        decoding: Bounds of generation; None for the defaults.
        chunk_size: Requests per call of the model, and so items per write of the log.
        overwrite: Replace logs of another model or setting in ``out_dir``.

    Returns:
        Scores per task and group.

    Raises:
        ValueError: A setting is impossible (more shots than a task has exemplars, say), or
            ``out_dir`` is given and nothing identifies the model.
        SampleLogError: A log in ``out_dir`` is corrupt or of another run.
    """
    decoding = decoding or Decoding()
    cells = plan_cells(suite, shots=shots, modes=modes, limit=limit)
    if chunk_size < 1:
        raise ValueError(f"chunk_size: {chunk_size}; expected at least 1")
    if fingerprint is None:
        # Asked for once: it may read all weights.
        fingerprint = getattr(lm, "fingerprint", None)
    folder = Path(out_dir) if out_dir is not None else None
    logs = _open_logs(cells, folder, fingerprint, decoding, overwrite)
    reporter = Progress(sys.stderr if progress else None, cells=len(cells))
    answers: dict[Request, Response] = {}
    scores = [
        _run_cell(lm, cell, log, decoding, answers, chunk_size, reporter)
        for cell, log in zip(cells, logs, strict=True)
    ]
    results = Results(
        suite=suite.name,
        suite_hash=suite.content_hash(),
        model=model_name,
        fingerprint=fingerprint,
        decoding=asdict(decoding),
        limit=limit,
        environment=_environment(),
        tasks=tuple(scores),
        groups=group_scores(scores),
    )
    if folder is not None:
        results.save(folder / "results.json")
    return results


def _open_logs(
    cells: Sequence[Cell],
    folder: Path | None,
    fingerprint: str | None,
    decoding: Decoding,
    overwrite: bool,
) -> list[SampleLog | None]:
    if folder is None:
        return [None] * len(cells)
    if fingerprint is None:
        raise ValueError(
            "out_dir: logs are kept per model, and this one has no `fingerprint`; pass one as "
            "evaluate(fingerprint=...) or leave out_dir out"
        )
    return [
        SampleLog(
            log_path(folder, task=cell.task.name, shots=cell.shots, mode=cell.mode),
            log_key(
                model=fingerprint,
                task=cell.task.name,
                content=cell.task.content_hash(),
                shots=cell.shots,
                mode=cell.mode,
                method=cell.method,
                decoding=asdict(decoding),
            ),
            overwrite=overwrite,
        )
        for cell in cells
    ]


def _run_cell(
    lm: LanguageModel,
    cell: Cell,
    log: SampleLog | None,
    decoding: Decoding,
    answers: dict[Request, Response],
    chunk_size: int,
    reporter: Progress,
) -> TaskScore:
    prompts = [_prompt(lm, cell, item, decoding) for item in cell.items]
    requests = [
        cell.request(prompt.text, item, decoding)
        for prompt, item in zip(prompts, cell.items, strict=True)
    ]
    logged = _logged(log, cell, prompts)
    answers.update({requests[index]: response for index, response in logged.items()})

    def sample(index: int) -> Sample:
        return judge(
            cell.items[index],
            prompts[index],
            answers[requests[index]],
            kind=cell.answers,
            mode=cell.mode,
            answer_cue=cell.task.answer_cue,
            count_tokens=lm.count_tokens if isinstance(lm, TokenAware) else None,
        )

    label = f"{cell.task.name} {cell.shots}-shot {cell.mode}"
    reporter.start(label, items=len(requests), done=len(logged))
    done = len(logged)
    for chunk in _chunks(requests, chunk_size):
        pending = [request for request in chunk if request not in answers]
        if not pending:
            continue
        answers.update(zip(pending, _ask(lm, cell.method, pending), strict=True))
        asked = set(pending)
        finished = [index for index, request in enumerate(requests) if request in asked]
        if log is not None:
            log.append(sample(index) for index in finished)
        done += len(finished)
        reporter.update(done, len(requests))
    samples = [sample(index) for index in range(len(requests))]
    if log is not None:
        log.finish(samples)
    score = task_score(cell.task, samples, shots=cell.shots, mode=cell.mode, method=cell.method)
    reporter.finish(f"{100 * score.score:.1f} % of {score.n}")
    return score


def _prompt(lm: LanguageModel, cell: Cell, item: Item, decoding: Decoding) -> Prompt:
    def excess(text: str) -> int:
        if not isinstance(lm, TokenAware):
            return 0
        return lm.excess_tokens(cell.request(text, item, decoding))

    return fit_prompt(cell.task, item, shots=cell.shots, mode=cell.mode, excess=excess)


def _logged(log: SampleLog | None, cell: Cell, prompts: Sequence[Prompt]) -> dict[int, Response]:
    """Answers that the log already holds, by position of the item."""
    if log is None:
        return {}
    found = {}
    for index, (item, prompt) in enumerate(zip(cell.items, prompts, strict=True)):
        sample = log.samples.get(item.id)
        if sample is None:
            continue
        if sample.prompt != prompt.text:
            raise ValueError(
                f"{log.path}: item {item.id!r} was asked with another prompt; choose another "
                "folder, or overwrite it"
            )
        found[index] = sample.response()
    return found


def _chunks(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Distinct requests, longest prompt first, in pieces that do not depend on what is answered.

    A resumed run so forms the same batches as one that was never interrupted. The longest go first
    because a model that runs out of memory should do so at once.
    """
    distinct = sorted(dict.fromkeys(requests), key=lambda request: -len(request.prompt))
    for start in range(0, len(distinct), size):
        yield distinct[start : start + size]


def _ask(lm: LanguageModel, method: Method, requests: list[Request]) -> Sequence[Response]:
    responses: Sequence[Response]
    if method == "loglikelihood":
        scored = [request for request in requests if isinstance(request, LoglikelihoodRequest)]
        responses = lm.loglikelihood(scored)
    else:
        responses = lm.generate([r for r in requests if isinstance(r, GenerateRequest)])
    if len(responses) != len(requests):
        raise ValueError(
            f"{type(lm).__name__} gave {len(responses)} answers to {len(requests)} requests"
        )
    return responses


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("flan-moe-eval", "torch", "transformers", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
