"""The workspace itself: wheels that install together, commands and documents that agree."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEMBERS = ["routing", "experts", "model", "data", "eval", "train"]


def project(member: str) -> dict:
    return tomllib.loads((ROOT / "packages" / member / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """A wheel of each member, built as ``hatch run build`` builds it."""
    pytest.importorskip("build", reason="building wheels needs the workspace environment")
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out)]
    for member in MEMBERS:
        subprocess.run([*build, str(ROOT / "packages" / member)], check=True, capture_output=True)
    return {m: next(out.glob(f"flan_moe_{m}-*.whl")) for m in MEMBERS}


def test_each_wheel_holds_its_own_package_only(wheels):
    for member, wheel in wheels.items():
        names = zipfile.ZipFile(wheel).namelist()
        code = {n for n in names if ".dist-info/" not in n}
        assert code, wheel
        assert all(n.startswith(f"flan_moe/{member}/") for n in code), wheel
        source = ROOT / "packages" / member / "src"
        kept = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
        kept = {n for n in kept if "__pycache__" not in n}
        assert code == kept, "the wheel must ship every source and data file"
        assert any(n.endswith("licenses/LICENSE") for n in names), "the licence travels along"


def test_wheels_install_together(wheels, tmp_path):
    """All six unpack into one folder and import from there, with their console scripts."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*install, *map(str, wheels.values())], check=True)
    code = "import importlib\nfor m in %r: print(importlib.import_module('flan_moe.' + m).__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code % MEMBERS],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    paths = [Path(line) for line in run.stdout.split()]
    assert [p.parent.parent.parent for p in paths] == [tmp_path] * len(MEMBERS)
    for script in ("flan-moe-data", "flan-moe-model", "flan-moe-train", "flan-moe-eval"):
        assert (tmp_path / "bin" / script).exists()


@pytest.mark.parametrize("member", MEMBERS)
def test_each_member_is_documented(member):
    folder = ROOT / "packages" / member
    version = re.search(
        r'^__version__ = "(.+)"$',
        (folder / "src" / "flan_moe" / member / "__about__.py").read_text(),
        re.M,
    ).group(1)
    assert f"## {version}" in (folder / "CHANGELOG.md").read_text()
    assert (folder / "README.md").read_text().startswith(f"# flan-moe-{member}")
    assert project(member)["name"] == f"flan-moe-{member}"


def test_ci_runs_the_readme_test_command():
    commands = re.findall(r"^    (python3 .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    tests = [c for c in commands if c.endswith("hatch run test")]
    assert len(tests) == 1
    assert tests[0] in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize(
    "script", ["flan-moe-data", "flan-moe-model", "flan-moe-train", "flan-moe-eval"]
)
def test_console_scripts_answer_help_with_examples(script):
    run = subprocess.run(
        [Path(sys.executable).parent / script, "--help"], capture_output=True, text=True, check=True
    )
    assert "example" in run.stdout.lower()
    assert f"{script} " in run.stdout.lower().split("example", 1)[1]


def test_benchmarks_are_listed_and_unknown_ones_refused():
    command = [sys.executable, str(ROOT / "benchmarks")]
    listed = subprocess.run(command, capture_output=True, text=True)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "experts" in listed.stdout
    refused = subprocess.run([*command, "speed"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "'speed'" in refused.stderr
