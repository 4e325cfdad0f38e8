"""Killed runs and shared memory: a rerun starts, leftovers go, running jobs are left alone."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from flan_moe.data import shared_memory
from flan_moe.data.loader import dataloader

pytestmark = pytest.mark.skipif(
    not shared_memory.SHM.is_dir(), reason="leftovers are only reclaimed where /dev/shm exists"
)

RUN = """
    import sys, time
    from flan_moe.data import dataloader
    loader = dataloader(sys.argv[1], batch_size=24, num_workers=int(sys.argv[2]))
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    loader.dataset.load_state_dict(loader.state_dict())  # leaves a resume position behind
    print(loader.dataset._shm_prefix_int, flush=True)
    time.sleep(120)
"""


def start(path, workers=0):
    """A run in a process group of its own, in the middle of an epoch; and its prefix."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN), str(path), str(workers)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, int(process.stdout.readline())


def kill(process, prefix):
    """The whole group at once, so that nothing of it can clean up; returns when all are dead."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    with (shared_memory.SHM / f"{prefix:06d}_locals").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the workers' share of the hold ends with them


def blocks(prefix):
    return sorted(file.name for file in shared_memory.SHM.glob(f"{prefix:06d}_*"))


def test_a_running_job_is_left_alone_and_a_killed_one_is_cleaned_up(mini, mini_copy):
    process, prefix = start(mini_copy, workers=2)
    try:
        running = blocks(prefix)
        assert {f"{prefix:06d}_locals", f"{prefix:06d}_resume"} <= set(running)
        expected = [b["input_ids"].tolist() for b in dataloader(mini_copy, batch_size=24)]
        assert len(expected) == 18 * 40 // 24
        assert blocks(prefix) == running, "the job still runs"
        assert process.poll() is None
    finally:
        kill(process, prefix)
    assert blocks(prefix) == running, "a killed job cannot clean up"

    dataloader(mini, batch_size=24)
    assert blocks(prefix) == running, "leftovers of another directory are not ours to judge"

    fresh = [b["input_ids"].tolist() for b in dataloader(mini_copy, batch_size=24)]
    assert fresh == expected, "a rerun starts at the beginning, not at the leftover position"
    assert f"{prefix:06d}_resume" not in blocks(prefix)


def test_stale_positions_under_a_fresh_prefix_are_discarded(mini):
    held = dataloader(mini, batch_size=24).dataset
    prefix = held._shm_prefix_int
    for name in shared_memory.RUN_STATE:
        (shared_memory.SHM / f"{prefix:06d}_{name}").write_bytes(b"\0" * 4096)
    shared_memory.discard_run_state(prefix)
    assert not any(f"{prefix:06d}_{name}" in blocks(prefix) for name in shared_memory.RUN_STATE)


def test_many_processes_can_construct_at_once(mini):
    """Without the lock some fail with FileExistsError (streaming issue 884)."""
    script = textwrap.dedent(
        """
        import sys
        from flan_moe.data import dataloader
        sys.stdin.readline()
        for _ in range(5):
            loader = dataloader(sys.argv[1], batch_size=24)
        print(len(list(loader)))
        """
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(mini)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert int(out) == 18 * 40 // 24


def test_two_datasets_live_side_by_side_in_one_process(mini):
    train = dataloader(mini, batch_size=24)
    validation = dataloader(mini, batch_size=24, split="validation", shuffle=False)
    iterator = iter(train)
    seen = [len(next(iterator)["task_ids"]) for _ in range(4)]
    assert sum(len(batch["task_ids"]) for batch in validation) == 18 * 8
    seen += [len(batch["task_ids"]) for batch in iterator]
    assert sum(seen) == 18 * 40
