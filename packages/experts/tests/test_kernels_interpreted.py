"""Runs the tests of the triton backend in Triton's interpreter, on CPU.

Triton decides at import whether kernels are interpreted, so they get a process of their own. On a
CUDA device the same tests run in this one, compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_oracle import INTERPRETED

pytest.importorskip("triton")

FILES = [
    str(Path(__file__).with_name(f"test_kernels_{name}.py"))
    for name in ("pass", "promises", "stages", "tune")
]


@pytest.mark.skipif(INTERPRETED, reason="this is the process with the interpreter")
def test_in_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *FILES],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
