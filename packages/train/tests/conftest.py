"""A small data folder for all tests, and the helper modules beside them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

RECIPE = """\
name: tiny
model: {preset: flan-moe-tiny, overrides: {dropout_rate: 0.1}}
data: {path: DATA, batch_size: 16, epoch_size: 80, input_length: 128}
optimizer: {name: adafactor, lr: 0.03}
schedule: {name: linear, warmup: 2ba}
training: {duration: 12ba, device: cpu, gradient_clip: 1.0}
checkpoint: {interval: 2ba, keep: 10}
logging: {progress_every: 4, router_every: 1}
"""


@pytest.fixture(scope="session")
def data_path(tmp_path_factory):
    """mini-Flan with a handful of examples per family."""
    from flan_moe.data import BuildOptions, build_data_directory, mini_flan_sources

    path = tmp_path_factory.mktemp("data") / "mini-flan"
    sources = mini_flan_sources(examples=12, validation=4, evaluation=4, seed=0)
    options = BuildOptions(
        name="mini-flan", source="tests", vocab_size=400, max_input_tokens=128, max_target_tokens=48
    )
    build_data_directory(path, sources, options, report=lambda line: None)
    return path


@pytest.fixture
def load(data_path):
    """Reads the tests' recipe with overrides."""
    from flan_moe.train.recipe import read_recipe

    text = RECIPE.replace("DATA", str(data_path))
    return lambda *overrides: read_recipe(text, "recipe.yaml", overrides)
