"""A multipart/form-data body in memory -> its text fields and its files, in bounded work."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kpl_engine.errors import RequestError, TooLargeError

__all__ = ["Form", "FormFile", "clean_name", "parse_multipart"]

_MAX_FIELDS = 32
_MAX_FIELD_BYTES = 64 << 10
_MAX_NAME = 128  # characters of a file name in answers and logs
_AS_IT_IS = (b"", b"binary", b"8bit", b"7bit")


@dataclass(frozen=True)
class FormFile:
    """One uploaded file under the name of its field."""

    field: str
    name: str
    data: bytes


@dataclass(frozen=True)
class Form:
    """``fields`` in the order they came, names may repeat."""

    fields: tuple[tuple[str, str], ...]
    files: tuple[FormFile, ...]


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    header: tuple[bytes, bytes] = (b"", b"")
    data: list[memoryview] = field(default_factory=list)
    num_bytes: int = 0
    name: str = ""
    file_name: str | None = None


def clean_name(given: str) -> str:
    """A file name without folders and without characters that cannot be printed, at most 128 characters.

    It is only ever shown: no path of a client touches the disk.
    """
    base = given.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    # Categories C* are controls, half surrogates and the marks that turn the direction of text around.
    shown = "".join(char if unicodedata.category(char)[0] != "C" else " " for char in base[: 4 * _MAX_NAME])
    shown = " ".join(shown.split())
    if len(shown) <= _MAX_NAME:
        return shown
    stem, dot, ending = shown.rpartition(".")
    keeps_ending = bool(stem) and bool(dot) and len(ending) <= 8
    tail = f"….{ending}" if keeps_ending else "…"
    return shown[: _MAX_NAME - len(tail)] + tail


def parse_multipart(body: bytes, content_type: str, max_files: int) -> Form:
    """Take a body apart.

    Parameters
    ----------
    body : bytes
        All of it; its size was bounded while it arrived.
    content_type : str
        The header, with its boundary.
    max_files : int
        Parts with a file.

    Raises
    ------
    RequestError
        No boundary, malformed, cut off, too many fields, a field of more than 64 KiB or that is not UTF-8.
    TooLargeError
        More files than ``max_files``.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise RequestError("multipart: expected a boundary in the header Content-Type, got none")
    reader = _Reader(memoryview(body), max_files)
    try:
        # At once: the parser looks for the boundary with bytes.find, so hostile contents cost no more than others.
        MultipartParser(boundary, reader.callbacks()).write(body)  # type: ignore[arg-type]
    except FormParserError as error:
        raise RequestError(f"multipart: malformed: {error}") from error
    if not reader.is_complete:
        raise RequestError("multipart: the body ends before its closing boundary; it was cut off, or the boundary")
    return Form(tuple(reader.fields), tuple(reader.files))


class _Reader:
    """Callbacks of the parser; offsets are those of the one body."""

    def __init__(self, body: memoryview, max_files: int) -> None:
        self._body, self._max_files = body, max_files
        self._part = _Part()
        self.fields: list[tuple[str, str]] = []
        self.files: list[FormFile] = []
        self.is_complete = False

    def callbacks(self) -> dict[str, object]:
        """By the parser's names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._part = _Part()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        name, value = self._part.header
        self._part.header = (name + data[start:end], value)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        name, value = self._part.header
        self._part.header = (name, value + data[start:end])

    def _header_end(self) -> None:
        name, value = self._part.header
        self._part.headers[name.strip().lower()] = value.strip()
        self._part.header = (b"", b"")

    def _headers_finished(self) -> None:
        part = self._part
        kind, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if kind != b"form-data" or not options.get(b"name"):
            raise RequestError('multipart: expected Content-Disposition: form-data; name="..." in every part')
        if part.headers.get(b"content-transfer-encoding", b"").lower() not in _AS_IT_IS:
            raise RequestError("multipart: Content-Transfer-Encoding: expected the bytes as they are, without encoding")
        part.name = _text(options[b"name"], "a field's name")
        given = options.get(b"filename")
        part.file_name = None if given is None else given.decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.num_bytes += end - start
        if part.file_name is None and part.num_bytes > _MAX_FIELD_BYTES and part.name not in ("image", "images"):
            raise RequestError(f"multipart: the field {part.name[:80]!r} has more than {_MAX_FIELD_BYTES} bytes")
        part.data.append(self._body[start:end])

    def _end(self) -> None:
        part = self._part
        data = b"".join(part.data)
        if part.file_name is None and part.name not in ("image", "images", "file"):
            self.fields.append((part.name, _text(data, f"the field {part.name[:80]!r}")))
        elif part.file_name == "" and not data:
            return  # how a browser sends a file input that was left empty
        else:
            self.files.append(FormFile(part.name, clean_name(part.file_name or ""), data))
        if len(self.files) > self._max_files:
            raise TooLargeError(f"expected at most {self._max_files} images in a request, got more; send several")
        if len(self.fields) > _MAX_FIELDS:
            raise RequestError(f"multipart: expected at most {_MAX_FIELDS} fields, got more")

    def _finish(self) -> None:
        self.is_complete = True


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"multipart: {what}: not UTF-8 at byte {error.start}") from error
