"""Where the host would wait for a device, seen on the CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostReads(TorchDispatchMode):
    """Records the operations whose result or shape the host must read off the data."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if waits & set(func.tags):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))
