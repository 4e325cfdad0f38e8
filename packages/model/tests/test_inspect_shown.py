"""Routes made by hand, as a terminal and as a page show them, and compared."""

import math
import re
from html.parser import HTMLParser

import pytest
import torch

from flan_moe.model.inspect import (
    LayerRoutes,
    Routes,
    TerminalStyle,
    Token,
    compare_routes,
    comparison_lines,
    comparison_page,
    palette,
    routes_lines,
    routes_page,
)
from flan_moe.model.inspect.compare import jensen_shannon, spearman

HOSTILE = '</span><script>alert("x")</script>\x1b[31m\u202e<img src=http://x onerror=y>&amp;'
PLAIN = TerminalStyle(width=60)
COLOR = TerminalStyle(width=60, color=True)


def layer_of(experts, *, stack="encoder", layer=1, num_experts=12):
    return LayerRoutes(
        stack=stack,
        layer=layer,
        num_experts=num_experts,
        experts=tuple(map(tuple, experts)),
        weights=tuple(tuple(1 / (2 + i) for i, _ in enumerate(line)) for line in experts),
        router_entropy=0.5,
    )


def routes_of(pieces, *layers, **changes):
    tokens = tuple(Token(id=10 + i, piece=piece) for i, piece in enumerate(pieces))
    values = {
        "model": "m",
        "text": "".join(pieces),
        "target": "yes",
        "target_ids": (5, 1),
        "generated": False,
        "encoder": tokens,
        "decoder": (Token(id=0, piece="<pad>"), Token(id=5, piece="yes")),
        "layers": layers,
    }
    return Routes(**{**values, **changes})


WORDS = routes_of(["Is", " seven", " prime", "?"], layer_of([[3], [11, 0], [], [0, 2, 5]]))


def test_without_colour_each_token_has_its_experts_numbers():
    lines = routes_lines(WORDS, PLAIN)
    assert "  Is₃ seven₁₁₊₀ prime₋?₀₊₂₊" in lines
    assert "encoder 1: 4 tokens over 12 experts, 1 without expert" in lines
    assert "  tokens per expert:  0:2  2:1  3:1  5:1  11:1  idle: 7" in lines
    assert not any("\x1b" in line for line in lines)


def test_without_unicode_nothing_is_beyond_ascii():
    routes = routes_of(["naïve", " 日本\n", "   "], layer_of([[3], [], [0, 2, 5]]))
    lines = routes_lines(routes, TerminalStyle(width=60, unicode=False))
    assert "\n".join(lines).isascii()
    assert r"  na\xefve_3 \u65e5\u672c\n_-" in lines
    assert r"  ____0+2+" in lines


def test_with_colour_a_token_has_the_colour_of_its_first_expert_and_the_same_text():
    plain, colored = (routes_lines(WORDS, style) for style in (PLAIN, COLOR))
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(colored))
    assert "  Is₃ seven₁₁₊₀ prime₋?₀₊₂₊\n" in text
    codes = re.findall(r"\x1b\[([0-9;]*)m(\w+|\?)\x1b\[0m", "\n".join(colored))
    by_word = {word: code for code, word in codes}
    assert by_word.keys() == {"Is", "seven", "?"}
    # 3 and 11 have one hue; the second is underlined
    assert by_word["seven"] == f"4;{by_word['Is']}"
    assert by_word["?"] != by_word["Is"]
    assert "\x1b" not in "".join(plain)


def test_lines_are_as_wide_as_the_terminal_and_hold_wide_characters_in_full():
    pieces = [" 日本語", "x", " experts"] * 20
    routes = routes_of(pieces, layer_of([[0]] * 60))
    for width in (24, 40, 80):
        lines = routes_lines(routes, TerminalStyle(width=width))
        body = [line for line in lines if line.startswith("  ") and "₀" in line]
        columns = [sum(2 if c in "日本語" else 1 for c in line) for line in body]
        assert max(columns) <= width
        assert min(columns[:-1]) > width - len(" experts₀") - 1
        joined = "".join(line[2:] for line in body)
        assert joined.replace("₀", "").replace(" ", "") == "".join(pieces).replace(" ", "")


def test_a_hostile_text_commands_no_terminal():
    routes = routes_of([HOSTILE], layer_of([[0]]), model=HOSTILE, target=HOSTILE)
    for lines in (
        routes_lines(routes, PLAIN),
        comparison_lines(compare_routes(routes, routes_of([HOSTILE], layer_of([[1]]))), PLAIN),
    ):
        text = "\n".join(lines)
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "<001B>[31m<202E>" in text


class Page(HTMLParser):
    """Tags, attributes and text of a page; every element must be closed in its order."""

    VOID = ("meta", "br")

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def having(self, attribute):
        return [attrs for _, attrs in self.elements if attribute in attrs]

    def text(self):
        return "".join(data for path, data in self.texts if "style" not in path)


def test_the_page_shows_tokens_experts_weights_and_loads():
    page = Page(routes_page(WORDS))
    tokens = page.having("data-tip")
    assert [token["data-tip"] for token in tokens] == [
        "token 0: 'Is', id 10\nexpert 3: 0.500",
        "token 1: ' seven', id 11\nexpert 11: 0.500\nexpert 0: 0.333",
        "token 2: ' prime', id 12\nno expert",
        "token 3: '?', id 13\nexpert 0: 0.500\nexpert 2: 0.333\nexpert 5: 0.250",
    ]
    assert [token["class"] for token in tokens] == ["t h3 s0", "t h3 s1", "t none", "t h0 s0"]
    assert "Is3 seven11+0 prime–?0+2+" in page.text()
    widths = [attrs["style"] for attrs in page.having("style")]
    assert widths == ["width:100.0%"] + ["width:50.0%"] * 4
    assert "idle: 1, 4, 6, 7, 8, 9, 10" in page.text()
    assert {"encoder-1"} == {attrs["id"] for attrs in page.having("id")}


@pytest.mark.parametrize("kind", ["routes", "comparison"])
def test_a_hostile_text_is_shown_and_never_executed(kind):
    pieces = [HOSTILE, ' "quoted"', "\n"]
    routes = routes_of(pieces, layer_of([[0]] * 3), model=HOSTILE, text=HOSTILE, target=HOSTILE)
    other = routes_of(pieces, layer_of([[1]] * 3))
    pages = {"routes": lambda: routes_page(routes)}
    pages["comparison"] = lambda: comparison_page(compare_routes(routes, other))
    source = pages[kind]()
    page = Page(source)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert "\x1b" not in source
    assert "\u202e" not in source
    # text, target, model: as they are, but for what commands; nothing is taken for an entity
    shown = HOSTILE.replace("\x1b", "<001B>").replace("\u202e", "<202E>")
    assert page.text().count(shown) >= 4
    assert any(
        shown in attrs["data-tip"] or "alert" in attrs["data-tip"]
        for attrs in page.having("data-tip")
    )


@pytest.mark.parametrize(
    "page", [routes_page(WORDS), comparison_page(compare_routes(WORDS, WORDS))]
)
def test_a_page_needs_nothing_else(page):
    assert not re.search(r"https?:|//|@import|url\(|src=|<script", page)
    assert "default-src 'none'" in page
    targets = [attrs["href"] for attrs in Page(page).having("href")]
    assert targets == ["#encoder-1"]
    assert 'id="encoder-1"' in page


def test_numbers_can_be_read_on_every_colour_of_a_page_and_a_terminal():
    for hue in palette.HUES:
        for paper, ink in (
            (palette.LIGHT_PAPER, palette.LIGHT_INK),
            (palette.DARK_PAPER, palette.DARK_INK),
        ):
            assert palette.contrast(palette.tint(hue, paper), ink) >= 4.5
    assert palette.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    looks = {(palette.hue_index(e), palette.style_index(e)) for e in range(32)}
    assert len(looks) == 32
    codes = {palette.terminal_color(palette.tint(h, palette.LIGHT_PAPER)) for h in palette.HUES}
    assert len(codes) == len(palette.HUES)


def test_routes_equal_themselves():
    comparison = compare_routes(WORDS, WORDS)
    (layer,) = comparison.layers
    assert (layer.same_first, layer.same_set, layer.load_divergence) == (1.0, 1.0, 0.0)
    assert layer.rank_correlation == pytest.approx(1.0)
    text = "\n".join(comparison_lines(comparison, PLAIN))
    assert "100.0%" in text
    assert "other first expert" not in text


def test_a_comparison_counts_and_shows_what_differs():
    theirs = routes_of(["Is", " seven", " prime", "?"], layer_of([[3], [0, 11], [4], [0, 2]]))
    (layer,) = compare_routes(WORDS, theirs).layers
    assert layer.other_first == (1, 2)
    assert layer.other_set == (2, 3)
    assert (layer.same_first, layer.same_set) == (0.5, 0.5)
    lines = comparison_lines(compare_routes(WORDS, theirs), PLAIN)
    assert "encoder 1: other first expert at 2 tokens" in lines
    assert "  Is seven₁₁→₀ prime₋→₄?" in lines
    page = Page(comparison_page(compare_routes(WORDS, theirs)))
    assert "Is seven11→0 prime–→4?" in page.text()
    tip = page.having("data-tip")[1]["data-tip"]
    assert tip.splitlines()[1:] == [
        "A", "expert 11: 0.500", "expert 0: 0.333", "B", "expert 0: 0.500", "expert 11: 0.333"
    ]  # fmt: skip
    record = compare_routes(WORDS, theirs).to_dict()
    assert record["format"] == "flan-moe-routes-comparison"
    assert record["layers"][0]["other_first"] == [1, 2]
    assert record["ours"]["layers"][0]["experts"][1] == [11, 0]


def test_what_cannot_be_compared_is_refused():
    def fails(theirs, message):
        with pytest.raises(ValueError, match=message):
            compare_routes(WORDS, theirs)

    experts = [[3], [11, 0], [], [0, 2, 5]]
    pieces = ["Is", " seven", " prime", "?"]
    fails(routes_of([*pieces[:3], "!"], layer_of(experts)), "m and m read different tokens in the")
    fails(routes_of(pieces, layer_of(experts, layer=3)), r"are encoder\.layers\.1, those of m enc")
    fails(
        routes_of(pieces, layer_of(experts, num_experts=16)),
        r"encoder\.layers\.1 has 12 experts in m and 16 in m",
    )


def test_the_divergence_of_loads_is_the_mean_kl_to_their_mean():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 9, (2, 16), generator=generator).double()
    p, q = a / a.sum(), b / b.sum()
    mean = ((p + q) / 2).clamp(min=1e-9)  # where neither side has load, nothing is added
    expected = float(sum(torch.special.xlogy(s, s / mean).sum() for s in (p, q))) / 2
    assert jensen_shannon(a.tolist(), b.tolist()) == pytest.approx(expected)
    assert jensen_shannon([3, 0], [0, 7]) == math.log(2)
    assert jensen_shannon([0, 0], [0, 7]) == math.log(2)
    assert jensen_shannon([0, 0], [0, 0]) == 0.0


def test_the_rank_correlation_is_spearmans():
    """Worked by hand: without ties 1 - 6 sum(d^2) / (n (n^2 - 1)); with ties Pearson's of ranks."""
    assert spearman([1, 2, 3, 4, 5], [10, 20, 30, 50, 40]) == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert spearman([1, 2, 3], [9, 8, 7]) == pytest.approx(-1)
    ranks = torch.tensor([[0.0, 1.5, 1.5, 3.0], [1.0, 0.0, 2.0, 3.0]])
    expected = float(torch.corrcoef(ranks)[0, 1])
    assert spearman([0, 5, 5, 9], [3, 1, 4, 8]) == pytest.approx(expected)
    assert spearman([2, 2, 2], [1, 2, 3]) is None
