"""What importing the package costs."""

import subprocess
import sys

import pytest

import flan_moe.data

HEAVY = ("streaming", "transformers", "tokenizers", "torch", "webdataset", "numpy")


@pytest.mark.parametrize(
    "statement",
    [
        "import flan_moe.data",
        "import flan_moe.data.cli",
        "from flan_moe.data import TASK_FAMILIES, Example, mini_flan_sources",
        "from flan_moe.data import readers; from flan_moe.data.sources import raw",
        "from flan_moe.data import mini_flan; mini_flan.family('weekday')",
    ],
)
def test_nothing_heavy_is_imported(statement):
    check = f"import sys; heavy = set({HEAVY}) & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", f"{statement}\n{check}"], check=True)


def test_every_public_name_exists():
    for name in flan_moe.data.__all__:
        assert getattr(flan_moe.data, name) is not None
    assert set(flan_moe.data.__all__) <= set(dir(flan_moe.data))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flan_moe.data.nothing
