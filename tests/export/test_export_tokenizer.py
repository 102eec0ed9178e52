"""The descriptor alone gives the ids open_clip gives; read here by a small second implementation."""

import json
from itertools import pairwise

import numpy as np
import open_clip
import pytest
import regex
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn

from kpl_engine.errors import ExportError, InputError, ParityError
from kpl_engine.export import hub
from kpl_engine.export.load import LoadedModel, load_model
from kpl_engine.export.tokenizer import describe_tokenizer, load_tokenizer
from kpl_engine.export.verify import random_tokens, verify_tokenizer

from .conftest import make_merges, write_folder, write_siglip_json, write_wordpiece

pytestmark = pytest.mark.torch

TEXTS = [
    "",
    "a chest x-ray of a 3 cm nodule in the left upper lobe",
    "No acute cardiopulmonary abnormality; heart size is normal.",
    "Größe: 12 µm, Ödem &amp; Erguß — “rechts”",
    "肺结节 が見られる \U0001fac1",
    "it's the patient's  2nd\tfilm\nwe've seen",
    "T1/T2-weighted (+Gd) 3.0T, SUVmax=7.4",
    "effusion " * 100,
    "UPPER lower_MiXeD under_score",
    "Ｆｕｌｌ ｗｉｄｔｈ ﬁbrosis",
]
POSTINGS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


def byte_symbols():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    order = plain + others
    symbols = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]
    return dict(zip(order, symbols, strict=True)), symbols


def read_bpe(descriptor, text):
    """Ids of one text by the descriptor: merge the best-ranked pair until none is left."""
    of_byte, symbols = byte_symbols()
    merges = [tuple(line.split(" ")) for line in descriptor["merges"]]
    vocab = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges)]
    id_of, rank = {s: i for i, s in enumerate(vocab)}, {pair: i for i, pair in enumerate(merges)}
    ids = [descriptor["sot"]]
    for word in POSTINGS.findall(get_clean_fn(descriptor["clean"])(text)):
        parts = [of_byte[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: rank.get(pair, len(rank)))
            if best not in rank:
                break
            merged, i = [], 0
            while i < len(parts):
                step = 2 if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best else 1
                merged.append("".join(parts[i : i + step]))
                i += step
            parts = merged
        ids += [id_of[part] for part in parts]
    length = descriptor["context_length"]
    ids = [*ids[: length - 1], descriptor["eot"]]
    return ids + [descriptor["pad"]] * (length - len(ids))


def read_hf(descriptor, text):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(descriptor["tokenizers_json"]))
    ids = tokenizer.encode(get_clean_fn(descriptor["clean"])(text)).ids
    return [0 if descriptor["strip_sep_token"] and i == descriptor["sep"] else i for i in ids]


def through_json(descriptor):
    return json.loads(json.dumps(descriptor))


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_clip_bpe(clean):
    tokenizer = SimpleTokenizer(clean=clean)
    descriptor = through_json(describe_tokenizer(tokenizer, 49408))
    assert (descriptor["format"], descriptor["type"], descriptor["clean"]) == (1, "clip_bpe", clean)
    assert (descriptor["sot"], descriptor["eot"], descriptor["vocab_size"]) == (49406, 49407, 49408)
    assert len(descriptor["merges"]) == 48894
    for text in TEXTS:
        assert read_bpe(descriptor, text) == tokenizer([text])[0].tolist(), text


@pytest.mark.parametrize("last_newline", ["", "\n"])
def test_shortened_merges_of_a_folder(tmp_path, last_newline):
    import gzip

    folder = write_folder(tmp_path / "short")
    path = folder / "merges.txt.gz"
    content = gzip.decompress(path.read_bytes()).decode() + last_newline
    path.write_bytes(gzip.compress(content.encode()))
    loaded = load_model(f"local-dir:{folder}", "none")
    tokenizer = load_tokenizer(loaded)
    # the line after a last newline takes an id in open_clip's vocabulary, and shifts start and end
    descriptor = describe_tokenizer(tokenizer, loaded.model.vocab_size + len(last_newline))
    assert descriptor["context_length"] == 12
    assert descriptor["sot"] == 512 + len(descriptor["merges"]) + len(last_newline)
    for text in TEXTS:
        assert read_bpe(through_json(descriptor), text) == tokenizer([text])[0].tolist(), text


@pytest.mark.parametrize("strip", [False, True])
def test_wordpiece(tmp_path, strip):
    write_wordpiece(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path), context_length=20, strip_sep_token=strip)
    descriptor = through_json(describe_tokenizer(tokenizer, 100))
    assert (descriptor["type"], descriptor["context_length"], descriptor["pad"]) == ("hf", 20, 0)
    assert descriptor["strip_sep_token"] is strip
    assert descriptor["sep"] == (3 if strip else None)
    for text in TEXTS:
        assert read_hf(descriptor, text) == tokenizer([text])[0].tolist(), text


def siglip(name="ViT-B-16-SigLIP"):
    """What `load_model` would say of a SigLIP model of open_clip's own, without building one."""
    return LoadedModel(None, None, name, name, "none", open_clip.get_model_config(name)["text_cfg"], {}, None)


@pytest.mark.parametrize(("name", "pad"), [("ViT-B-16-SigLIP", 1), ("ViT-B-16-SigLIP2", 0)])
def test_override_for_siglip_cleans_and_pads_like_siglip(tmp_path, name, pad):
    """The bare file does not say the padding, and the tower reads its feature off the last token."""
    path = tmp_path / "tokenizer.json"
    write_siglip_json(path)
    tokenizer = load_tokenizer(siglip(name), str(path))
    descriptor = through_json(describe_tokenizer(tokenizer, 100))
    assert (descriptor["clean"], descriptor["pad"], descriptor["context_length"]) == ("canonicalize", pad, 64)
    ids = read_hf(descriptor, "Chest_X: ray!")
    assert ids == [4, 5, 6, 1] + [pad] * 60
    assert ids == tokenizer(["Chest_X: ray!"])[0].tolist()


def test_override_folder_says_its_own_padding(tmp_path):
    write_siglip_json(tmp_path / "tokenizer.json", pad="<unk>")
    assert describe_tokenizer(load_tokenizer(siglip(), str(tmp_path)), 100)["pad"] == 2


def test_padding_is_not_guessed_where_it_is_read(tmp_path):
    write_siglip_json(tmp_path / "tokenizer.json")
    for pool, refused in (("last", True), ("argmax", False)):
        text = {"context_length": 9, "pool_type": pool}
        loaded = LoadedModel(None, None, "x", "local-dir:x", "none", text, {}, tmp_path)
        if refused:
            with pytest.raises(InputError, match="no padding token"):
                load_tokenizer(loaded, str(tmp_path / "tokenizer.json"))
        else:
            tokenizer = load_tokenizer(loaded, str(tmp_path / "tokenizer.json"))
            assert describe_tokenizer(tokenizer, 100)["pad"] == 0


def test_override_by_name_and_by_merges_file(tmp_path, vit_folder):
    loaded = load_model(f"local-dir:{vit_folder}", "none")
    assert load_tokenizer(loaded, "clip").vocab_size == 49408
    size = make_merges(tmp_path / "merges.gz", ["rib", "cage"])
    assert load_tokenizer(loaded, str(tmp_path / "merges.gz")).vocab_size == size


def test_tokenizer_of_another_model_is_refused(vit_folder):
    loaded = load_model(f"local-dir:{vit_folder}", "none")
    with pytest.raises(ExportError, match=r"ids up to 49407.*--no-text"):
        describe_tokenizer(load_tokenizer(loaded, "clip"), loaded.model.vocab_size)


def test_tokenizer_that_needs_a_download_names_both_ways_out(monkeypatch):
    def fail(*args):
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "require", fail)
    with pytest.raises(ExportError, match=r"--tokenizer.*--no-text"):
        load_tokenizer(siglip())


def test_unusable_overrides(tmp_path, vit_folder):
    loaded = load_model(f"local-dir:{vit_folder}", "none")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "merges.gz").write_bytes(b"plain text")
    for name in ("nowhere.json", "tokenizer.json", "merges.gz", "nowhere.gz"):
        with pytest.raises(InputError):
            load_tokenizer(loaded, str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a Hugging Face tokenizer"):
        load_tokenizer(loaded, str(tmp_path / "empty"))


def test_merges_outside_the_folder_are_refused(tmp_path):
    make_merges(tmp_path / "outside.gz")
    for name in ("../outside.gz", str(tmp_path / "outside.gz")):
        folder = write_folder(tmp_path / f"f{len(name)}", text={"tokenizer_kwargs": {"bpe_path": name}})
        with pytest.raises(InputError, match="leads out of the folder"):
            load_tokenizer(load_model(f"local-dir:{folder}", "none"))


def test_foreign_code_is_refused(tmp_path):
    folder = write_folder(tmp_path / "evil", text={"tokenizer_kwargs": {"trust_remote_code": True}})
    with pytest.raises(InputError, match="trust_remote_code"):
        load_tokenizer(load_model(f"local-dir:{folder}", "none"))


def test_what_data_cannot_describe_is_refused():
    with pytest.raises(ExportError, match="reduction masks"):
        describe_tokenizer(SimpleTokenizer(reduction_mask="random"), 49408)
    with pytest.raises(ExportError, match="additional special tokens"):
        describe_tokenizer(SimpleTokenizer(additional_special_tokens=["<x>"]), 60000)


def test_descriptor_the_runtime_reads_differently_is_refused(vit_folder):
    loaded = load_model(f"local-dir:{vit_folder}", "none")
    tokenizer = load_tokenizer(loaded)
    descriptor = describe_tokenizer(tokenizer, loaded.model.vocab_size)
    verify_tokenizer(json.dumps(descriptor).encode(), tokenizer)
    swapped = {"sot": descriptor["eot"], "eot": descriptor["sot"]}
    for change in ({"clean": "whitespace"}, {"pad": 1}, swapped):
        with pytest.raises(ParityError, match="the runtime's ids"):
            verify_tokenizer(json.dumps({**descriptor, **change}).encode(), tokenizer)
    with pytest.raises(ExportError, match="cannot read"):
        verify_tokenizer(json.dumps({**descriptor, "merges": descriptor["merges"][::-1]}).encode(), tokenizer)


def test_random_tokens_keep_the_layout(vit_folder):
    loaded = load_model(f"local-dir:{vit_folder}", "none")
    tokenizer = load_tokenizer(loaded)
    tokens = random_tokens(tokenizer, loaded.model.vocab_size, 16)
    assert tokens.shape == (16, 12)
    assert tokens.dtype == np.int64
    assert (tokens[:, 0] == tokenizer.sot_token_id).all()
    assert ((tokens == tokenizer.eot_token_id).sum(axis=1) == 1).all()
    assert tokens.max() == tokenizer.eot_token_id
    assert len(np.unique(tokens)) > 40
