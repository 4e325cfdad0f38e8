"""Mixtures as YAML: what is read, and what is refused and how."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.data.mixing.load import load_mixture, preset_names
from flan_moe.data.mixing.spec import MixtureSpec, SubMixture

GOOD = """
name: mine
description: a mixture
sub_mixtures:
  a:
    weight: 1e-1
    mixtures: [muffin, t0_sf]
    tasks: ["*_qa"]
    without: [web_*]
    cap: 3_000
    temperature: 2
    factors: {"x*": 0.5}
    template_shares: {zs_opt: 1, fs_opt: 3}
  b: {weight: 2, mixtures: [niv2]}
held_out: ["@mmlu", task1_*]
"""


@pytest.fixture
def write(tmp_path):
    def _write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


def test_a_file_says_what_a_specification_is(write):
    assert load_mixture(write(GOOD)) == MixtureSpec(
        name="mine",
        description="a mixture",
        sub_mixtures={
            "a": SubMixture(
                weight=0.1,
                mixtures=("muffin", "t0_sf"),
                tasks=("*_qa",),
                without=("web_*",),
                cap=3000,
                temperature=2,
                factors={"x*": 0.5},
                template_shares={"zs_opt": 1, "fs_opt": 3},
            ),
            "b": SubMixture(weight=2, mixtures=("niv2",)),
        },
        held_out=("@mmlu", "task1_*"),
    )


def test_presets_are_found_by_name_and_call_themselves_so():
    assert preset_names() == (
        "cot",
        "flan2022",
        "flan2022_clean",
        "flan_palm_a",
        "flan_palm_b",
        "muffin",
        "niv2",
        "t0_sf",
    )
    for name in preset_names():
        spec = load_mixture(name)
        assert spec.name == name
        assert spec.description


def test_a_base_is_changed_only_where_said(write):
    write(GOOD)
    path = write(
        "name: less\nbase: mine.yaml\nonly: [a]\nsub_mixtures:\n  a: {cap: null, weight: 3}\n"
        "  c: {weight: 1, mixtures: [cot]}\nheld_out: ['@gsm8k', '@mmlu']\n",
        "less.yaml",
    )
    base, spec = load_mixture(path.parent / "mine.yaml"), load_mixture(path)
    assert list(spec.sub_mixtures) == ["a", "c"]
    assert spec.sub_mixtures["a"].cap is None
    assert spec.sub_mixtures["a"].weight == 3
    assert spec.sub_mixtures["a"].factors == base.sub_mixtures["a"].factors
    assert spec.held_out == ("@mmlu", "task1_*", "@gsm8k")


def test_a_preset_may_be_a_base(write):
    spec = load_mixture(write("name: x\nbase: flan2022\nheld_out: ['@gsm8k']\n"))
    assert spec.sub_mixtures == load_mixture("flan2022").sub_mixtures
    assert spec.held_out == ("@mmlu", "@gsm8k")


def replaced(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            replaced("weight: 1e-1", "wieght: 1"),
            r":6: sub_mixtures\.a\.wieght is no known key; did",
        ),
        (
            replaced("weight: 1e-1", "weight: heavy"),
            r":6: sub_mixtures\.a\.weight is 'heavy'; expec",
        ),
        (
            replaced("weight: 1e-1", "weight: -1"),
            r":6: sub_mixtures\.a\.weight is -1; expected a nu",
        ),
        (replaced("weight: 1e-1", "weight: .nan"), r":6: sub_mixtures\.a\.weight is nan"),
        (replaced("weight: 1e-1", "weight: yes"), r":6: sub_mixtures\.a\.weight is True"),
        (replaced("    weight: 1e-1\n", ""), r":5: sub_mixtures\.a\.weight is missing"),
        (
            replaced("[muffin, t0_sf]", "muffin"),
            r":7: sub_mixtures\.a\.mixtures is 'muffin'; expect",
        ),
        (
            replaced("[muffin, t0_sf]", "[muffin, 3]"),
            r":7: sub_mixtures\.a\.mixtures\.1 is 3; expec",
        ),
        (replaced("[muffin, t0_sf]", "[]"), r":7: sub_mixtures\.a\.mixtures is empty"),
        (
            replaced("cap: 3_000", "cap: 2.5"),
            r":10: sub_mixtures\.a\.cap is 2\.5; expected a whole",
        ),
        (replaced("cap: 3_000", "cap: 0"), r":10: sub_mixtures\.a\.cap is 0; expected a positive"),
        (replaced("temperature: 2", "temperature: 0"), r":11: sub_mixtures\.a\.temperature is 0"),
        (replaced('{"x*": 0.5}', '{"x*": 0}'), r":12: sub_mixtures\.a\.factors\.x\* is 0"),
        (replaced('{"x*": 0.5}', "[1]"), r":12: sub_mixtures\.a\.factors is a list; expected keys"),
        (
            replaced("zs_opt: 1", "zsopt: 1"),
            r":13: sub_mixtures\.a\.template_shares\.zsopt: no suc",
        ),
        (replaced('["@mmlu", task1_*]', '"@mmlu"'), r":15: held_out is '@mmlu'; expected a list"),
        (replaced("name: mine", "name: 7"), r":2: name is 7; expected text"),
        (replaced("name: mine\n", ""), r"mine\.yaml:1: name is missing"),
        (replaced("cap: 3_000", "weight: 4"), r":10: sub_mixtures\.a\.weight given twice"),
        (replaced("  b: {", "  a: {"), r":14: sub_mixtures\.a given twice"),
        (replaced("name: mine", "1: mine"), r":2: key '1'; expected a name"),
        (replaced("name: mine", "name: [mine"), r"mine\.yaml:\d+: not YAML"),
        (GOOD + "---\nname: two\n", r"mine\.yaml:16: not YAML"),
        (replaced("cap: 3_000", "cap: 99999999999999999999"), r":10: .*at most 64 bits"),
        (replaced("a mixture", "!!python/object/apply:os.getcwd []"), r":3: tag .*getcwd"),
        ("", r"mine\.yaml:1: is None; expected keys and values"),
        ("- name\n", r"mine\.yaml:1: is a list; expected keys and values"),
        ("name: x\n", r"mine\.yaml:1: sub_mixtures is missing"),
        ("name: x\nsub_mixtures: {}\n", r"mine\.yaml: sub_mixtures is empty"),
        ("name: x\nsub_mixtures:\n  a: {weight: 0, mixtures: [cot]}\n", r"sum to 0"),
        ("name: x\nonly: [a]\n", r":2: only needs a base"),
        (
            "name: x\nbase: flan2022\nonly: [cot, chat]\n",
            r":3: only\.1 is 'chat'; expected one of ",
        ),
        (
            "name: x\nbase: flan2023\n",
            r":2: base cannot be read: no mixture 'flan2023'; did you mea",
        ),
        ("name: x\nbase: other.yaml\n", r":2: base cannot be read: .*other\.yaml: no such file"),
        (
            'name: x\nbase: "a\\0.yaml"\n',
            r":2: base cannot be read: .*a\\x00\.yaml'.* no name of a file",
        ),
        ("name: x\nbase: mine.yaml\n", r"base goes round in a circle"),
        ("name: &a [*a]\n", r":1: an alias that contains itself"),
        ("a: " + "[" * 3000, r"mine\.yaml"),
    ],
)
def test_mistakes_are_named_by_file_line_and_key(write, text, message):
    with pytest.raises(ValueError, match=message):
        load_mixture(write(text))


def test_a_few_lines_of_aliases_do_not_fill_the_memory(write):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ValueError, match="more than 50,000 values"):
        load_mixture(write("\n".join(lines)))
    with pytest.raises(ValueError, match="at most 1,048,576"):
        load_mixture(write("name: " + "x" * (1 << 20)))


@given(st.integers(0, len(GOOD)), st.integers(0, 20), st.text(alphabet="ab:-[]{}&*!?|>#'\" \n1.%@"))
def test_whatever_is_written_there_is_a_mixture_or_one_error(tmp_path_factory, at, cut, text):
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_text(GOOD[:at] + text + GOOD[at + cut :])
    try:
        assert isinstance(load_mixture(path), MixtureSpec)
    except ValueError as error:
        assert str(error).startswith(str(path))  # noqa: PT017


def test_what_is_no_mixture_is_named(tmp_path):
    with pytest.raises(ValueError, match="no mixture 'flan_palm'; did you mean 'flan_palm_"):
        load_mixture("flan_palm")
    with pytest.raises(ValueError, match=r"nowhere/x\.yaml: no such file"):
        load_mixture("nowhere/x.yaml")
    with pytest.raises(ValueError, match="not a file"):
        load_mixture(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ValueError, match=r"x\.yaml: not UTF-8"):
        load_mixture(tmp_path / "x.yaml")
