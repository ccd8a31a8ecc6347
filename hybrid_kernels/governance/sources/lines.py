"""Lines of a stream of bytes, however long and however broken."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable

import pyarrow as pa

#: A larger record is malformed; reading goes on behind it.
MAX_RECORD = 64 << 20
_TOO_LONG = "larger than {:,} bytes; its first MiB is kept with the rejected rows"
#: What a compressed stream that is damaged raises; OSError besides, without an error number.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


class Lines:
    """Reads lines, each with its ending, `\\n` or `\\r\\n`; the last may have none.

    Args:
        read: the next bytes, b"" at the end.
        limit: a longer line comes in pieces, the last of which is the one that ends it.
    """

    def __init__(self, read: Callable[[], bytes], limit: int = MAX_RECORD) -> None:
        self._read, self.limit = read, limit
        self._buffer, self._at = b"", 0
        self._broken: str | None = None
        self._ended = self._told = False

    def next(self) -> tuple[bytes, str | None] | None:
        """(line, None), or (piece, why it is no whole line); None at the end.

        Where a compressed stream breaks off, the last piece is what could be read of its line, b"" perhaps.
        """
        end = self._buffer.find(b"\n", self._at)
        if end < 0 or end - self._at >= self.limit:
            return self._next_long()
        line = self._buffer[self._at : end + 1]
        self._at = end + 1
        return line, None

    def unread(self, data: bytes | bytearray) -> None:
        """`data` is what was read last, and is read again."""
        self._told = False
        if len(data) <= self._at:
            self._at -= len(data)
        else:
            self._buffer, self._at = bytes(data) + self._buffer[self._at :], 0

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        parts, have = [self._buffer[self._at :]], len(self._buffer) - self._at
        while have < size and (chunk := self._more()):
            parts.append(chunk)
            have += len(chunk)
        self._buffer, self._at = b"".join(parts), 0
        return self._buffer[:size]

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; returns how many there were."""
        passed = 0
        while passed < size and (self._at < len(self._buffer) or self._refill()):
            step = min(size - passed, len(self._buffer) - self._at)
            self._at += step
            passed += step
        return passed

    def _next_long(self) -> tuple[bytes, str | None] | None:
        parts, have, end = [self._buffer[self._at :]], len(self._buffer) - self._at, -1
        while have < self.limit and (chunk := self._more()):
            parts.append(chunk)
            end = chunk.find(b"\n")
            if end >= 0:
                end += have
                break
            have += len(chunk)
        # Where a line is cut depends on its length alone, never on how the chunks lie: reading may begin anywhere.
        data = b"".join(parts)
        length = end + 1 if 0 <= end < self.limit else min(len(data), self.limit)
        self._buffer, self._at = data, length
        line = data if length == len(data) else data[:length]
        if 0 <= end < self.limit:
            return line, None
        if length == self.limit:
            return line, _TOO_LONG.format(self.limit)
        if self._broken is not None and not self._told:
            self._told = True
            return line, self._broken
        return (line, None) if line else None

    def _refill(self) -> bool:
        self._buffer, self._at = self._more(), 0
        return bool(self._buffer)

    def _more(self) -> bytes:
        if self._ended:
            return b""
        try:
            chunk = self._read()
        except (OSError, *DAMAGED) as error:
            if getattr(error, "errno", None):
                raise
            self._broken, chunk = f"the compressed file is damaged from here on: {error}", b""
        self._ended = not chunk
        return chunk
