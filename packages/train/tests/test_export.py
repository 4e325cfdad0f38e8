"""Export: what transformers loads is what was trained."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from flan_moe.model import FlanMoEForConditionalGeneration, register_auto_classes
from flan_moe.train.callbacks.metrics_log import read_metrics
from flan_moe.train.export import export_run, model_weights
from flan_moe.train.recipe import load_recipe, read_recipe
from flan_moe.train.run_folder import RunFolder, RunFolderError
from flan_moe.train.trainer import train


@pytest.fixture(scope="module")
def run(data_path, tmp_path_factory):
    from conftest import RECIPE

    out = tmp_path_factory.mktemp("export") / "run"
    text = RECIPE.replace("DATA", str(data_path))
    train(read_recipe(text, "recipe.yaml", ["training.duration=6ba"]), out, lambda line: None)
    return out


def test_the_exported_model_loads_anywhere_and_is_the_trained_one(run, tmp_path):
    register_auto_classes()
    out = export_run(run, tmp_path / "model")
    names = {p.name for p in out.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "recipe.yaml",
    } <= names
    assert not [n for n in names if n.endswith((".pt", ".bin", ".pkl"))]
    model = AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    trained = model_weights(run / "checkpoints" / "ba6.pt")
    assert model.state_dict().keys() == trained.keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, trained[name]), name
    assert load_recipe(out / "recipe.yaml").recipe == RunFolder(run).recipe()
    tokenizer = AutoTokenizer.from_pretrained(out)
    inputs = tokenizer(["Write the list backwards.\nInput: shirt brush"], return_tensors="pt")
    text = tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=4))
    assert len(text) == 1


def test_an_exported_model_can_be_tuned_further(run, load, tmp_path):
    """Its tokenizer still counts as the data's."""
    out = export_run(run, tmp_path / "model")
    overrides = ["model.preset=null", f"model.path={out}", "training.duration=2ba"]
    train(load(*overrides), tmp_path / "more", lambda line: None)
    more = list(read_metrics(tmp_path / "more" / "metrics.jsonl"))
    before = list(read_metrics(run / "metrics.jsonl"))
    key = "loss/train/cross_entropy"
    assert more[0][key] < before[0][key] - 0.3, "training goes on from the weights"


def test_a_checkpoint_can_be_chosen_and_the_last_ones_averaged(run, tmp_path):
    export_run(run, tmp_path / "early", batch=4)
    early = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "early")
    weights = {b: model_weights(run / "checkpoints" / f"ba{b}.pt") for b in (2, 4, 6)}
    assert torch.equal(early.lm_head.weight, weights[4]["lm_head.weight"])
    export_run(run, tmp_path / "mean", average=3)
    mean = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "mean").state_dict()
    for name in mean:
        expected = torch.stack([w[name] for w in weights.values()]).mean(0)
        torch.testing.assert_close(mean[name], expected)
    assert not torch.equal(mean["lm_head.weight"], weights[6]["lm_head.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 5}, r"expected one of the checkpoints 2, 4, 6, got 5"),
        ({"average": 0}, r"average: expected a positive whole number, got 0"),
        ({"average": 4}, r"expected 4 checkpoints to average, found 3 \(2, 4, 6\)"),
    ],
)
def test_checkpoints_that_are_not_there_are_refused(run, tmp_path, options, message):
    with pytest.raises(RunFolderError, match=message):
        export_run(run, tmp_path / "model", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_left_alone(run, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="already exists"):
        export_run(run, tmp_path / "model")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"not a run folder \(no run\.json\)"):
        export_run(tmp_path, tmp_path / "model")


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    import shutil

    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "checkpoints" / "ba6.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunFolderError, match=r"ba6\.pt: damaged checkpoint"):
        export_run(copy, tmp_path / "model")


def test_a_full_disk_leaves_nothing(run, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **kwargs):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(FlanMoEForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(OSError, match=r"cannot be written: No space left on device"):
        export_run(run, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
