"""Streams of bytes below the messages: files, gzip and zstd, with their damage noted.

Every layer answers ``read(size)`` with at most `size` bytes and ``b""`` at its end, and never
holds more than a window of the data, whatever the compression ratio. Damage inside a layer
ends up in a `Damage` list and costs only what it touches: reading goes on at the next frame.
"""

import hashlib
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP_MAGIC: Final = b"\x1f\x8b\x08"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
PIECE: Final = 1 << 18
"""Bytes taken from the layer below at a time."""

MAX_WINDOW_LOG: Final = 27
"""Largest zstd window, 128 MB: what ``zstd -d`` itself accepts without being asked."""

_EXCERPT: Final = 80
_MAX_BROKEN: Final = 1_000
"""Broken members in one source after which it is no damage but another kind of file."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that could not be read.

    Parameters
    ----------
    offset : int
        Where they stand in the source, after decompression.
    reason, excerpt : str
        What is wrong, and the bytes' beginning.
    line : int, optional
        Line number, where the form has lines.
    message : bool
        Whether this stands for a message that was lost (and counts as rejected).
    """

    offset: int
    reason: str
    excerpt: str = ""
    line: int | None = None
    message: bool = False


def excerpt(data: bytes) -> str:
    """Return the beginning of some bytes as printable text."""
    text = bytes(data[:_EXCERPT]).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def storable(text: str) -> str:
    """Return text that every table can hold: halves of surrogate pairs are written out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class Stream(Protocol):
    """Anything with ``read``."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end."""
        ...


@dataclass
class HashedFile:
    """The lowest layer: counts and hashes what passes.

    Parameters
    ----------
    file : BinaryIO
        Open for reading.
    limit : int, optional
        Bytes after which to stop.
    hashed : bool
        Whether anybody wants the digest.
    """

    file: BinaryIO
    limit: int | None = None
    hashed: bool = True
    n_bytes: int = 0
    failure: str | None = None
    _hash: Any = field(default_factory=hashlib.sha256)

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; a device error ends the stream and is kept."""
        if self.limit is not None:
            size = min(size, self.limit - self.n_bytes)
        if size <= 0 or self.failure:
            return b""
        try:
            data = self.file.read(size)
        except OSError as error:
            self.failure = error.strerror or str(error)
            return b""
        self.n_bytes += len(data)
        if self.hashed:
            self._hash.update(data)
        return data

    def drain(self) -> None:
        """Read to the end, so that the hash covers the whole source."""
        while self.read(PIECE):
            pass

    @property
    def sha256(self) -> str:
        """Digest of what was read."""
        return str(self._hash.hexdigest())


class Peeked:
    """A stream whose beginning was looked at and put back."""

    def __init__(self, stream: Stream, size: int) -> None:
        pieces: list[bytes] = []
        missing = size
        while missing > 0 and (piece := stream.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        self.head = b"".join(pieces)
        self.complete = missing > 0
        self._stream = stream
        self._taken = 0

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, the looked-at ones first."""
        if self._taken < len(self.head):
            piece = self.head[self._taken : self._taken + size]
            self._taken += len(piece)
            return piece
        return self._stream.read(size)


class Decompressed:
    """Any number of compressed members laid end to end, decoded as one stream.

    Parameters
    ----------
    stream : Stream
        Compressed bytes.
    name : {"gzip", "zstd"}
        Compression.
    damages : list of Damage
        Takes what is broken: a cut member keeps its decoded beginning, a broken one is
        skipped up to the next member, bytes behind the last member are named.
    """

    def __init__(self, stream: Stream, name: str, damages: list[Damage]) -> None:
        self._stream = stream
        self._name = name
        self._damages = damages
        self._magic = GZIP_MAGIC if name == "gzip" else ZSTD_MAGIC
        self._member: _Member | None = None
        self._pending = b""
        self._compressed = 0
        self._decoded = 0
        self._n_broken = 0
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Return at most `size` decoded bytes."""
        while not self._ended:
            if self._member is None and not self._open():
                break
            member = self._member
            assert member is not None
            try:
                piece = member.decode(self._pending, size)
            except (zlib.error, zstd.ZstdError, EOFError) as error:
                self._broken(str(error))
                continue
            self._pending = b""
            if member.done:
                self._pending, self._member = member.rest, None
            elif not piece and member.hungry:
                self._feed(member)
            if piece:
                self._decoded += len(piece)
                return piece
        return b""

    def _feed(self, member: "_Member") -> None:
        self._pending = self._take()
        if not self._pending:
            self._note(f"truncated {self._name}: the stream ends inside a member")
            self._ended = True

    def _take(self) -> bytes:
        data = self._stream.read(PIECE)
        self._compressed += len(data)
        return data

    def _note(self, reason: str, data: bytes = b"") -> None:
        place = self._compressed - len(data)
        self._damages.append(
            Damage(self._decoded, f"{reason} (at compressed byte {place})", excerpt(data))
        )

    def _open(self) -> bool:
        while len(self._pending) < 18 and (more := self._take()):
            self._pending += more
        if not self._pending:
            self._ended = True
        elif not self._pending.strip(b"\0"):
            self._skip_zeros()
        elif self._pending.startswith(self._magic) or self._skippable(self._pending):
            self._member = _MEMBERS[self._name]()
        else:
            self._note(f"bytes behind a {self._name} member are no further member", self._pending)
            self._resynchronise()
        return self._member is not None

    def _skippable(self, data: bytes) -> bool:
        return self._name == "zstd" and data[1:4] == b"\x2a\x4d\x18" and data[0] >> 4 == 5

    def _skip_zeros(self) -> None:
        """Pass over padding, as tape and disk images leave it behind the last member."""
        count = len(self._pending)
        while (data := self._take()) and not data.strip(b"\0"):
            count += len(data)
        self._pending = data
        self._note(f"{count} zero bytes behind a {self._name} member")
        if not data:
            self._ended = True
        else:
            self._resynchronise()

    def _broken(self, error: str) -> None:
        self._n_broken += 1
        if self._n_broken > _MAX_BROKEN:
            self._note(f"more than {_MAX_BROKEN} broken members: the rest is not read")
            self._pending, self._ended, self._member = b"", True, None
            return
        self._note(f"broken {self._name} member: {error}", self._pending)
        self._pending = self._pending[1:]
        self._resynchronise()

    def _resynchronise(self) -> None:
        """Go on at the next place that looks like a member."""
        self._member = None
        while True:
            place = self._pending.find(self._magic)
            if place >= 0:
                self._pending = self._pending[place:]
                self._member = _MEMBERS[self._name]()
                return
            more = self._take()
            if not more:
                self._pending, self._ended = b"", True
                return
            self._pending = self._pending[-len(self._magic) :] + more


class _Member(Protocol):
    """One gzip member or zstd frame."""

    def decode(self, data: bytes, size: int) -> bytes: ...
    @property
    def done(self) -> bool: ...
    @property
    def hungry(self) -> bool: ...
    @property
    def rest(self) -> bytes: ...


class _GzipMember:
    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    def decode(self, data: bytes, size: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, size)

    @property
    def done(self) -> bool:
        return self._decoder.eof

    @property
    def hungry(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def rest(self) -> bytes:
        return self._decoder.unused_data


class _ZstdMember:
    def __init__(self) -> None:
        self._decoder = zstd.ZstdDecompressor(options=zstd_options())

    def decode(self, data: bytes, size: int) -> bytes:
        return self._decoder.decompress(data, size)

    @property
    def done(self) -> bool:
        return self._decoder.eof

    @property
    def hungry(self) -> bool:
        return self._decoder.needs_input

    @property
    def rest(self) -> bytes:
        return self._decoder.unused_data


_MEMBERS: Final[dict[str, Callable[[], _Member]]] = {"gzip": _GzipMember, "zstd": _ZstdMember}


def zstd_options() -> dict[int, int]:
    """Return decoder options that bound the window a hostile frame may ask for."""
    return {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}


def decode_frame(data: bytes, *, max_bytes: int) -> tuple[bytes, str | None]:
    """Decode one zstd frame that was compressed on its own.

    Parameters
    ----------
    data : bytes
        The frame.
    max_bytes : int
        Most bytes to decode.

    Returns
    -------
    decoded : bytes
        What could be decoded.
    problem : str or None
        Why it is not the whole.

    Raises
    ------
    Nothing: a broken frame is told in `problem`.
    """
    decoder = zstd.ZstdDecompressor(options=zstd_options())
    pieces: list[bytes] = []
    size = 0
    try:
        while not decoder.eof:
            piece = decoder.decompress(data, min(PIECE * 4, max_bytes + 1 - size))
            data = b""
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                return b"", f"zstd frame of more than {max_bytes} bytes"
            if not piece and decoder.needs_input:
                return b"".join(pieces), "truncated zstd frame"
    except zstd.ZstdError as error:
        return b"".join(pieces), f"broken zstd frame: {error}"
    if decoder.unused_data:
        return b"".join(pieces), f"{len(decoder.unused_data)} bytes behind a zstd frame"
    return b"".join(pieces), None
