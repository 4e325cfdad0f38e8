"""Small models built from configurations, word-level tokenizers, suites on disk, a fake model."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from flan_moe.eval import GenerateRequest, Loglikelihood, LoglikelihoodRequest

# A busy machine must not fail a test.
settings.register_profile("patient", deadline=None, max_examples=80)
settings.load_profile("patient")

WORDS = """
    what is the colour of a red blue green big car plus answer So yes no not we add them step
    Let's think by . : ? 0 1 2 3 4 5 6 7 8 9 therefore 12 $5 (A) (B) (C)
"""


def items(name, count, *, options=None, cot=False, start=0):
    """Questions that differ from each other, with a known answer."""
    rows = []
    for i in range(start, start + count):
        target = options[i % len(options)] if options else str(i % 10)
        rows.append(
            {
                "id": f"{name}-{i}",
                "input": f"{name} : what is {i % 10} plus {i // 10 % 10} {'a ' * (i % 4)}?",
                "targets": [target],
                "options": options,
                "rationale": f"we add them {i % 10} ." if cot else None,
            }
        )
    return rows


def write_jsonl(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def task_entry(name, **changes):
    entry = {
        "name": name,
        "mixture": "cot",
        "group": "held_out",
        "kind": "generate",
        "cot": True,
        "cot_cue": "Let's think step by step.",
        "answer_cue": "the answer is",
        "file": f"{name}.jsonl",
        "exemplars": f"{name}.exemplars.jsonl",
        "chance": 0.0,
    }
    return entry | changes


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small only lose by sharing their work, badly so on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def suite_dir(tmp_path):
    """A suite of three tasks: two sums with rationales, one colour question with options."""
    folder = tmp_path / "suite"
    folder.mkdir()
    colours = ["red", "blue", "green", "big car"]
    for name in ("sums", "more_sums"):
        write_jsonl(folder / f"{name}.jsonl", items(name, 12, cot=True))
        write_jsonl(folder / f"{name}.exemplars.jsonl", items(name, 3, cot=True, start=50))
    write_jsonl(folder / "colours.jsonl", items("colours", 10, options=colours))
    write_jsonl(folder / "colours.exemplars.jsonl", items("colours", 3, options=colours, start=50))
    tasks = [
        task_entry("sums"),
        task_entry("more_sums"),
        task_entry(
            "colours",
            mixture="muffin",
            group="held_in",
            kind="multiple_choice",
            cot=False,
            cot_cue="",
            answer_cue="",
            chance=0.25,
        ),
    ]
    record = {
        "format": "flan-moe-eval-suite",
        "version": 2,
        "name": "toy",
        "source": "written for the tests",
        "tasks": tasks,
    }
    (folder / "suite.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


class FakeModel:
    """A model whose answers come from functions, and which remembers what it was asked."""

    def __init__(self, answer=None, score=None, fingerprint="fake-1"):
        self.answer = answer or (lambda prompt: "")
        self.score = score or (lambda prompt, option: 0.0)
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def generate(self, requests: Sequence[GenerateRequest]) -> list[str]:
        self.asked += [request.prompt for request in requests]
        return [self.answer(request.prompt) for request in requests]

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        self.asked += [request.prompt for request in requests]
        return [
            Loglikelihood(
                tuple(self.score(request.prompt, option) for option in request.options),
                tuple(len(option.split()) for option in request.options),
            )
            for request in requests
        ]


@pytest.fixture
def fake_model():
    return FakeModel


@pytest.fixture(scope="session")
def vocabulary():
    special = ["<pad>", "</s>", "<unk>"]
    return {word: at for at, word in enumerate(dict.fromkeys([*special, *WORDS.split()]))}


def _tokenizer(vocabulary, *, appends_eos):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if appends_eos:
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def tokenizer(vocabulary):
    """Word-level, ends every sequence as T5's does."""
    return _tokenizer(vocabulary, appends_eos=True)


@pytest.fixture(scope="session")
def bare_tokenizer(vocabulary):
    """Word-level, adds nothing, as GPT-2's does."""
    return _tokenizer(vocabulary, appends_eos=False)


@pytest.fixture(scope="session")
def t5(vocabulary):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.3,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def tiny_t5(t5):
    """Untrained models answer at full length; this one's steps are short."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_kv": 4, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**t5.config.to_dict() | sizes)).eval()


@pytest.fixture(scope="session")
def gpt2(vocabulary):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=1,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        # GPT-2's own initialisation is so even that padding mistakes would hardly show.
        for parameter in model.parameters():
            parameter.mul_(6.0) if parameter.dim() > 1 else None
    return model


@pytest.fixture(scope="session")
def prompts():
    """Prompts of very different lengths, some of them equal."""
    return [
        "what is 1 plus 2 ?",
        "red",
        "what is the colour of the big car ? " * 4,
        "yes no yes no not",
        "what is 1 plus 2 ?",
        "a " * 30 + "?",
        "we add them : 7 plus 8",
    ]
