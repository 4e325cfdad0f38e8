"""What ``"auto"`` is, by device and dtype; the device is pretended where there is none."""

import pytest
import torch

from flan_moe.experts import choice


@pytest.fixture
def pretend(monkeypatch):
    def pretend(*, capability, triton):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        choice._triton_version.cache_clear()

        def version(name):
            if triton is None:
                raise choice.metadata.PackageNotFoundError(name)
            return triton

        monkeypatch.setattr(choice.metadata, "version", version)

    yield pretend
    choice._triton_version.cache_clear()


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "triton", "expected"),
    [
        ("cuda", torch.bfloat16, (9, 0), "3.3.0", "triton"),
        ("cuda", torch.float16, (8, 0), "3.10.1", "triton"),
        ("cuda", torch.bfloat16, (9, 0), "3.2.0", "grouped"),
        ("cuda", torch.bfloat16, (9, 0), None, "grouped"),
        ("cuda", torch.bfloat16, (12, 0), "3.3.0", "grouped"),
        ("cuda", torch.bfloat16, (12, 0), "3.9.0", "triton"),
        ("cuda", torch.float16, (7, 5), "3.3.0", "grouped"),
        ("cuda", torch.float32, (9, 0), "3.3.0", "grouped"),
        ("cuda", torch.float64, (9, 0), "3.3.0", "grouped"),
        ("cpu", torch.bfloat16, (9, 0), "3.3.0", "grouped"),
        ("mps", torch.float16, (9, 0), "3.3.0", "grouped"),
    ],
)
def test_the_choice(pretend, device, dtype, capability, triton, expected):
    pretend(capability=capability, triton=triton)
    assert choice.choose_backend(torch.device(device), dtype) == expected
