"""Multipart bodies: what browsers and curl send, and what attackers do."""

import os
import random
import time

import pytest

from kpl_engine.errors import KplError, RequestError, TooLargeError
from kpl_engine.server.http.multipart import clean_name, parse_multipart

KIND = "multipart/form-data; boundary=xyz"


def part(name, data, file_name=None, extra=""):
    file = "" if file_name is None else f'; filename="{file_name}"'
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{extra}\r\n'.encode() + data + b"\r\n"


def body(*parts):
    return b"".join(parts) + b"--xyz--\r\n"


def test_fields_and_files_in_their_order():
    picture = os.urandom(5001) + b"\r\n--xy\r\n--xyzz\r\n"[:7]
    form = parse_multipart(
        body(
            part("task", "thorax é".encode()),
            part("image", picture, "a b.png"),
            part("image", b"", ""),
            part("images", b"\x00", "x.jpg"),
        ),
        KIND,
        8,
    )
    assert form.fields == (("task", "thorax é"),)
    assert [(file.field, file.name, file.data) for file in form.files] == [
        ("image", "a b.png", picture),
        ("images", "x.jpg", b"\x00"),
    ]


def test_an_image_without_a_file_name_is_a_file():
    assert parse_multipart(body(part("image", b"\xff\xd8")), KIND, 8).files[0].data == b"\xff\xd8"


def test_a_boundary_in_quotes():
    assert parse_multipart(body(part("a", b"1")), 'multipart/form-data; boundary="xyz"', 8).fields == (("a", "1"),)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        (body(part("a", b"1")), "multipart/form-data", "boundary"),
        (body(part("a", b"1")), "multipart/form-data; boundary=" + "x" * 300, "malformed"),
        (body(part("a", b"1")), "multipart/form-data; boundary=other", "malformed"),
        (body(part("a", b"1"))[:-5], KIND, "ends before"),
        (body(part("image", b"123", "x"))[:70], KIND, "ends before"),
        (b"", KIND, "ends before"),
        (b"\x00\x01\x02", KIND, "malformed"),
        (b"--xyz\r\nContent-Disposition: form-data\r\n\r\n1\r\n--xyz--\r\n", KIND, "name"),
        (b"--xyz\r\nX: 1\r\n\r\n1\r\n--xyz--\r\n", KIND, "Content-Disposition"),
        (body(part("task", b"\xff\xfe")), KIND, "UTF-8"),
        (body(part("image", b"YWJj", "x", "Content-Transfer-Encoding: base64\r\n")), KIND, "without encoding"),
        (body(part("task", b"x" * 70_000)), KIND, "65536 bytes"),
        (body(*[part("task", b"x")] * 33), KIND, "32 fields"),
        (body(part("task", b"x", extra="X: " + "y" * 9000 + "\r\n")), KIND, "malformed"),
        (body(part("task", b"x", extra="X: y\r\n" * 50)), KIND, "malformed"),
    ],
)
def test_what_is_refused(given, kind, says):
    with pytest.raises(RequestError, match=says):
        parse_multipart(given, kind, 8)


def test_too_many_files():
    with pytest.raises(TooLargeError, match="at most 3"):
        parse_multipart(body(*[part("image", b"x", "x")] * 4), KIND, 3)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\x.jpg", "x.jpg"),
        ("a\x00b\r\nc.png", "a b c.png"),
        ("\u202egnp.exe", "gnp.exe"),
        ("/", ""),
        ("Röntgen 1.png", "Röntgen 1.png"),
    ],
)
def test_names_are_cleaned(given, shown):
    assert clean_name(given) == shown


def test_long_names_keep_their_ending():
    shown = clean_name("x" * 5000 + ".dcm")
    assert len(shown) <= 128
    assert clean_name("y" * 300 + ".dcm").endswith("….dcm")


def test_mutations_parse_or_are_refused():
    random.seed(os.urandom(8))
    whole = body(part("task", b"chest"), part("image", os.urandom(300), "x.png"), part("prior", b"a=1"))
    for _ in range(2000):
        mutated = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(mutated))
            mutated[at : at + random.randint(0, 3)] = os.urandom(random.randint(0, 3))
        try:
            parse_multipart(bytes(mutated), KIND, 8)
        except KplError as error:
            assert isinstance(error, (RequestError, TooLargeError))  # noqa: PT017


@pytest.mark.parametrize("fill", [b"\r", b"\n", b"\r\n-", b"\r\n--xy", b"\r\n--xyy"])
def test_contents_that_look_like_boundaries_cost_no_more(fill):
    hostile = body(part("image", fill * ((8 << 20) // len(fill)), "x"))
    start = time.process_time()
    assert len(parse_multipart(hostile, KIND, 8).files) == 1
    # bytes.find takes about 5 ms for 8 MiB here; a loop over characters would take 2 s and more.
    assert time.process_time() - start < 1.0
