"""Just enough of protobuf's text format to read a flat message of strings and doubles, and to quote a string.

TensorFlow's protobuf messages cannot be used: their names may be registered only once in a process, and this library
works without TensorFlow. Syntax: https://protobuf.dev/reference/protobuf/textformat-spec/ .

Promises: every flat message that protobuf prints is read; malformed text is a `ValueError` that names the line.
Comments are refused: neither TensorFlow nor protobuf writes one, so one in a file is damage or an edit.
"""

import re
from collections.abc import Iterator

__all__ = ["parse_fields", "quote"]

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\v\f]+)
      | (?P<string>"[^"\\\n]*(?:\\.[^"\\\n]*)*"|'[^'\\\n]*(?:\\.[^'\\\n]*)*')
      | (?P<number>-?(?:inf(?:inity)?\b|nan\b|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?f?\b))
      | (?P<name>[A-Za-z_]\w*)
      | (?P<mark>[:,;\[\]])""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_LETTERS = {
    b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v",
    b"\\": b"\\", b"'": b"'", b'"': b'"', b"?": b"?",
}  # fmt: skip
_QUOTED = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "'": r"\'", "\\": r"\\"}


def quote(value: str) -> str:
    """A string literal, printed as protobuf's Python printer does with UTF-8 kept readable."""
    return '"' + "".join(_QUOTED.get(c) or (c if c >= " " and c != "\x7f" else f"\\{ord(c):03o}") for c in value) + '"'


def parse_fields(text: str) -> Iterator[tuple[str, str | float]]:
    """The fields of a flat message in order, each element of a list as a field of its own.

    Raises:
        ValueError: The text is not such a message.
    """
    cursor = _Cursor(text)
    while cursor.kind != "end":
        name, line = cursor.text, cursor.line
        if cursor.kind != "name" or cursor.advance().text != ":":
            raise ValueError(f"line {line}: expected a field name and a colon")
        if cursor.advance().text == "[":
            cursor.advance()
            while cursor.text != "]":
                yield name, _value(cursor, name)
                cursor.skip(",")
            cursor.advance()
        else:
            yield name, _value(cursor, name)
        cursor.skip(",;")


class _Cursor:
    """One token at a time: a hostile file costs no more memory than its size."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self.advance()

    def advance(self) -> "_Cursor":
        self.kind, self.text, self.line = next(self._tokens, ("end", "", 0))
        return self

    def skip(self, marks: str) -> None:
        if self.kind == "mark" and self.text in marks:
            self.advance()


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"line {line}: unexpected {text[at : at + 20]!r}")
        if match.lastgroup != "space":
            yield match.lastgroup, match[0], line
        line += match[0].count("\n")
        at = match.end()


def _value(cursor: _Cursor, name: str) -> str | float:
    if cursor.kind == "number":
        number = cursor.text
        cursor.advance()
        return float(number if "inf" in number.lower() else number.rstrip("fF"))
    line, parts = cursor.line, []
    while cursor.kind == "string":  # adjacent literals are one string
        parts.append(_unescape(cursor.text[1:-1].encode()))
        cursor.advance()
    if not parts:
        raise ValueError(f"line {line}: {name} has no value")
    return b"".join(parts).decode()


def _unescape(literal: bytes) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        octal, hexadecimal, short, long, letter = match.groups()
        if octal is not None:
            return bytes([int(octal, 8) & 0xFF])
        if hexadecimal is not None:
            return bytes([int(hexadecimal, 16)])
        if short is not None or long is not None:
            return chr(int(short or long, 16)).encode()
        if letter not in _LETTERS:
            raise ValueError(f"unknown escape \\{letter.decode(errors='replace')}")
        return _LETTERS[letter]

    return _ESCAPE.sub(replace, literal)
