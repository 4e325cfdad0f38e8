"""Recipes are read strictly: every refusal says where, which key, which value and what instead."""

import dataclasses
import re

import pytest

from flan_moe.train import conform
from flan_moe.train.recipe import (
    RecipeError,
    as_yaml,
    differences,
    load_recipe,
    located,
    read_recipe,
    shipped_recipes,
)
from flan_moe.train.recipe_schema import (
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    ModelSection,
    TrainingSection,
)

RECIPE = """\
name: tiny
model: {preset: flan-moe-tiny}
data:
  path: somewhere
  batch_size: 8
  input_length: 32
  target_length: 8
optimizer:
  name: adamw
  lr: 1e-4
training:
  duration: 10ba
checkpoint:
  interval: 5ba
"""


def read(text=RECIPE, *overrides):
    return read_recipe(text, "recipe.yaml", overrides).recipe


def refusal(text=RECIPE, *overrides):
    with pytest.raises(RecipeError) as error:
        read(text, *overrides)
    return str(error.value)


def test_a_recipe_is_read_with_its_defaults():
    recipe = read()
    assert recipe.optimizer == AdamW(lr=1e-4)
    assert recipe.schedule == Constant()
    assert recipe.checkpoint.autoresume is True
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "other"


def test_the_resolved_recipe_reads_back_equal():
    recipe = read(
        RECIPE, "data.mixtures={cot: 1, muffin: 2.5}", "optimizer={name: adafactor, lr: 1e-3}"
    )
    assert read(as_yaml(recipe)) == recipe
    assert "autoresume: true" in as_yaml(recipe), "every default is spelled out"


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        (
            "  lr: 1e-4",
            "  lr: fast",
            "recipe.yaml:10: optimizer.lr: expected a positive number, got 'fast'",
        ),
        (
            "  lr: 1e-4",
            "  lr: -1",
            "recipe.yaml:10: optimizer.lr: expected a positive number, got -1.0",
        ),
        (
            "  lr: 1e-4",
            "  lr: .nan",
            "recipe.yaml:10: optimizer.lr: expected a positive number, got nan",
        ),
        (
            "  lr: 1e-4",
            "  lr: true",
            "recipe.yaml:10: optimizer.lr: expected a positive number, got True",
        ),
        ("  lr: 1e-4", "", "recipe.yaml:8: optimizer.lr: missing"),
        (
            "  batch_size: 8",
            "  batch_sise: 8",
            "recipe.yaml:5: data.batch_sise: unknown key; did you mean 'batch_size'?",
        ),
        (
            "  batch_size: 8",
            "  batch_size: 8.5",
            "recipe.yaml:5: data.batch_size: expected a positive whole number, got 8.5",
        ),
        (
            "  name: adamw",
            "  name: adamv",
            "recipe.yaml:9: optimizer.name: expected 'adamw' or 'adafactor', got 'adamv'; "
            "did you mean 'adamw'?",
        ),
        (
            "  name: adamw",
            "  name: adafactor\n  betas: [0.9, 0.99]",
            "recipe.yaml:10: optimizer.betas: unknown key; "
            "known: clip_threshold, decay, lr, min_dim_size_to_factor, name, scale_parameter, "
            "weight_decay",
        ),
        ("  name: adamw", "", "recipe.yaml:8: optimizer.name: missing; one of adamw, adafactor"),
        (
            "  duration: 10ba",
            "  duration: 10",
            "recipe.yaml:12: training.duration: expected a duration such as '600ba', '2ep', "
            "'50000sp' or '1000000tok', got 10",
        ),
        (
            "  duration: 10ba",
            "  duration: 10ba\n  precision: fp64",
            "recipe.yaml:13: training.precision: expected 'fp32' or 'amp_bf16', got 'fp64'",
        ),
        (
            "model: {preset: flan-moe-tiny}",
            "model: {preset: a, path: b}",
            "recipe.yaml:2: model.preset: expected either preset or path, got both",
        ),
        (
            "name: tiny",
            "name: ../tiny",
            "recipe.yaml:1: name: expected a name of letters, digits, '.', '_' and '-', "
            "got '../tiny'",
        ),
        (
            "  interval: 5ba",
            "  interval: 5ba\nschedule: {name: cosine, warmup: 20ba}",
            "recipe.yaml:15: schedule.warmup: expected no more than training.duration (10ba), "
            "got '20ba'",
        ),
        (
            "  interval: 5ba",
            "  interval: 5ba\nschedule: {name: cosine, warmup: 20tok}",
            "recipe.yaml:15: schedule.warmup: expected the unit of training.duration (10ba), "
            "got '20tok'",
        ),
        ("  interval: 5ba", "  interval: 5ba\nname: again", "recipe.yaml:15: name: given twice"),
        (
            "model: {preset: flan-moe-tiny}",
            "model: [flan-moe-tiny]",
            "recipe.yaml:2: model: expected a mapping with the keys preset, path, dense_twin, "
            "overrides, got ['flan-moe-tiny']",
        ),
        (
            "  path: somewhere",
            "  path: somewhere\n  mixtures: {cot: 0}",
            "recipe.yaml:5: data.mixtures: expected at least one positive weight, got {'cot': 0.0}",
        ),
        (
            "  path: somewhere",
            "  path: somewhere\n  mixtures: {cot: 1e308, t0_sf: 1e308}",
            "recipe.yaml:5: data.mixtures: expected weights with a finite sum, "
            "got {'cot': 1e+308, 't0_sf': 1e+308}",
        ),
        (
            "model: {preset: flan-moe-tiny}",
            "model: {preset: flan-moe-tiny, dense_twin: true, path: x}",
            "recipe.yaml:2: model.preset: expected either preset or path, got both",
        ),
    ],
)
def test_what_is_wrong_is_refused_at_its_line(line, instead, message):
    assert line in RECIPE
    assert refusal(RECIPE.replace(line, instead)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yaml: name: missing"),
        ("- a", "recipe.yaml:1: expected a mapping with the keys name, seed"),
        ("a: [1", "recipe.yaml:1: not valid YAML:"),
        ("a: 1\nb: {c\n", "recipe.yaml:3: not valid YAML:"),
        ("a: &x [*x]", "recipe.yaml:1: an alias that contains itself"),
        ("1: 2", "recipe.yaml:1: expected a name as key, got 1"),
        ("a: !!python/object:os.system x", "recipe.yaml:1: not valid YAML:"),
        ("a: 2024-13-01", "recipe.yaml:1: not valid YAML: month must be in 1..12"),
        ("a: 1\n---\nb: 2", "recipe.yaml:2: not valid YAML:"),
        ("a: \0", "recipe.yaml: not valid YAML: unacceptable character #x0000"),
        ("a: !!bool maybe", "recipe.yaml:1: not valid YAML: 'maybe' is no bool"),
        ("a: !!timestamp now", "recipe.yaml:1: not valid YAML: 'now' is no timestamp"),
        ("a: 1\n2024-13-01: 2", "recipe.yaml:2: not valid YAML: month must be in 1..12"),
        ("a: " + "[" * 5000, "recipe.yaml: nested too deeply"),
        ("a: 0x" + "f" * 5000, "recipe.yaml:1: expected whole numbers of at most 64 bits"),
    ],
)
def test_what_is_no_recipe_at_all_is_refused(text, message):
    assert refusal(text).startswith(message)


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory():
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for name, inner in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{inner}'] * 9)}]")
    message = refusal("\n".join(lines))
    assert message == "recipe.yaml:1: more than 100,000 values, aliases written out"


def test_numbers_without_a_dot_are_numbers():
    """YAML 1.1 reads 1e-4 as text; nobody who writes a learning rate means that."""
    assert read().optimizer.lr == 1e-4
    assert read(RECIPE.replace("1e-4", "3E+1")).optimizer.lr == 30.0
    assert read(RECIPE.replace("1e-4", "1")).optimizer.lr == 1.0


def test_overrides_reach_every_depth():
    recipe = read(
        RECIPE,
        "optimizer.lr=3e-4",
        "schedule={name: cosine, warmup: 2ba}",
        "schedule.final=0.1",
        "data.mixtures.cot=2",
        "model.overrides.dropout_rate=0.05",
    )
    assert recipe.optimizer.lr == 3e-4
    assert recipe.schedule == Cosine(warmup="2ba", final=0.1)
    assert recipe.data.mixtures == {"cot": 2.0}
    assert recipe.model.overrides == {"dropout_rate": 0.05}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.lr=fast",
            "override 'optimizer.lr=fast': optimizer.lr: expected a positive number, got 'fast'",
        ),
        (
            "optimizer.lrr=1",
            "override 'optimizer.lrr=1': optimizer.lrr: unknown key; did you mean 'lr'?",
        ),
        ("lr", "override 'lr': expected key=value, such as optimizer.lr=3e-4"),
        (".lr=1", "override '.lr=1': expected key=value, such as optimizer.lr=3e-4"),
        ("name.x=1", "override 'name.x=1': name is 'tiny', which has no keys"),
        ("seed=[", "override 'seed=[': the value is not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(override, message):
    assert refusal(RECIPE, override) == message


def test_python_callers_get_the_same_checks():
    with pytest.raises(ValueError, match=r"^lr: expected a positive number, got 0\.0$"):
        Adafactor(lr=0.0)
    with pytest.raises(
        conform.InvalidValueError, match=r"dense_twin: expected false with model\.path"
    ):
        ModelSection(path="x", dense_twin=True)
    with pytest.raises(ValueError, match="duration: expected a duration such as"):
        TrainingSection(duration="ten")
    with pytest.raises(TypeError):
        AdamW("adamw", 1e-3)  # keyword-only


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"absent\.yaml: cannot read the recipe: No such file"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.yaml: cannot read the recipe: not UTF-8"):
        load_recipe(tmp_path / "binary.yaml")


def test_differences_name_the_key_and_both_values():
    changed = read(RECIPE, "optimizer.lr=3e-4", "data.mixtures={cot: 1}")
    assert differences(read(), changed) == [
        "data.mixtures: None -> {'cot': 1.0}",
        "optimizer.lr: 0.0001 -> 0.0003",
    ]
    assert differences(changed, changed) == []


def test_errors_about_a_recipe_built_in_python_name_its_key():
    error = located(read()).error("data.path", "expected a folder")
    assert str(error) == "recipe: data.path: expected a folder"


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_read(name):
    assert load_recipe(name).recipe == load_recipe(shipped_recipes()[name]).recipe


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_the_command_in_a_recipe_is_one_that_can_be_typed(name):
    """Nothing to fill in but the data folder."""
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    commands = re.findall(r"^#   flan-moe-train run (.*)$", text, re.MULTILINE)
    assert len(commands) == 1
    recipe, *overrides = commands[0].split()
    assert load_recipe(recipe, overrides).recipe.name == name.replace("_", "-")
    assert [o for o in overrides if o.split("=")[1].isupper()] in ([], ["data.path=FOLDER"])


def test_the_memory_that_flan_base_names_is_that_of_its_attention_bias():
    from flan_moe.model import flan_moe_config

    path = shipped_recipes()["flan_base"]
    recipe = load_recipe(path).recipe
    heads = flan_moe_config(recipe.model.preset).num_heads
    lengths = (recipe.data.input_length, recipe.data.target_length)
    named = [int(n) for n in re.findall(r"([0-9]+) MiB per row", path.read_text(encoding="utf-8"))]
    assert named == [4 * heads * length**2 / 2**20 for length in lengths]
    total = 2 * sum(named) * recipe.training.microbatch_rows / 1024
    assert f"{total:.1f} GiB" in path.read_text(encoding="utf-8")
