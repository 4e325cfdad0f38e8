"""Numbered jobs in worker processes that die with their parent and name what they died of."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

Job = Callable[[int], Any]


class WorkerDiedError(ChildProcessError):
    """A worker process ended without an answer.

    Attributes:
        number: Of the job that it was at.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def run_jobs(
    job: Job, numbers: Sequence[int], *, workers: int, done: Callable[[int, Any], None]
) -> None:
    """Run ``job(number)`` for every number.

    Args:
        job: Writes its result to disk and returns little.
        numbers: In the order they are started.
        workers: Processes; 0 runs all of it in this one.
        done: Told the number and what the job returned, in this process, as jobs end.

    Raises:
        WorkerDiedError: A worker was killed.
        Exception: Whatever a job raised; no other job is started, running ones are stopped.
    """
    if workers == 0:
        for number in numbers:
            done(number, job(number))
        return
    pool = _Pool()
    try:
        pool.start(job, min(workers, len(numbers)))
        pool.run(numbers, done)
    finally:
        pool.close()


class _Pool:
    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []

    def start(self, job: Job, size: int) -> None:
        # Forking hands over open tasks and closures that could not be pickled.
        context = multiprocessing.get_context("fork")
        for _ in range(size):
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            inherited = list(self._connections)
            process = context.Process(target=_work, args=(job, theirs, inherited), daemon=True)
            self._processes.append(process)  # before it runs: what interrupts must not forget it
            with warnings.catch_warnings():
                # The other threads are idle ones of tokenizers and torch; the workers use neither.
                warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
                process.start()
            theirs.close()

    def run(self, numbers: Sequence[int], done: Callable[[int, Any], None]) -> None:
        waiting = iter(numbers)
        at_work: dict[Connection, int] = {}
        for connection in self._connections:
            self._start(connection, waiting, at_work)
        while at_work:
            for connection in wait(list(at_work)):
                number = at_work.pop(connection)
                try:
                    succeeded, result = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise self._death(connection, number) from None
                if not succeeded:
                    raise result
                done(number, result)
                self._start(connection, waiting, at_work)

    def close(self) -> None:
        """Stop the workers; idle ones at once, others in the middle of their job."""
        started = [process for process in self._processes if process.pid is not None]
        for process in started:
            # Not SIGTERM: one that has just been forked still has this process's handler, and what
            # that raises (Composer's: SystemExit) is swallowed inside the hooks that run after a
            # fork. The worker would live on, and the join below would wait for it for ever.
            process.kill()
        for process in started:
            process.join()
        for connection in self._connections:
            connection.close()

    def _start(self, connection: Connection, waiting: Any, at_work: dict[Connection, int]) -> None:
        number = next(waiting, None)
        if number is None:
            return
        try:
            connection.send(number)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death(connection, number) from None
        at_work[connection] = number

    def _death(self, connection: Connection, number: int) -> WorkerDiedError:
        process = self._processes[self._connections.index(connection)]
        process.join()
        code = process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"status {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return WorkerDiedError(number, f"its worker process ended with {how}{hint}")


def _work(job: Job, connection: Connection, inherited: Sequence[Connection]) -> None:
    """The life of a worker: jobs by number until the parent closes the connection or dies."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and kills us
    for other in inherited:
        other.close()
    # One thread per worker; and threads of the parent's pool do not exist here.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            number = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer = (True, job(number))
        except BaseException as error:
            answer = (False, _sendable(error))
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _sendable(error: BaseException) -> BaseException:
    """The error itself if it survives pickling, with the worker's traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is not type(error) or str(copy) != str(error):
            raise TypeError("does not survive pickling")
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}\n{trace}")
    error.add_note(f"In a worker process:\n{trace}")
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
