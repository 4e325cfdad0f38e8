"""Results survive their JSON form, and nothing else is read as results."""

import json

import pytest

from flan_moe.eval import Results, ResultsError, SampleLogError, evaluate, load_run, load_suite


@pytest.fixture
def results(suite_dir, fake_model):
    return evaluate(fake_model(), load_suite(suite_dir), limit=3, model_name="a model")


def test_results_survive_json(results, tmp_path):
    assert Results.from_json(results.to_json()) == results
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path) == Results.load(tmp_path / "results.json") == results
    assert (tmp_path / "results.json").read_text() == results.to_json()


def test_the_environment_is_recorded(results):
    assert {"python", "torch", "transformers", "flan-moe-eval"} <= set(results.environment)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.update(version=1), "version: 1; expected 2"),
        (lambda r: r.update(format="lm-eval"), "format"),
        (lambda r: r.update(note=1), "unknown key 'note'"),
        (lambda r: r.pop("suite_hash"), "key 'suite_hash' is missing"),
        (lambda r: r["tasks"][1].pop("score"), r"tasks\[1\]: key 'score' is missing"),
        (lambda r: r["tasks"][1].update(score="1"), r"tasks\[1\]: score: \"1\""),
        (lambda r: r["tasks"][0].update(group="unseen"), r"tasks\[0\]: group"),
        (lambda r: r["tasks"][0]["interval"].update(mid=1), r"tasks\[0\]: interval: unknown key"),
        (lambda r: r["groups"][0].update(tasks=[1]), r"groups\[0\]: tasks"),
        (lambda r: r["groups"][0].pop("over_tasks"), "key 'over_tasks' is missing"),
        (lambda r: r["tasks"][0].update(n=0), r"tasks\[0\]: n: 0; expected at least one"),
        (lambda r: r["tasks"][0].update(parse_failures=4), r"tasks\[0\]: n: 3; .* the 4 parse"),
        (lambda r: r["tasks"][0].update(score=17.0), r"tasks\[0\]: score: 17.0"),
        (lambda r: r["tasks"][0].update(score=10**400), r"tasks\[0\]: score: 10+"),
        (lambda r: r["tasks"][0].update(chance=1.0), r"tasks\[0\]: chance: 1.0"),
        (lambda r: r["decoding"].update(direct_tokens=1.5), "decoding: direct_tokens: 1.5"),
    ],
)
def test_other_content_is_refused_with_its_place(results, change, complaint):
    record = json.loads(results.to_json())
    change(record)
    with pytest.raises(ResultsError, match=f"some.json: .*{complaint}"):
        Results.from_json(json.dumps(record), "some.json")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": NaN}'])
def test_other_text_is_refused(text):
    with pytest.raises(ResultsError, match=r"some\.json"):
        Results.from_json(text, "some.json")


def test_missing_results_are_a_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json: no such file"):
        Results.load(tmp_path)


def test_a_run_needs_all_its_samples(suite_dir, fake_model, tmp_path):
    suite = load_suite(suite_dir).select(("sums",))
    evaluate(fake_model(), suite, modes=["direct"], out_dir=tmp_path / "out")
    log = tmp_path / "out" / "samples" / "sums.0-shot.direct.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-2]))
    with pytest.raises(SampleLogError, match="10 samples; the results count 12"):
        load_run(tmp_path / "out")
    log.unlink()
    with pytest.raises(FileNotFoundError, match=r"sums\.0-shot\.direct\.jsonl"):
        load_run(tmp_path / "out")


def test_results_beside_the_logs_of_another_model_are_refused(suite_dir, fake_model, tmp_path):
    """What a rerun with ``overwrite`` leaves when it is stopped before its own results."""
    suite = load_suite(suite_dir)
    evaluate(fake_model(), suite, out_dir=tmp_path / "out")
    old = (tmp_path / "out" / "results.json").read_bytes()
    other = fake_model(answer=lambda prompt: "7", fingerprint="other")
    evaluate(other, suite, out_dir=tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "results.json").write_bytes(old)
    with pytest.raises(
        SampleLogError, match=r"log of another run than the results \(model: 'other'"
    ):
        load_run(tmp_path / "out")
