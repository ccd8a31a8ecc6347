"""Which encodings can be read, and what to say of bytes that are in another."""

from __future__ import annotations

import codecs

#: A character each of the scripts that encodings are for.
_SAMPLE = "éЖ中あ한اไ"


def checked_encoding(encoding: str) -> str:
    """The codec's own name of `encoding`.

    ValueError: not known, or one in which a newline, comma or quote cannot be found by its byte.
    """
    try:
        info = codecs.lookup(encoding)
        ascii_as_it_is = bytes(range(128)).decode(encoding) == "".join(map(chr, range(128)))
        others = _SAMPLE.encode(encoding, "ignore")
    except (LookupError, UnicodeError):
        raise ValueError(
            f"encoding {encoding!r} is unknown or not of text; utf-8, cp1252, gb18030 are, say"
        ) from None
    if not ascii_as_it_is or min(others, default=0x30) < 0x30:
        raise ValueError(
            f"encoding {encoding!r} cannot be read: ASCII must be single bytes in it. "
            f"Convert: iconv -f {encoding} -t UTF-8 FILE > NEW"
        )
    return "utf-8" if info.name == "utf-8-sig" else info.name


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, where the beginning of a file looks like it.

    By its byte order mark, or because a quarter of it is NUL, nearly all of that at even places or at odd ones.
    """
    for mark, name in (
        (codecs.BOM_UTF32_LE, "UTF-32"),
        (codecs.BOM_UTF32_BE, "UTF-32"),
        (codecs.BOM_UTF16_LE, "UTF-16"),
        (codecs.BOM_UTF16_BE, "UTF-16"),
    ):
        if head.startswith(mark):
            return name
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(head) >= 4 and 4 * (even + odd) >= len(head) and max(even, odd) >= 9 * min(even, odd):
        return "UTF-16LE" if odd > even else "UTF-16BE"
    return None


def likely_encoding(head: bytes, encoding: str) -> str | None:
    """The encoding that the beginning of a file looks like, if it is not in `encoding`."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)
        return None
    except UnicodeDecodeError:
        pass
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return None
    best = from_bytes(head).best()
    return None if best is None or best.encoding == encoding else best.encoding


def decode_problem(error: UnicodeDecodeError, likely: str | None) -> str:
    """Which byte is not in the encoding, where, and what it may be instead."""
    raw, at = error.object, error.start
    problem = f"byte 0x{raw[at]:02X} at byte {at + 1} of the record is not {error.encoding}"
    if "end of data" in error.reason:
        problem += ", a character that is cut off"
    if likely:
        return f"{problem}; the file looks like {likely} (pass encoding={likely!r})"
    around = raw[max(0, at - 12) : at + 12].decode("cp1252", "replace")
    return f"{problem}; read as cp1252 it is {around!r}"
