"""Every oddity of a knowledge file has one defined outcome (the table in `parse_knowledge`)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpl_engine.errors import KnowledgeError
from kpl_engine.knowledge.template import Template
from kpl_engine.knowledge.text import MAX_KNOWLEDGE_BYTES, parse_knowledge, read_knowledge

FUZZ = settings(max_examples=300, deadline=None, derandomize=True)
TWO = {"a": ["one", "two", "three"], "b": ["four"]}


def parse(value):
    return parse_knowledge(json.dumps(value).encode())


def test_both_shapes_give_the_same():
    nested = {"Lung_Features": {label: [{"feature": text} for text in texts] for label, texts in TWO.items()}}
    for value in (TWO, nested, {"anything": nested["Lung_Features"]}, {"x": TWO}):
        text = parse(value)
        assert text.classes == ("a", "b")
        assert text.descriptions == (("one", "two", "three"), ("four",))
        assert text.notices == ()


@pytest.mark.parametrize(
    ("value", "descriptions", "notice"),
    [
        ({"a": [], "b": ["x"]}, ((), ("x",)), "'a' has no descriptions"),
        ({"a": ["x", "y", " x "], "b": ["z"]}, (("x", "y"), ("z",)), "'a': 1 repeated"),
        ({"a": ["x"], "b": ["x"]}, (("x",), ("x",)), "'x' stands in 2 classes"),
        ({"a": ["x"]}, (("x",),), "only one class"),
    ],
)
def test_oddities_with_a_notice(value, descriptions, notice):
    text = parse(value)
    assert text.descriptions == descriptions
    assert len(text.notices) == 1
    assert notice in text.notices[0]


def test_space_and_line_breaks():
    text = parse({" a ": ["  one \n two\tthree "], "b": ["x  y"]})
    assert text.classes == ("a", "b")
    assert text.descriptions == (("one two three",), ("x  y",))


def test_byte_order_mark_is_dropped():
    data = json.dumps(TWO).encode()
    assert parse_knowledge(b"\xef\xbb\xbf" + data) == parse_knowledge(data)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"got a list at \$"),
        ("text", r"got a text at \$"),
        (None, r"got null at \$"),
        ({}, "no classes"),
        ({"X": {}}, r"no classes at \$\['X'\]"),
        ({"a": "x", "b": ["y"]}, r"\$\['a'\]: expected a list.*got a text"),
        ({"X": {"a": {"b": ["x"]}}}, r"\$\['X'\]\['a'\]: expected a list.*got an object"),
        ({"X": {"a": ["x"]}, "meta": 3}, r"\$\['X'\]: expected a list.*got an object"),
        ({"a": ["x", 3], "b": ["y"]}, r"\$\['a'\]\[1\]: expected a text, got a number"),
        ({"a": ["x", None]}, r"\$\['a'\]\[1\]: expected a text, got null"),
        ({"a": ["x", True]}, r"\$\['a'\]\[1\]: expected a text, got a truth value"),
        ({"a": [["x"]]}, r"\$\['a'\]\[0\]: expected a text, got a list"),
        ({"X": {"a": [{"feature": 3}]}}, r"\$\['X'\]\['a'\]\[0\].feature: expected a text"),
        ({"X": {"a": [{"text": "x"}]}}, r"\$\['X'\]\['a'\]\[0\]: expected a key \"feature\""),
        ({"X": {"a": [{"feature": "x", "w": 1}]}}, r"\$\['X'\]\['a'\]\[0\]: .*got also \['w'\]"),
        ({"a": [""]}, r"\$\['a'\]\[0\]: expected some text"),
        ({"a": [" \n "]}, r"\$\['a'\]\[0\]: expected some text"),
        ({" ": ["x"]}, "class name ' '.*expected some text"),
        ({"a\nb": ["x"]}, r"control character U\+000A"),
        ({"a": ["x\0y"]}, r"\$\['a'\]\[0\]: .*control character U\+0000"),
        ({"a": ["x\x1b[2J"]}, r"U\+001B"),
        ({"Normal": ["x"], " normal": ["y"]}, "'Normal' and ' normal' are the same"),
        ({"a": ["\ud800"]}, "surrogate"),
    ],
)
def test_errors_name_the_place(value, message):
    with pytest.raises(KnowledgeError, match=message):
        parse(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": ["x"], "a": ["y"]}', "'a' stands twice"),
        (b'{"a": ["x"],\n "b": [}', "line 2, column 8"),
        (b"", "line 1, column 1"),
        (b'{"a": ["caf\xe9"]}', "byte 0xe9 at offset 11"),
        (b'\xef\xbb\xbf{"a": ["caf\xe9"]}', "byte 0xe9 at offset 14"),
        (b'{"a": [NaN]}', "NaN"),
        (b'{"a": [-Infinity]}', "Infinity"),
        (b'{"a": [1e999]}', "float64"),
        (b'{"a": [' + b"9" * 5000 + b"]}", "digits"),
        (b"[" * 100_000 + b"]" * 100_000, "64 levels"),
        (b'{"a": ' + b"[" * 80 + b"]" * 80 + b"}", "64 levels"),
        (b" " * (MAX_KNOWLEDGE_BYTES + 1), "at most"),
    ],
)
def test_broken_files_say_where(data, message):
    with pytest.raises(KnowledgeError, match=message):
        parse_knowledge(data)


def test_reading_a_file_names_it(tmp_path):
    (tmp_path / "k.json").write_bytes(b"{")
    with pytest.raises(KnowledgeError, match=r"k\.json: not JSON"):
        read_knowledge(tmp_path / "k.json")
    with pytest.raises(KnowledgeError, match=r"cannot read .*No such file"):
        read_knowledge(tmp_path / "gone.json")
    with pytest.raises(KnowledgeError, match="cannot read"):
        read_knowledge(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just({"feature": "x"}),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@FUZZ
@given(json_values)
def test_random_json_raises_nothing_else(value):
    try:
        text = parse(value)
    except KnowledgeError:
        return
    assert len(text.classes) == len(text.descriptions) >= 1
    assert all(part.strip() == part != "" for group in text.descriptions for part in (*group, *text.classes))


@FUZZ
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda s: s.encode("utf-8", "surrogatepass")))
def test_random_bytes_raise_nothing_else(data):
    with pytest.raises(KnowledgeError):
        parse_knowledge(b"{" + data)


def test_template_substitutes_text_and_nothing_else():
    template = Template("{class} {feature} {class}", "just {class}")
    assert template.prompts("a", ("x", "y")) == ["a x a", "a y a"]
    assert template.prompts("a", ()) == ["just a"]
    assert template.prompts("{feature}", ("{class.__init__}",)) == ["{feature} {class.__init__} {feature}"]
    assert Template().prompts("lung", ("spots",)) == ["a photo of a lung, which has spots"]
    assert Template().prompts("lung", ()) == ["a photo of a lung"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{class}", "expected the field {feature}"),
        ("", "expected the field {feature}"),
        ("{feature} {label}", "'{label}' is no field; the fields are {class} and {feature}"),
        ("{feature} {class.__class__}", "is no field"),
        ("{feature!r}", "is no field"),
        ("{feature:>9}", "is no field"),
        ("{feature} {", "is no field"),
        ("{{feature}}", "is no field"),
        ("{feature} {}", "is no field"),
        (3, "expected a string"),
    ],
)
def test_bad_templates_are_refused(template, message):
    with pytest.raises(KnowledgeError, match=message):
        Template(template)
    with pytest.raises(KnowledgeError):
        Template("{feature}", "{class} {feature}")
