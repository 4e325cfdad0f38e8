"""Killed runs and shared memory: a rerun starts, leftovers go, running jobs are left alone."""

import fcntl
import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flan_moe.data.streaming import shared_memory
from flan_moe.data.streaming.loader import dataloader
from flan_moe.data.streaming.shared_memory import SHM

pytestmark = pytest.mark.skipif(
    not SHM.is_dir(), reason="leftovers are only reclaimed where /dev/shm exists"
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
    with (SHM / f"{prefix:06d}_locals").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the workers' share of the hold ends with them


def blocks(prefix):
    return sorted(file.name for file in SHM.glob(f"{prefix:06d}_*"))


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
        (SHM / f"{prefix:06d}_{name}").write_bytes(b"\0" * 4096)
    shared_memory.discard_run_state(prefix)
    assert not any(f"{prefix:06d}_{name}" in blocks(prefix) for name in shared_memory.RUN_STATE)


def test_many_processes_can_construct_at_once(mini):
    """Without the lock some fail with FileExistsError (streaming issue 884)."""
    script = textwrap.dedent(
        """
        import sys
        from flan_moe.data import dataloader
        sys.stdin.readline()
        for _ in range(20):
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


def held(directory):
    """Descriptors and blocks of this process, and prefixes on the machine that name a directory."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    blocks = len(re.findall(r"/dev/shm/\d{6}_", maps))
    name = str(directory).encode()
    prefixes = [file for file in SHM.glob("*_locals") if name in read_if_there(file)]
    return len(os.listdir("/proc/self/fd")), blocks, len(prefixes)


def read_if_there(file):
    """The bytes of a block, which another process may take away meanwhile."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def nothing_more_than(before, directory):
    """Whether no more is held, once threads that have been told to stop have stopped."""
    deadline = time.monotonic() + 10
    while any(now > then for now, then in zip(held(directory), before, strict=True)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def read_whole(make):
    assert sum(1 for _ in make()) == 30


def give_up_half_way(make):
    next(iter(make()))


def resume(make):
    first, second = make(), make()
    next(iter(first))
    second.load_state_dict(first.state_dict())
    assert [sum(1 for _ in second) for _ in range(3)] == [29, 30, 30]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("use", [read_whole, give_up_half_way, resume])
def test_a_dataset_that_is_gone_leaves_nothing_behind(mini, use, workers):
    """Streaming alone keeps a dozen descriptors of each, and more the more there were before."""
    standing = dataloader(mini, batch_size=24)
    assert len(list(standing)) == 30
    before = held(mini)
    for _ in range(3):
        use(lambda: dataloader(mini, batch_size=24, num_workers=workers))
    assert nothing_more_than(before, mini)
    assert len(list(standing)) == 30


def test_epochs_of_a_resumed_run_open_no_more_and_more(mini):
    loader = dataloader(mini, batch_size=24)
    loader.load_state_dict(loader.state_dict())
    list(loader)
    before = held(mini)
    for _ in range(3):
        assert len(list(loader)) == 30
    assert nothing_more_than(before, mini)


def test_a_closed_dataset_gives_its_memory_back_while_it_is_referred_to(mini):
    standing = dataloader(mini, batch_size=24)
    before = held(mini)
    for use in (list, lambda loader: next(iter(loader)), lambda loader: None):
        loader = dataloader(mini, batch_size=24)
        use(loader)
        dataset = loader.dataset
        del loader
        dataset.close()
        dataset.close()
        assert nothing_more_than(before, mini)
    assert sum(1 for _ in standing) == 30


def test_a_forked_child_does_not_take_the_memory_away(mini):
    loader = dataloader(mini, batch_size=24)
    child = os.fork()
    if not child:
        del loader
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(loader)) == 30
