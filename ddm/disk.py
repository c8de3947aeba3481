"""Files that a reader never sees half-written, and locks on folders."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has no lock of this kind
    fcntl = None


def replace(path: Path, write: Callable[[IO[bytes]], object] | bytes | str) -> None:
    """Write beside `path`, then rename. Raises OSError and leaves the old file as it was.

    A writer writes into memory first: torch.save to a full disk raises errors that do not say so.
    """
    if callable(write):
        buffer = io.BytesIO()
        write(buffer)
        content = buffer.getbuffer()
    else:
        content = write.encode() if isinstance(write, str) else write
    if path.exists() and not path.is_file():  # /dev/stdout
        path.write_bytes(content)
        return
    with beside(path) as tmp:
        tmp.write_bytes(content)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary place beside `path` for a file or a folder; at the end it becomes `path`, or goes away."""
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another process may write the same file
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        if tmp.is_dir():
            shutil.rmtree(tmp, ignore_errors=True)
        else:
            tmp.unlink(missing_ok=True)


def save(path: Path, content: Any) -> None:
    """`torch.save` through `replace`."""
    import torch  # imported here: this module is used before torch is needed

    replace(path, lambda file: torch.save(content, file))


def sync_folder(path: Path) -> None:
    """Put a rename on the disk, where the system lets a folder be opened (not on Windows)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Lock:
    """An exclusive lock on a folder or file, held until `close` or the end of the process.

    Raises BlockingIOError where another process holds it, OSError where the path can't be opened.
    """

    def __init__(self, path: Path):
        self._handle: int | None = None
        if fcntl is None:
            return
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        self._handle = os.open(path, flags)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
