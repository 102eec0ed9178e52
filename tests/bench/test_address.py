"""Addresses of servers and the tokens they ask for."""

import pytest

from kpl_engine.bench.address import Address, read_token
from kpl_engine.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000", ("http", "localhost", 8000, "")),
        ("http://10.1.2.3", ("http", "10.1.2.3", 8000, "")),
        ("https://clinic.example/kpl/", ("https", "clinic.example", 443, "/kpl")),
        ("grpc://[::1]:9", ("grpc", "::1", 9, "")),
        ("grpcs://clinic.example", ("grpcs", "clinic.example", 443, "")),
    ],
)
def test_parts_of_an_address(url, expected):
    found = Address.parse(url)
    assert (found.scheme, found.host, found.port, found.prefix) == expected
    assert Address.parse(str(found)) == found
    assert found.is_grpc == url.startswith("grpc")
    assert (found.tls is not None) == url.startswith("https")
    assert found.is_loopback == (found.host in ("localhost", "::1"))


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://a", "http://", "http://a:port", "http://a:70000", "http://a/?b=1", "grpc://a:1/b"],
)
def test_other_addresses_are_refused(url):
    with pytest.raises(ConfigError, match="url: expected"):
        Address.parse(url)


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(ConfigError, match="--token-file") as caught:
        Address.parse("http://me:hunter2@a:1")
    assert "hunter2" not in str(caught.value)


def test_the_first_token_of_a_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# of the clinic\n\n  ward-3: abcdefghijklmnop= # night\nsecond-token-1234567\n")
    assert read_token(path) == "abcdefghijklmnop="
    path.write_text("abcdefghijklmnopq\n")
    assert read_token(path) == "abcdefghijklmnopq"
    assert read_token(None) == ""


@pytest.mark.parametrize("content", [None, b"# nothing\n", b"\xff\xfe"])
def test_a_token_file_without_one_is_refused(tmp_path, content):
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="token file"):
        read_token(path)
