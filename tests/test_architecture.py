"""The import arrows of the house: routing <- experts <- model <- train; data, eval <- train."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ROOT / "packages"

ALLOWED = {
    "routing": set(),
    "experts": {"routing"},
    "model": {"routing", "experts"},
    "data": set(),
    "eval": set(),
    "train": {"model", "data", "eval", "experts", "routing"},
}

# What importing one package must not pull in: the reason the packages are separate.
FORBIDDEN_AT_IMPORT = {
    "routing": {"triton", "transformers", "composer", "streaming", "flan_moe.experts"},
    "experts": {"triton", "transformers", "composer", "streaming", "flan_moe.model"},
    "model": {"xformers", "composer", "streaming", "matplotlib"},
    "data": {"composer", "streaming", "flan_moe.model", "flan_moe.routing"},
    "eval": {"composer", "streaming", "flan_moe.model", "flan_moe.data"},
    "train": {"composer", "streaming"},
}


def sibling_imports(source: str) -> set[str]:
    """Names X of every ``flan_moe.X`` that a module imports, wherever in the module it does."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module)
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in modules if name.startswith("flan_moe.")}


def sources(package: str) -> list[Path]:
    return sorted((PACKAGES / package / "src").rglob("*.py"))


def test_the_arrow_finder_sees_every_form_of_import():
    code = (
        "import flan_moe.data\nfrom flan_moe import eval as e\n"
        "def f():\n    from flan_moe.train.cli import main\n"
    )
    assert sibling_imports(code) == {"data", "eval", "train"}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_follow_the_arrows(package):
    assert sources(package), f"no sources found for {package}"
    for path in sources(package):
        against = sibling_imports(path.read_text()) - ALLOWED[package] - {package}
        assert not against, f"{path.relative_to(ROOT)} imports {against} against the arrows"


@pytest.mark.parametrize("package", ALLOWED)
def test_imported_siblings_are_declared(package):
    project = tomllib.loads((PACKAGES / package / "pyproject.toml").read_text())["project"]
    declared = {d.split(">")[0].strip() for d in project["dependencies"]}
    imported = set().union(*(sibling_imports(p.read_text()) for p in sources(package))) - {package}
    assert {f"flan-moe-{name}" for name in imported} <= declared
    pinned = [d for d in project["dependencies"] if d.startswith("flan-moe-")]
    assert all(">=" in d and "<" in d for d in pinned), f"unbounded sibling pin in {pinned}"


def test_flan_moe_is_a_namespace():
    """One ``__init__.py`` in any member would hide the other five."""
    assert not list(PACKAGES.glob("*/src/flan_moe/__init__.py"))
    for package in ALLOWED:
        assert [p.name for p in (PACKAGES / package / "src" / "flan_moe").iterdir()] == [package]


@pytest.mark.parametrize("package", ALLOWED)
def test_importing_a_package_stays_light(package):
    code = (
        f"import sys, flan_moe.{package}\n"
        f"print(*[m for m in {sorted(FORBIDDEN_AT_IMPORT[package])!r} if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.split() == []
