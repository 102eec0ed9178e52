"""Token ids equal open_clip's on every text but literal special tokens; damaged descriptors are refused."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kpl_engine.encoder.tokenize import load_tokenizer
from kpl_engine.errors import EncoderError, InputError, MissingExtraError, TextTooLongError

HERE = Path(__file__).parent
DESCRIPTOR = {
    "format": 1,
    "type": "clip_bpe",
    "merges": ["l u", "n g</w>", "lu ng</w>"],
    "context_length": 8,
    "clean": "lower",
    "sot": 515,
    "eot": 516,
    "pad": 0,
    "vocab_size": 517,
}
EXTRA = ["", " ", "\t\n\r\x0b\x0c", "\x00\x01\x02 bell\x07 \x1b[0m", "lung " * 1000, "x" * 5000, "é" * 300, "\ufeffbom"]


def corpus():
    lines = [line for path in sorted(HERE.glob("corpus_*.txt")) for line in path.read_text("utf-8").split("\n")]
    return lines + EXTRA


@pytest.fixture
def full(open_clip, describe):
    theirs = open_clip.tokenizer.SimpleTokenizer()
    return theirs, load_tokenizer(json.dumps(describe(theirs)).encode())


@pytest.mark.torch
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_corpus_equals_open_clip(open_clip, describe, clean):
    theirs = open_clip.tokenizer.SimpleTokenizer(clean=clean)
    ours = load_tokenizer(describe(theirs, clean))
    texts = corpus()
    got = ours.encode(texts, truncate=True)
    np.testing.assert_array_equal(got.ids, theirs(texts).numpy())
    assert got.ids.dtype == np.int64
    long = [i for i, text in enumerate(texts) if len(theirs.encode(text)) + 2 > 77]
    assert list(got.truncated) == long
    assert len(long) >= 3


@pytest.mark.torch
@pytest.mark.parametrize("context_length", [5, 64, 77])
def test_shortened_merges_and_other_contexts(open_clip, describe, short_merges, context_length):
    theirs = open_clip.tokenizer.SimpleTokenizer(str(short_merges), context_length=context_length)
    ours = load_tokenizer(describe(theirs))
    np.testing.assert_array_equal(ours.encode(corpus(), truncate=True).ids, theirs(corpus()).numpy())


@pytest.mark.torch
def test_any_unicode_equals_open_clip(full):
    theirs, ours = full

    @settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
    def check(texts):
        np.testing.assert_array_equal(ours.encode(texts, truncate=True).ids, theirs(texts).numpy())

    check()


@pytest.mark.torch
def test_merges_in_any_order_equal_open_clip(open_clip, describe, short_merges):
    """Shuffled ranks are no trained tokenizer, but they reach every branch of the merging."""
    theirs = open_clip.tokenizer.SimpleTokenizer(str(short_merges))
    merges = describe(theirs)["merges"]
    order = np.random.default_rng(0).permutation(len(merges))
    theirs.bpe_ranks = {tuple(merges[i].split()): int(rank) for i, rank in enumerate(order)}
    ours = load_tokenizer(describe(theirs) | {"merges": merges})
    ours._bpe._ranks = theirs.bpe_ranks
    texts = [*corpus(), *("".join(np.random.default_rng(s).choice(list("aeinrst"), 60)) for s in range(50))]
    np.testing.assert_array_equal(ours.encode(texts, truncate=True).ids, theirs(texts).numpy())


def test_a_word_of_a_megabyte_is_quick():
    """The plain algorithm is quadratic and would take hours."""
    ours = load_tokenizer(DESCRIPTOR)
    start = time.perf_counter()
    with pytest.raises(TextTooLongError):
        ours.encode(["lung" * 250_000])
    assert time.perf_counter() - start < 60


@pytest.mark.torch
def test_special_tokens_in_text_stay_text(full):
    theirs, ours = full
    ids = ours.encode(["a <end_of_text> b <START_OF_TEXT>"]).ids[0]
    assert (ids == theirs.eot_token_id).sum() == 1
    assert (ids == theirs.sot_token_id).sum() == 1
    assert (theirs("a <end_of_text> b").numpy() == theirs.eot_token_id).sum() == 2  # what must not happen here


def test_ids_by_hand():
    ours = load_tokenizer(DESCRIPTOR)
    # 'lung</w>' is merge 2 -> 514; 'u' is byte 0x75, 84th visible byte; 'a</w>' is 256 + 64.
    np.testing.assert_array_equal(
        ours.encode(["Lung  U", "", "a"]).ids,
        [[515, 514, 256 + 84, 516, 0, 0, 0, 0], [515, 516, 0, 0, 0, 0, 0, 0], [515, 256 + 64, 516, 0, 0, 0, 0, 0]],
    )
    assert ours.encode([]).ids.shape == (0, 8)


def test_too_long_is_an_error_by_default():
    ours = load_tokenizer(DESCRIPTOR)
    with pytest.raises(TextTooLongError, match=r"texts\[1\] 'b b b b b b b'.*at most 8 tokens, got 9.*truncate=True"):
        ours.encode(["a", "b b b b b b b"])
    got = ours.encode(["a", "b b b b b b b"], truncate=True)
    assert got.truncated == (1,)
    assert got.ids[1, -1] == 516
    assert ours.encode(["b b b b b b"]).truncated == ()


@pytest.mark.parametrize("texts", ["one text", [b"bytes"], [None], [3]])
def test_wrong_texts(texts):
    with pytest.raises(InputError, match="texts"):
        load_tokenizer(DESCRIPTOR).encode(texts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("type", "wordpiece"),
        ("merges", "l u"),
        ("merges", ["l u", "lu"]),
        ("merges", ["lu ng"]),
        ("merges", ["l u", "l u"]),
        ("merges", [["l", "u"]]),
        ("context_length", 2),
        ("context_length", 8.0),
        ("clean", "upper"),
        ("clean", ["lower"]),
        ("sot", 3),
        ("eot", 515),
        ("eot", 999),
        ("pad", -1),
        ("vocab_size", 100),
        ("vocab_size", None),
    ],
)
def test_damaged_descriptor(key, value):
    with pytest.raises(EncoderError, match="tokenizer"):
        load_tokenizer({**DESCRIPTOR, key: value})


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"format": 1}', b'{"format": 1, "format": 1}'])
def test_damaged_json(data):
    with pytest.raises(EncoderError, match="tokenizer"):
        load_tokenizer(data)


# Hugging Face tokenizers


def word_pieces():
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra tokenizers")
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "lung": 4, "clear": 5, "##s": 6, "[": 7, "]": 8, "sep": 9}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    inner = json.loads(made.to_str())
    descriptor = {"format": 1, "type": "hf", "tokenizers_json": inner, "context_length": 6, "clean": "whitespace"}
    return {**descriptor, "pad": 0, "strip_sep_token": False, "sep": None}


def test_hugging_face_frames_pads_and_truncates():
    ours = load_tokenizer(json.dumps(word_pieces()).encode())
    got = ours.encode(["Clear  lungs", "lung " * 9, ""], truncate=True)
    np.testing.assert_array_equal(got.ids, [[2, 5, 4, 6, 3, 0], [2, 4, 4, 4, 4, 3], [2, 3, 0, 0, 0, 0]])
    assert got.truncated == (1,)
    with pytest.raises(TextTooLongError, match=r"texts\[0\].*at most 6 tokens, got 11"):
        ours.encode(["lung " * 9])
    assert ours.encode([]).ids.shape == (0, 6)


def test_hugging_face_separator_is_stripped():
    ours = load_tokenizer({**word_pieces(), "strip_sep_token": True, "sep": 3})
    np.testing.assert_array_equal(ours.encode(["lung"]).ids, [[2, 4, 0, 0, 0, 0]])


def test_hugging_face_special_tokens_in_text_stay_text():
    ours = load_tokenizer(word_pieces())
    np.testing.assert_array_equal(ours.encode(["[SEP]"]).ids, [[2, 7, 9, 8, 3, 0]])


@pytest.mark.torch
def test_hugging_face_equals_open_clip(open_clip, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra tokenizers")
    transformers = pytest.importorskip("transformers", reason="needs the export extra")
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=900, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    made = tokenizers.Tokenizer.from_str(json.dumps(word_pieces()["tokenizers_json"]))
    made.train_from_iterator(corpus(), trainer)
    made.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", made.token_to_id("[SEP]")), ("[CLS]", made.token_to_id("[CLS]"))
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(tmp_path)
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=40)
    expected = theirs(corpus()).numpy()
    inner = json.loads(theirs.tokenizer.backend_tokenizer.to_str())
    descriptor = {**word_pieces(), "tokenizers_json": inner, "context_length": 40, "pad": theirs.tokenizer.pad_token_id}
    np.testing.assert_array_equal(load_tokenizer(descriptor).encode(corpus(), truncate=True).ids, expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokenizers_json", {}), ("tokenizers_json", "x"), ("pad", None), ("strip_sep_token", 1), ("context_length", 0)],
)
def test_damaged_hugging_face_descriptor(key, value):
    with pytest.raises(EncoderError, match="tokenizer"):
        load_tokenizer({**word_pieces(), key: value})


def test_missing_tokenizers_package(monkeypatch):
    descriptor = word_pieces()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"kpl-engine\[tokenizers\]"):
        load_tokenizer(descriptor)
