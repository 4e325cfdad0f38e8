"""`trace_routes` against tables that force the experts, and against the model's own output."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from flan_moe.model.inspect import Routes, Token, trace_routes
from flan_moe.model.inspect.pieces import token_pieces, visible

TEXT, TARGET = "Is 7 a prime number ?", "yes no yes"
TEXT_IDS = [3, 4, 5, 6, 7, 8, 1]
TARGET_IDS = [9, 10, 9, 1]
HASH = {"name": "hash", "num_experts": 4}


def fast_tokenizer(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def model_of(sparse_model, tokenizer):
    vocab_size = len(tokenizer)

    def make(**options):
        return sparse_model(vocab_size=vocab_size, **options)

    return make


def force(model, stack, layer, table):
    """Send each token id to the experts of its line of the table."""
    router = getattr(model, stack).layers[layer].feed_forward.router
    router.token_expert_VK.copy_(torch.tensor(table).reshape(router.token_expert_VK.shape))


def test_tokens_take_the_experts_that_a_table_gives_them(model_of, tokenizer):
    model = model_of(encoder_router=HASH, decoder_router=HASH)
    by_layer = {("encoder", 1): 1, ("encoder", 3): 2, ("decoder", 1): 3}
    for (stack, layer), step in by_layer.items():
        force(
            model,
            stack,
            layer,
            [(step * token_id) % 4 for token_id in range(model.config.vocab_size)],
        )
    routes = trace_routes(model, tokenizer, TEXT, target=TARGET)
    assert [token.id for token in routes.encoder] == TEXT_IDS
    assert [token.id for token in routes.decoder] == [0, *TARGET_IDS[:-1]]
    assert routes.target_ids == tuple(TARGET_IDS)
    assert [(layer.stack, layer.layer) for layer in routes.layers] == list(by_layer)
    for layer, step in zip(routes.layers, by_layer.values(), strict=True):
        ids = [token.id for token in routes.tokens(layer.stack)]
        assert layer.experts == tuple(((step * token_id) % 4,) for token_id in ids)
        assert layer.weights == tuple((1.0,) for _ in ids)
        assert layer.num_experts == 4
        assert layer.router_entropy == pytest.approx(math.log(4))


def test_experts_weights_and_entropy_are_those_of_the_models_output(model_of, tokenizer):
    model = model_of(encoder_router={"name": "expert_choice", "num_experts": 4})
    routes = trace_routes(model, tokenizer, TEXT, target=TARGET)
    with torch.no_grad():
        output = model(input_ids=torch.tensor([TEXT_IDS]), labels=torch.tensor([TARGET_IDS]))
    assert [f"{layer.name}.feed_forward" for layer in routes.layers] == [
        name for name, _ in output.routings
    ]
    for layer, (_, routing) in zip(routes.layers, output.routings, strict=True):
        said, true = (torch.zeros(len(layer.experts), 4).double() for _ in range(2))
        for token, (experts, weights) in enumerate(zip(layer.experts, layer.weights, strict=True)):
            assert list(weights) == sorted(weights, reverse=True)
            said[token, list(experts)] = torch.tensor(weights, dtype=torch.float64)
        for expert in range(4):
            rows = slice(*routing.expert_offsets[expert : expert + 2].tolist())
            true[routing.row_token_R[rows].long(), expert] = routing.row_weight_R[rows]
        assert torch.equal(said, true)
        assert list(layer.load) == routing.stats["expert_load_E"].tolist()
        dropped = len(layer.dropped) / len(layer.experts)
        assert dropped == pytest.approx(float(routing.stats["dropped_fraction"]))
        assert layer.router_entropy == pytest.approx(float(routing.stats["router_entropy"]))


def test_the_routes_of_an_answer_are_those_of_the_same_text_as_target(model_of, tokenizer):
    model = model_of()
    written = trace_routes(model, tokenizer, TEXT, max_new_tokens=6)
    assert written.generated
    read = trace_routes(model, tokenizer, TEXT, target=written.target_ids)
    assert not read.generated
    assert written.decoder == read.decoder
    assert 1 <= len(written.decoder) <= 6
    for a, b in zip(written.layers, read.layers, strict=True):
        assert a.experts == b.experts
        torch.testing.assert_close(torch.tensor(a.weights), torch.tensor(b.weights))
        assert a.router_entropy == pytest.approx(b.router_entropy)


def test_an_answer_shows_the_steps_that_wrote_it(model_of, tokenizer):
    """Round robin gives the only token of a cached step to expert 0, but not a text's k-th one."""
    model = model_of(decoder_router={"name": "uniform", "num_experts": 4})
    model.generation_config.eos_token_id = None  # so that it does not end early
    (written,) = (
        trace_routes(model, tokenizer, TEXT, max_new_tokens=5).select(stack="decoder").layers
    )
    (read,) = trace_routes(model, tokenizer, TEXT, target=TARGET).select(stack="decoder").layers
    assert written.first == (0, 0, 0, 0, 0)
    assert read.first == (0, 1, 2, 3)


def test_a_full_expert_drops_the_tokens_that_come_last(model_of, tokenizer):
    full = {**HASH, "eval_capacity_factor": 1e-6, "min_capacity": 5}
    model = model_of(encoder_router=full)
    for layer in (1, 3):
        force(model, "encoder", layer, [2] * model.config.vocab_size)
    layer = trace_routes(model, tokenizer, TEXT, target=TARGET).layers[0]
    assert layer.dropped == (5, 6)
    assert layer.load == (0, 0, 5, 0)
    assert layer.effective_experts == 1.0
    assert layer.first == (2, 2, 2, 2, 2, None, None)


def test_nothing_is_left_hanging_on_the_model(model_of, tokenizer):
    model = model_of()
    before = {name: dict(part._forward_hooks) for name, part in model.named_modules()}
    trace_routes(model, tokenizer, TEXT, target=TARGET)
    with pytest.raises(ValueError, match="target"):
        trace_routes(model, tokenizer, TEXT, target=" ")
    assert {name: dict(part._forward_hooks) for name, part in model.named_modules()} == before


def test_what_cannot_be_traced_is_refused(model_of, tokenizer):
    with pytest.raises(ValueError, match="small: a dense model; expected one with a router"):
        trace_routes(
            model_of(encoder_router=None, decoder_router=None), tokenizer, TEXT, name="small"
        )
    with pytest.raises(ValueError, match="text ' ': expected at least one token"):
        trace_routes(model_of(), tokenizer, " ", target=TARGET)
    tokenizer.add_tokens(["more"])
    with pytest.raises(
        ValueError, match="the tokenizer has 12 tokens, the model a vocabulary of 11"
    ):
        trace_routes(model_of(), tokenizer, TEXT, target=TARGET)


def test_fewer_layers_can_be_selected(model_of, tokenizer):
    routes = trace_routes(model_of(), tokenizer, TEXT, target=TARGET)
    assert [x.name for x in routes.select(layers=[1]).layers] == [
        "encoder.layers.1",
        "decoder.layers.1",
    ]
    assert [x.layer for x in routes.select(stack="encoder", layers=[3]).layers] == [3]
    with pytest.raises(ValueError, match="layer 2 of the decoder is not sparse; the sparse"):
        routes.select(stack="decoder", layers=[2])


def test_a_layer_must_have_all_tokens_of_its_stack(model_of, tokenizer):
    routes = trace_routes(model_of(), tokenizer, TEXT, target=TARGET)
    with pytest.raises(
        ValueError, match=r"encoder\.layers\.1 routed 7 tokens; expected the 6 of the"
    ):
        Routes(**{**vars(routes), "encoder": routes.encoder[:-1]})


def byte_level():
    tokens = {c: i for i, c in enumerate(["<pad>", "</s>", *pre_tokenizers.ByteLevel.alphabet()])}
    merges = [("Ġ", "a"), ("b", "c")]
    tokens |= {a + b: len(tokens) + i for i, (a, b) in enumerate(merges)}
    tokenizer = Tokenizer(BPE(tokens, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece_like():
    tokens = {c: i for i, c in enumerate(["<pad>", "</s>", "<unk>", "▁", *"abcx,.", "▁a"])}
    tokenizer = Tokenizer(BPE(tokens, [("▁", "a")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, sentence_piece_like])
def test_pieces_are_the_text_with_its_spaces(make):
    tokenizer = fast_tokenizer(make())
    text = "abc a, b.x a"
    pieces = [token.piece for token in token_pieces(tokenizer, tokenizer(text)["input_ids"])]
    assert "".join(pieces) == text
    assert " a" in pieces


def test_a_token_that_is_half_a_character_is_named_and_so_is_a_special_one():
    tokenizer = fast_tokenizer(byte_level())
    ids = [*tokenizer("é")["input_ids"], tokenizer.eos_token_id]
    assert [token.piece for token in token_pieces(tokenizer, ids)] == ["Ã", "©", "</s>"]
    assert token_pieces(tokenizer, []) == ()


def test_no_character_commands_a_terminal_or_hides():
    assert visible("a\x1b[2J\u202eb\u200b\n\t\r") == "a<001B>[2J<202E>b<200B>↵⇥<000D>"
    assert visible("naïve 日本語 ü ✓") == "naïve 日本語 ü ✓"


def test_routes_as_json_have_everything(model_of, tokenizer):
    routes = trace_routes(model_of(), tokenizer, TEXT, target=TARGET, name="m")
    record = routes.to_dict()
    assert (record["format"], record["version"], record["model"]) == ("flan-moe-routes", 1, "m")
    assert record["encoder"][0] == {"id": 3, "piece": "Is"}
    assert routes.encoder[1] == Token(id=4, piece=" 7")
    layer = record["layers"][0]
    assert set(layer) == {
        "stack",
        "layer",
        "num_experts",
        "experts",
        "weights",
        "load",
        "dropped",
        "router_entropy",
        "effective_experts",
    }
    assert sum(layer["load"]) == sum(map(len, layer["experts"])) == 2 * len(TEXT_IDS)


def test_an_id_beyond_the_tokenizer_is_shown_by_number(sparse_model, tokenizer):
    """Vocabularies of models are rounded up: T5 has 32,128 rows for 32,100 tokens."""
    assert token_pieces(tokenizer, [3, 11])[1] == Token(id=11, piece="<11>")
    model = sparse_model(vocab_size=len(tokenizer) + 5)
    routes = trace_routes(model, tokenizer, TEXT, target=[9, 14, 1])
    assert [token.piece for token in routes.decoder] == ["<pad>", "yes", "<14>"]
