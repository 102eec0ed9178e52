"""Tokens: what a file may hold, who is let in, and that nothing tells them."""

import pytest

from kpl_engine.errors import ConfigError, UnauthorizedError
from kpl_engine.server.auth import TokenGuard

FIRST, SECOND = "0123456789abcdef", "Zm9vYmFyYmF6cXV4LS0t/+=="


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# the house\n\nviewer:{FIRST}   # the viewer\n  {SECOND}\n")
    path.chmod(0o600)
    return path


def test_each_token_of_the_file_is_let_in_by_its_name(file):
    guard = TokenGuard(file)
    assert len(guard) == 2
    assert guard.check(f"Bearer {FIRST}") == "viewer"
    assert guard.check(f"bearer  {SECOND} ") == ""
    assert guard.check_scope({"headers": [(b"host", b"x"), (b"authorization", f"Bearer {FIRST}".encode())]}) == "viewer"
    assert guard.check_metadata((("authorization", f"Bearer {FIRST}"),)) == "viewer"


@pytest.mark.parametrize(
    "given",
    [
        "",
        FIRST,
        f"Basic {FIRST}",
        "Bearer",
        "Bearer ",
        f"Bearer {FIRST[:-1]}",
        f"Bearer {FIRST}x",
        f"Bearer viewer:{FIRST}",
        f"Bearer {FIRST.upper()}",
        "Bearer \xe9\udcff",
    ],
)
def test_anything_else_is_refused_and_not_repeated(file, given):
    with pytest.raises(UnauthorizedError) as caught:
        TokenGuard(file).check(given)
    assert FIRST[:8] not in str(caught.value)


def test_missing_and_doubled_headers_are_refused(file):
    guard = TokenGuard(file)
    for headers in ([], [(b"authorization", b"Bearer " + FIRST.encode())] * 2):
        with pytest.raises(UnauthorizedError):
            guard.check_scope({"headers": headers})
    for metadata in (None, (), (("authorization", b"\xff"),)):
        with pytest.raises(UnauthorizedError):
            guard.check_metadata(metadata)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no token"),
        ("# only this\n", "no token"),
        ("secret1", "16"),
        (f"{FIRST}\nsecret2 with spaces", "line 2"),
        (f"na me:{FIRST}", "name"),
        (f":{FIRST}", "name"),
        ("s\u00e9cretsecretsecret", "other characters"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_without_its_words(tmp_path, text, words):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        TokenGuard(path)
    assert "secret" not in str(caught.value)
    assert FIRST not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        TokenGuard(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + FIRST.encode())
    with pytest.raises(ConfigError, match="UTF-8"):
        TokenGuard(tmp_path / "binary")


def test_reload_takes_the_new_tokens_and_keeps_the_old_ones_on_an_error(file):
    guard = TokenGuard(file)
    file.write_text("short")
    with pytest.raises(ConfigError):
        guard.reload()
    assert guard.check(f"Bearer {FIRST}") == "viewer"
    file.write_text("f" * 16)
    assert guard.reload() == 1
    assert guard.check("Bearer " + "f" * 16) == ""
    with pytest.raises(UnauthorizedError):
        guard.check(f"Bearer {FIRST}")


def test_a_file_that_everybody_can_read_is_noticed(file):
    guard = TokenGuard(file)
    assert not guard.is_exposed
    file.chmod(0o644)
    assert guard.is_exposed
