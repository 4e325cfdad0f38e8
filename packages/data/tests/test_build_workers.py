"""Jobs in worker processes: all done, errors as they were raised, no worker outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from flan_moe.data.building.disk import DiskFullError
from flan_moe.data.building.workers import WorkerDiedError, run_jobs


def run(job, count=6, workers=2):
    results = {}
    run_jobs(job, range(count), workers=workers, done=results.__setitem__)
    return results


@pytest.mark.parametrize("workers", [0, 1, 2, 9])
def test_every_job_is_done_once(workers):
    assert run(lambda number: number**2, workers=workers) == {n: n * n for n in range(6)}
    assert run(lambda number: number, count=0, workers=workers) == {}


def test_jobs_run_in_other_processes_with_what_was_open_here():
    things = iter([object()])  # nothing that could be sent
    pids = set(run(lambda number: (things, os.getpid())[1]).values())
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


@pytest.mark.parametrize("error", [ValueError("file x, line 3"), DiskFullError("/a: no room")])
def test_an_error_arrives_as_it_was_raised(error):
    def job(number):
        raise error

    with pytest.raises(type(error)) as caught:
        run(job)
    assert str(caught.value) == str(error)
    assert "in job" in caught.value.__notes__[0]


def test_an_error_that_cannot_be_sent_is_told():
    class OddError(Exception):
        pass

    def job(number):
        raise OddError("strange")

    with pytest.raises(RuntimeError, match="OddError: strange"):
        run(job)


def test_a_killed_worker_is_named():
    def job(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerDiedError, match=r"signal SIGKILL \(out of memory\?\)") as caught:
        run(job)
    assert caught.value.number == 3


def test_a_worker_that_has_just_been_forked_ends_whatever_the_handlers_here():
    """Composer's handler of SIGTERM raises, and hooks run after a fork swallow what is raised."""
    code = """
        import os, signal, sys, time
        from flan_moe.data.building.workers import run_jobs
        def fail(number):
            raise ValueError(number)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        delays = [1.0, 0.0]  # the second worker is still in a hook when the first has failed
        os.register_at_fork(
            after_in_parent=delays.pop, after_in_child=lambda: time.sleep(delays[-1])
        )
        try:
            run_jobs(fail, range(2), workers=2, done=print)
        except ValueError:
            print("ended")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "ended\n", ended.stderr


def test_workers_end_when_there_is_no_process_for_the_next(monkeypatch):
    pids, fork = [], os.fork

    def fork_twice():
        if len(pids) == 2:
            raise BlockingIOError("no more processes")
        pid = fork()
        if pid:
            pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", fork_twice)
    with pytest.raises(BlockingIOError) as caught:  # kept, as a notebook keeps the last error
        run(lambda number: number, workers=3)
    assert caught.value.args == ("no more processes",)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


SCRIPT = """
    import os, sys, time
    from flan_moe.data.building.workers import run_jobs
    def job(number):
        os.write(1, b"%d\\n" % os.getpid())  # one write: the two do not mix
        time.sleep(60)
    run_jobs(job, range(2), workers=2, done=print)
"""


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().split()[2] != "Z"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_do_not_outlive_their_parent(number):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(number)
    assert process.wait(30) != 0
    deadline = time.monotonic() + 10
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.02)
