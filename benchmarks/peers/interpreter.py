"""Triton's interpreter, which runs kernels on the CPU, for ours and for the peers'."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "TORCHDYNAMO_DISABLE": "1",  # ScatterMoE compiles a helper
    "LIGER_FUSED_MOE_AUTOTUNE": "0",  # tuning needs a device
}


class _NoDevice:
    """The driver of a machine without one; triton 3.3 wants it to decorate a tuned kernel."""

    def get_benchmarker(self) -> Callable[..., NoReturn]:
        return self._refuse

    @staticmethod
    def _refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("a kernel has several configurations: the interpreter cannot choose")


def ensure_interpreter() -> None:
    """Start this process over with `ENVIRONMENT`, unless it has it: it is read at import.

    Then give triton a driver, where triton is installed and the machine has no GPU.
    """
    if all(os.environ.get(name) == value for name, value in ENVIRONMENT.items()):
        if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
            from triton.runtime import driver

            driver.set_active(_NoDevice())
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ENVIRONMENT})
