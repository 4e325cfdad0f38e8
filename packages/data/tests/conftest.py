"""A small built mini-Flan, shared by the tests that only read it."""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from flan_moe.data.build import BuildOptions, build_data_directory
from flan_moe.data.mini_flan.sources import mini_flan_sources

EXAMPLES = 40


def build_mini(path, *, seed=0, **options):
    sources = mini_flan_sources(examples=EXAMPLES, validation=8, evaluation=12, seed=seed)
    settings = {"vocab_size": 1200, "shard_bytes": 10_000, "webdataset": True, **options}
    chosen = BuildOptions(name="mini-flan", source="test", seed=seed, **settings)
    build_data_directory(path, sources, chosen, report=lambda line: None)
    return path


@pytest.fixture(scope="session")
def mini(tmp_path_factory):
    """A data directory with 18 held-in tasks of 40 training examples. Not to be changed."""
    return build_mini(tmp_path_factory.mktemp("data") / "mini")


@pytest.fixture
def mini_copy(mini, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(mini, tmp_path / "copy")


@pytest.fixture(scope="session")
def rebuild():
    """The function that built it."""
    return build_mini


@pytest.fixture(scope="session")
def dump():
    """Writers of templated rows in every layout: the functions of ``templated_files.py``."""
    file = Path(__file__).with_name("templated_files.py")
    spec = spec_from_file_location(file.stem, file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
