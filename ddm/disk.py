"""Atomic writes of files, and locks on folders."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None


def replace(path: Path, write: Callable[[IO[bytes]], object] | bytes | str) -> None:
    """Write a file beside `path`, then rename it. On failure raises OSError and leaves the old file unchanged.

    A writer function writes into memory first, because torch.save raises unclear errors on a full disk.
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
    """A temporary path beside `path` for a file or folder. It is renamed to `path` at the end, and deleted on error."""
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
    """Flush a rename to the disk (no effect on Windows)."""
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

    Raises BlockingIOError if another process holds it, OSError if the path can't be opened. Windows has no lock.
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
