"""Where a store lies: a folder, or a prefix of an object store, behind the same few operations.

What is put on a shelf is whole or not there, survives a power cut, and never changes. One
operation decides between writers: `Shelf.create`, which fails if the name is taken. On a folder
it is a hard link, on an object store a conditional put; neither needs a rename or a lock.
"""

import contextlib
import hashlib
import io
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tracelab.exceptions import StoreError

_URL: Final = re.compile(r"(?i)[a-z][a-z0-9+.-]+://")

_CLIENT: Final[Any] = {
    "timeout": "60s",
    "connect_timeout": "10s",
    "allow_http": True,  # only an endpoint that the environment names as such is plain HTTP
}
_RETRY: Final[Any] = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
"""A request that fails by the network or the server is made again, for a minute at most."""


class Taken(Exception):  # noqa: N818 - never leaves the store
    """Another writer has put something under the name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file on a shelf: its name, bytes, and when it was written, in seconds of the epoch."""

    name: str
    size: int
    modified: float


class View(ABC):
    """Bytes of a file, of which some pieces may not have been fetched."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the bytes of the whole file."""

    @abstractmethod
    def __getitem__(self, piece: slice) -> Any:
        """Return a fetched piece, as a buffer."""

    @abstractmethod
    def source(self) -> Any:
        """Return what a Parquet reader can be opened on."""


class Shelf(ABC):
    """A place of immutable files, named by relative paths with forward slashes.

    Every operation raises `OSError` if the place does not answer, refuses, or is full.
    """

    url: str
    """What it was named."""

    place: str
    """What any process opens it by again."""

    def __str__(self) -> str:
        return self.url

    @abstractmethod
    def prepare(self, *folders: str) -> None:
        """Make the place itself, and folders in it, if they are not there."""

    @abstractmethod
    def put(self, name: str, data: Any) -> None:
        """Write a file under a name that nobody else uses; when this returns it is durable."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Write a file unless the name is taken; when this returns it is durable.

        Raises
        ------
        Taken
            If other bytes stand under the name.
        """

    @abstractmethod
    def read(self, name: str) -> Any:
        """Return a whole file as a buffer; `FileNotFoundError` if it is not there."""

    @abstractmethod
    def view(self, name: str, size: int, pieces: Sequence[tuple[int, int]]) -> View:
        """Return pieces (start, end) of a file of a known size."""

    @abstractmethod
    def entries(self, folder: str) -> Iterator[Entry]:
        """List a folder, not what lies deeper; nothing if it is not there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        try:
            self.read(name)
        except FileNotFoundError:
            return False
        return True

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a whole file."""
        return hashlib.sha256(self.read(name)).hexdigest()


class Buffered(View):
    """A file in one buffer; what was not fetched of it is there, and means nothing.

    Parameters
    ----------
    data : buffer
        As long as the file.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._view = memoryview(data)

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, piece: slice) -> Any:
        return self._view[piece]

    def source(self) -> Any:
        """Return a reader of it all."""
        return pa.BufferReader(self._data)


class Folder(Shelf):
    """A folder of this machine's file systems.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)
        self.place = str(path.absolute())

    def prepare(self, *folders: str) -> None:
        """Make the folders, and sync the folders above them."""
        above = [each for each in reversed(self.path.parents) if not each.is_dir()]
        for folder in (*above, self.path, *(self.path / each for each in folders)):
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                sync_folder(folder.parent)

    def put(self, name: str, data: Any) -> None:
        """Write, sync the file, sync its folder."""
        path = self.path / name
        try:
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def create(self, name: str, data: bytes) -> None:
        """Write aside, sync, and put in place by a hard link."""
        target = self.path / name
        aside = target.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            with aside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(aside, target)
            except FileExistsError:
                raise Taken(str(target)) from None
            sync_folder(target.parent)
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """Return the file's bytes."""
        return (self.path / name).read_bytes()

    def view(self, name: str, size: int, pieces: Sequence[tuple[int, int]]) -> View:
        """Read the pieces, and no more: ahead of them lies what another bucket needs, or nobody.

        Mapping the file would fetch megabytes around each piece, again for every bucket where
        memory does not hold the whole store.
        """
        with (self.path / name).open("rb", buffering=0) as file:
            data = pa.allocate_buffer(os.fstat(file.fileno()).st_size)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for start, end in pieces:
                _read_into(file, start, memoryview(data)[start:end])
        return Buffered(data)

    def entries(self, folder: str) -> Iterator[Entry]:
        """List the files of a folder."""
        try:
            found = sorted(os.scandir(self.path / folder), key=lambda each: each.name)
        except FileNotFoundError:
            return
        for each in found:
            with contextlib.suppress(FileNotFoundError):
                if each.is_file():
                    state = each.stat()
                    yield Entry(f"{folder}/{each.name}", state.st_size, state.st_mtime)

    def remove(self, name: str) -> None:
        """Unlink the file."""
        (self.path / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Ask the file system, without reading."""
        return (self.path / name).is_file()

    def digest(self, name: str) -> str:
        """Hash the file in pieces."""
        with (self.path / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _read_into(file: io.FileIO, start: int, room: memoryview) -> None:
    """Fill a buffer from a place on; what lies behind the end of the file stays as it is."""
    file.seek(start)
    done = 0
    while done < len(room) and (count := file.readinto(room[done:])):
        done += count


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Pieces(io.RawIOBase, View):
    """Pieces of an object, readable as the file that they are of."""

    def __init__(self, size: int, pieces: Sequence[tuple[int, int]], data: Sequence[Any]) -> None:
        self._size = size
        self._pieces = [
            (start, memoryview(each)) for (start, _), each in zip(pieces, data, strict=True)
        ]
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, piece: slice) -> Any:
        start, end, _ = piece.indices(self._size)
        if start >= end:
            return b""
        for first, data in self._pieces:
            if first <= start and end <= first + len(data):
                return data[start - first : end - first]
        raise OSError(f"bytes {start} to {end} were not fetched")

    def source(self) -> Any:
        return pa.PythonFile(self, mode="r")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        start = self._at
        end = self._size if size is None or size < 0 else min(start + size, self._size)
        data = bytearray(max(end - start, 0))
        # Parquet's reader takes the end of the file in one go: holes in it are zeros.
        for first, piece in self._pieces:
            low, high = max(first, start), min(first + len(piece), end)
            if low < high:
                data[low - start : high - start] = piece[low - first : high - first]
        self._at = end
        return bytes(data)


class Objects(Shelf):
    """A prefix of an object store: S3 and what speaks its language, Google's, Azure's.

    Parameters
    ----------
    url : str
        Such as ``s3://bucket/prefix``. Endpoint, region and credentials come from the
        environment, as the store's own tools read them.
    """

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise StoreError(f"{url} needs obstore; install tracelab[objects]") from error
        self.url = self.place = url.rstrip("/")
        self._api = obstore
        try:
            self._store = from_url(self.url, client_options=_CLIENT, retry_config=_RETRY)
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise StoreError(f"{url} is no object store's URL: {_first_line(error)}") from error

    @contextlib.contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Raise what the operating system would raise for a folder."""
        errors = self._api.exceptions
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.url}/{name} is not there") from error
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise PermissionError(
                f"{self.url} refuses access; check the credentials in the environment"
            ) from error
        except errors.BaseError as error:
            why = _first_line(error)
            # Without credentials in the environment the machine's own are asked for.
            if "/latest/api/token" in why or "credential" in why.lower():
                raise PermissionError(
                    f"{self.url}: no credentials in the environment (AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket), and "
                    "this machine has none of its own"
                ) from error
            raise OSError(f"{self.url} does not answer as it should: {why}") from error

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            with self._asking(name):
                yield
        except FileNotFoundError as error:
            raise OSError(f"{self.url}: there is no such bucket") from error

    def prepare(self, *folders: str) -> None:
        """Do nothing: an object store has no folders."""

    def put(self, name: str, data: Any) -> None:
        """Put the object; an object store says so when it is durable."""
        with self._writing(name):
            self._api.put(self._store, name, io.BytesIO(data))

    def create(self, name: str, data: bytes) -> None:
        """Put the object on condition that there is none."""
        try:
            with self._writing(name):
                self._api.put(self._store, name, data, mode="create", use_multipart=False)
        except OSError as error:
            if not isinstance(error.__cause__, self._api.exceptions.AlreadyExistsError):
                raise
            # A request that was repeated after its answer was lost meets its own bytes.
            if bytes(self.read(name)) != data:
                raise Taken(f"{self.url}/{name}") from None

    def read(self, name: str) -> Any:
        """Get the whole object."""
        with self._asking(name):
            return self._api.get(self._store, name).bytes().to_bytes()

    def view(self, name: str, size: int, pieces: Sequence[tuple[int, int]]) -> View:
        """Get the pieces only, neighbours in one request."""
        starts, ends = [each[0] for each in pieces], [each[1] for each in pieces]
        with self._asking(name):
            data = self._api.get_ranges(self._store, name, starts=starts, ends=ends)
        return _Pieces(size, pieces, data)

    def entries(self, folder: str) -> Iterator[Entry]:
        """List the objects below a prefix."""
        with self._asking(folder):
            for page in self._api.list(self._store, f"{folder}/"):
                for each in page:
                    if "/" not in each["path"].removeprefix(f"{folder}/"):
                        yield Entry(each["path"], each["size"], each["last_modified"].timestamp())

    def remove(self, name: str) -> None:
        """Delete the object."""
        with contextlib.suppress(FileNotFoundError), self._asking(name):
            self._api.delete(self._store, name)

    def has(self, name: str) -> bool:
        """Ask for the object's head."""
        try:
            with self._asking(name):
                self._api.head(self._store, name)
        except FileNotFoundError:
            return False
        return True


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@lru_cache(maxsize=16)
def _open_objects(url: str) -> Objects:
    return Objects(url)


def open_shelf(place: str | os.PathLike[str]) -> Shelf:
    """Open a folder or a prefix of an object store; nothing is made or asked yet.

    Parameters
    ----------
    place : str or Path
        A path, or a URL such as ``s3://bucket/prefix``.

    Returns
    -------
    Shelf
        The place.

    Raises
    ------
    StoreError
        If it is the URL of nothing known, or obstore is not installed.
    """
    text = os.fspath(place)
    if _URL.match(text):
        scheme, _, rest = text.partition("://")
        if scheme.lower() == "file":
            return Folder(Path(rest))
        return _open_objects(text)
    return Folder(Path(text))
