"""Arguments become paths: order kept, nothing lost silently."""

from __future__ import annotations

import io
import os

import pytest

from kpl_engine.errors import InputError
from kpl_engine.imaging.sources import expand_sources, list_images


@pytest.fixture
def tree(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.dcm", "sub/deep/d.tif", ".cache/e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def names(paths, tree):
    return [str(path.relative_to(tree)) for path in paths]


def test_folder_is_searched_at_any_depth_and_sorted(tree):
    assert names(expand_sources([str(tree)]), tree) == ["a.JPG", "b.png", "sub/c.dcm", "sub/deep/d.tif"]


def test_files_keep_their_order_and_duplicates(tree):
    given = [str(tree / name) for name in ("notes.txt", "b.png", "a.JPG", "b.png")]
    assert [str(path) for path in expand_sources(given)] == given


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png"]),
        ("?.*", ["a.JPG", "b.png"]),
        ("**/*.[dt]*", ["notes.txt", "sub/c.dcm", "sub/deep/d.tif"]),
        ("s*", ["sub/c.dcm", "sub/deep/d.tif"]),
    ],
)
def test_patterns(tree, pattern, expected):
    assert names(expand_sources([str(tree / pattern)]), tree) == expected


def test_a_file_whose_name_looks_like_a_pattern(tree):
    odd = tree / "x[1].png"
    odd.write_bytes(b"")
    assert expand_sources([str(odd)]) == [odd]


def test_standard_input_is_taken_as_it_is(tree):
    text = f"{tree}/b.png\n\n  \n{tree}/missing file.png\r\n"
    assert names(expand_sources(["-"], io.StringIO(text)), tree) == ["b.png", "missing file.png"]


def test_what_matches_nothing_is_named(tree):
    with pytest.raises(InputError, match=r"nowhere\.png.*\*\.gif") as caught:
        expand_sources([str(tree / "b.png"), str(tree / "nowhere.png"), str(tree / "*.gif")])
    assert "b.png" not in str(caught.value)
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match="no image in the folder"):
        expand_sources([str(tree / "empty")])


@pytest.mark.parametrize("arguments", [[], [""], ["-"], ["a\0b"], "picture.png"])
def test_unusable_arguments(arguments):
    with pytest.raises(InputError):
        expand_sources(arguments)


def test_empty_list_on_standard_input():
    with pytest.raises(InputError, match="lists no path"):
        expand_sources(["-"], io.StringIO("\n"))


def test_linked_folders_are_entered_once_and_loops_end(tree):
    os.symlink(tree, tree / "sub" / "loop")
    outside = tree.parent / "outside"
    outside.mkdir()
    (outside / "z.png").write_bytes(b"")
    os.symlink(outside, tree / "linked")
    assert names(list_images(tree), tree) == ["a.JPG", "b.png", "linked/z.png", "sub/c.dcm", "sub/deep/d.tif"]


def test_a_folder_that_cannot_be_read_is_an_error_and_not_fewer_images(tree, monkeypatch):
    original = os.scandir

    def deny(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", deny)  # root may read anything
    with pytest.raises(InputError, match=r"deep.*Permission denied"):
        list_images(tree)


def test_a_list_that_is_no_text_is_an_error():
    stream = io.TextIOWrapper(io.BytesIO(b"a.png\n\xff.png\n"), encoding="utf-8")
    with pytest.raises(InputError, match="list of paths"):
        expand_sources(["-"], stream)
    marked = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa.png\r\n"), encoding="utf-8")
    assert [str(path) for path in expand_sources(["-"], marked)] == ["a.png"]
