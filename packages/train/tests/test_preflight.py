"""Impossible recipes are refused before anything is written, at the line that makes them so."""

import json
import shutil

import pytest

from flan_moe.data import read_manifest, read_mds
from flan_moe.model import FlanMoEForConditionalGeneration, dense_twin, flan_moe_config
from flan_moe.train.networks import build_network
from flan_moe.train.preflight import check_recipe
from flan_moe.train.recipe import RecipeError, differences, load_recipe, shipped_recipes
from flan_moe.train.trainer import train


def refusal(loaded):
    with pytest.raises(RecipeError) as error:
        check_recipe(loaded)
    return str(error.value)


def test_a_possible_recipe_says_what_it_makes(load):
    plan = check_recipe(load())
    assert plan.config.vocab_size == 448, "the tokenizer's 400 ids, rounded up to 64"
    assert plan.config.encoder_router["num_experts"] == 4
    assert plan.config.dropout_rate == 0.1
    assert "training examples" in plan.data.describe()


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_possible(name, data_path):
    plan = check_recipe(load_recipe(name, [f"data.path={data_path}"]))
    assert plan.config.vocab_size == 448
    if name == "flan_base":
        config = plan.config
        assert (config.dropout_rate, config.expert_dropout_rate) == (0.05, 0.2)
        assert config.encoder_router["name"] == "expert_choice"
        assert plan.loaded.recipe.optimizer.lr == 1e-4


def test_the_mini_recipes_differ_in_the_model_alone():
    sparse, dense = (load_recipe(name).recipe for name in ("mini_sparse", "mini_dense"))
    assert differences(sparse, dense) == [
        "model.dense_twin: False -> True",
        "name: 'mini-sparse' -> 'mini-dense'",
    ]


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("encoder_router={top_k: 9}", "encoder_router.top_k", "top_k"),
        ("encoder_router.top_k=9", "encoder_router.top_k", "top_k"),
        ("decoder_router={name: expert_choice, top_k: 1}", "decoder_router.name", "causal"),
        ("encoder_router.capacity=2", "encoder_router.capacity", "capacity"),
        ("d_modle=64", "d_modle", "did you mean 'd_model'"),
        ("dropout_rate=2", "dropout_rate", "2"),
        ("torch_dtype=float16", "torch_dtype", "unknown option"),
        ("model_type=t5", "model_type", "unknown option"),
        ("auto_map={AutoModel: evil.Model}", "auto_map", "unknown option"),
        ("num_layers=0", "num_layers", "0"),
        ("activation=relux", "activation", "relux"),
        ("vocab_size=100", "vocab_size", "at least 400 for the tokenizer of"),
    ],
)
def test_the_model_refuses_by_key_and_value(load, override, key, message):
    text = f"model.overrides.{override}"
    error = refusal(load(text))
    assert error.startswith(f"override {text!r}: model.overrides."), error
    assert key.split(".")[-1] in error
    assert message in error


def test_an_unknown_preset_is_refused_with_the_known_ones(load):
    error = refusal(load("model.preset=flan-moe-tny"))
    assert error.startswith("override 'model.preset=flan-moe-tny': model.preset:")
    assert "'flan-moe-tny'" in error
    assert "'flan-moe-tiny'" in error


def test_router_overrides_are_merged_and_null_makes_a_stack_dense(load):
    config = check_recipe(
        load("model.overrides.encoder_router.num_experts=16", "model.overrides.decoder_router=null")
    ).config
    tiny = flan_moe_config("flan-moe-tiny")
    assert config.encoder_router == {**tiny.encoder_router, "num_experts": 16}
    assert config.decoder_router is None


def test_a_router_of_another_name_starts_from_its_own_options(load):
    override = "model.overrides.encoder_router={name: deepseek_v4, top_k: 2}"
    router = check_recipe(load(override)).config.encoder_router
    assert (router["num_experts"], router["top_k"]) == (4, 2), "of the preset; as given"
    assert router["score"] == "sqrt_softplus"
    assert router["capacity_factor"] is None


def test_the_dense_twin_is_the_models_own(load):
    plan = check_recipe(load("model.dense_twin=true"))
    twin = dense_twin(check_recipe(load()).config)
    assert plan.config.to_dict() == twin.to_dict()


def test_a_fresh_network_depends_on_the_recipe_s_seed_alone(load):
    import torch

    plan = check_recipe(load())
    torch.manual_seed(1)
    one = build_network(plan.loaded, plan.config)
    state = torch.random.get_rng_state()
    two = build_network(plan.loaded, plan.config)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's state stays"
    other = build_network(load("seed=18"), plan.config)
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=nowhere", "data.path: expected a folder built by flan-moe-data, got 'nowhere'"),
        ("data.mixtures={cott: 1}", "data.mixtures.cott: no such mixture in"),
        ("data.input_length=64", "data.input_length: expected at least 128"),
        ("data.target_length=16", "data.target_length: expected at least 48"),
        ("data.epoch_size=8", "data.epoch_size: expected at least data.batch_size (16), got 8"),
        ("data.epoch_size=1000000000000", "data.epoch_size: epoch_size is 1000000000000; expected"),
        (
            "data.mixtures={cot: 1, niv2: 1e-9}",
            "data.epoch_size: epoch_size is 80; mixture 'niv2' with share 1e-09 would get no",
        ),
        ("data.workers=257", "data.workers: expected at most 256, got 257"),
        (
            "training.microbatch_rows=17",
            "training.microbatch_rows: expected at most data.batch_size (16), got 17",
        ),
        (
            "training.precision=amp_bf16",
            "training.precision: expected 'fp32' on a CPU, got 'amp_bf16'",
        ),
        (
            "checkpoint.interval=13ba",
            "checkpoint.interval: expected at most training.duration (12ba), got '13ba'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(load, override, message):
    error = refusal(load(override))
    # A refusal is placed at the line of the key it blames, which need not be the override's.
    assert f": {message}" in error, error
    assert error.startswith((f"override {override!r}: ", "recipe.yaml:3: ")), error


def test_a_model_that_cannot_fit_the_machine_is_refused(load):
    error = refusal(load("model.overrides.vocab_size=2000000000", "model.overrides.d_model=8192"))
    assert ": model: expected weights that fit the " in error


def longest_examples(path):
    """Mixture and task, then its longest input and target, from the shards."""
    names = {task["id"]: task["name"] for task in read_manifest(path).tasks}
    found = {}
    for folder in sorted((path / "train").iterdir()):
        for sample in read_mds(folder):
            key = folder.name, names[sample["task"]]
            lengths = len(sample["input_ids"]), len(sample["labels"])
            found[key] = tuple(map(max, found.get(key, lengths), lengths))
    return found


def test_examples_longer_than_a_row_are_announced_by_task(load, data_path, tmp_path):
    roomy = load("data.input_length=256", "data.target_length=64")
    assert check_recipe(roomy).data.cut_examples(roomy.recipe) is None
    line = check_recipe(load()).data.cut_examples(load().recipe)
    start = "examples longer than a row of 128 input and 48 target tokens are cut: "
    assert line.startswith(start)
    expected = [
        f"{mixture}/{task} ({length} {side} tokens)"
        for (mixture, task), lengths in longest_examples(data_path).items()
        for side, length, row in zip(("input", "target"), lengths, (128, 48), strict=True)
        if length > row
    ]
    assert expected
    named, _, more = line.removeprefix(start).partition(" and ")
    assert set(named.split(", ")) <= set(expected)
    assert len(named.split(", ")) + int(more.split()[0] if more else 0) == len(expected)
    lines = []
    with pytest.raises(RuntimeError, match="far enough"):
        train(load(), tmp_path / "run", report=stop_at(line, lines))
    assert lines == [f"tiny: {line}"], "before training, not after"


def stop_at(text, lines):
    def report(line):
        lines.append(line)
        if text in line:
            raise RuntimeError("far enough")

    return report


def test_a_mixture_s_misspelling_is_recognised(load):
    assert "did you mean 'cot'?" in refusal(load("data.mixtures={cott: 1}"))


def test_a_gpu_is_not_made_up(load, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "training.device: expected 'cpu' or 'auto'" in refusal(load("training.device=gpu"))


def test_a_missing_logger_is_refused(load, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "logging.tensorboard: expected false" in refusal(load("logging.tensorboard=true"))


@pytest.fixture
def damaged(data_path, tmp_path):
    return shutil.copytree(data_path, tmp_path / "damaged")


def remove_manifest(path):
    (path / "manifest.json").unlink()


def remove_a_shard(path):
    next((path / "train" / "cot").glob("shard*.mds")).unlink()


def truncate_a_shard(path):
    shard = next((path / "train" / "cot").glob("shard*.mds"))
    shard.write_bytes(shard.read_bytes()[:-10])


def change_the_tokenizer(path):
    file = path / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (remove_manifest, "manifest.json"),
        (remove_a_shard, "shard.00000.mds"),
        (truncate_a_shard, "shard.00000.mds"),
        (change_the_tokenizer, "tokenizer.json"),
    ],
)
def test_a_damaged_data_folder_is_refused_by_file(load, damaged, harm, names):
    harm(damaged)
    error = refusal(load(f"data.path={damaged}"))
    assert error.startswith(f"override 'data.path={damaged}': data.path: ")
    assert names in error.removeprefix(f"override 'data.path={damaged}': ")


def test_a_refused_recipe_leaves_nothing_behind(load, tmp_path):
    with pytest.raises(RecipeError):
        train(load("model.overrides.encoder_router.top_k=9"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


class TestStartingFromWeights:
    """``model.path``: a checkpoint in the Hugging Face format."""

    @pytest.fixture
    def weights(self, tmp_path):
        model = FlanMoEForConditionalGeneration(flan_moe_config("flan-moe-tiny", vocab_size=448))
        model.save_pretrained(tmp_path / "start")
        return tmp_path / "start", model

    def test_the_weights_are_those_of_the_folder(self, load, weights):
        import torch

        path, model = weights
        plan = check_recipe(load("model.preset=null", f"model.path={path}"))
        network = build_network(plan.loaded, plan.config)
        assert torch.equal(network.shared.weight, model.shared.weight)
        assert network.config.dropout_rate == 0.1, "overrides apply"

    def test_overrides_may_not_reshape_them(self, load, weights):
        error = refusal(
            load("model.preset=null", f"model.path={weights[0]}", "model.overrides.d_ff=32")
        )
        assert "model.overrides: expected only options that leave the weights of" in error

    def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(self, load, weights):
        config = json.loads((weights[0] / "config.json").read_text())
        (weights[0] / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
        error = refusal(load("model.preset=null", f"model.path={weights[0]}"))
        assert "expected a vocabulary of at least 400 for the tokenizer of" in error
        assert "got 300" in error

    def test_another_tokenizer_is_refused(self, load, weights, data_path):
        tokenizer = (data_path / "tokenizer" / "tokenizer.json").read_text()
        (weights[0] / "tokenizer.json").write_text(tokenizer)
        recipe = load("model.preset=null", f"model.path={weights[0]}")
        check_recipe(recipe)
        (weights[0] / "tokenizer.json").write_text(tokenizer + "\n")
        error = refusal(recipe)
        assert "model.path: expected weights that go with the tokenizer of" in error

    def test_weights_that_are_damaged_or_missing_are_named(self, load, weights):
        from safetensors.torch import load_file, save_file

        path = weights[0]
        file = path / "model.safetensors"
        plan = check_recipe(load("model.preset=null", f"model.path={path}"))
        tensors = load_file(file)
        name = next(iter(tensors))
        save_file({k: v for k, v in tensors.items() if k != name}, file, {"format": "pt"})
        with pytest.raises(
            RecipeError, match=f"model.path: .*1 weights are missing, such as {name}"
        ):
            build_network(plan.loaded, plan.config)
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(RecipeError, match=r"model\.path: .*start: weights cannot be loaded"):
            build_network(plan.loaded, plan.config)

    def test_a_folder_without_a_model_is_refused(self, load, tmp_path):
        error = refusal(load("model.preset=null", f"model.path={tmp_path}"))
        assert "model.path: expected a save_pretrained folder" in error
