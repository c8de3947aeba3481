"""The cache of networks trained on real images, which runs with the same data and settings share."""

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddm import disk
from ddm.errors import UserError
from ddm.extensions import code_text

LIBRARIES = ("builtins", "torch", "torchvision", "ddm")  # whose layers do not change under their names
NOTE_SECONDS = 10  # of waiting for other processes, before a note


def cache_folder(settings: Any) -> Path:
    """The folder of --network_cache. Raises UserError if it can't be read."""
    folder = Path(settings.network_cache or Path(settings.data_path) / "networks")
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--network_cache {str(folder)[:80]!r} is no folder: name another")
        (folder / "network").exists()
    except OSError as error:
        raise UserError(f"--network_cache {str(folder)[:80]!r} can't be read: {error.strerror}") from None
    return folder


def key(*parts: Any) -> str:
    """A short digest of all values that determine a network, for its file name."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()


def architecture(net: nn.Module) -> tuple[Any, ...]:
    """The layers, the shapes of all parameters, and the code of the user's layers, if there are any.

    It is part of a key, as a user's network can change under its name.
    """
    kinds = {kind for module in net.modules() for kind in type(module).__mro__}
    kinds = [kind for kind in kinds if kind.__module__.split(".")[0] not in LIBRARIES]
    methods = ((f"{kind.__qualname__}.{name}", f) for kind in kinds for name, f in vars(kind).items())
    code = sorted((name, code_text(f.__code__)) for name, f in methods if hasattr(f, "__code__"))
    return str(net), [tuple(parameter.shape) for parameter in net.parameters()], *([code] if code else [])


def read(path: Path) -> Any:
    """The content of a cached file, or None if it does not exist. Raises UserError if it is damaged."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds of errors
        raise damaged(path, type(error).__name__) from None


def damaged(path: Path, why: str) -> UserError:
    return UserError(f"the network in {str(path)!r} is damaged ({why}): delete it")


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Lock a file that is to be made: yields True, or False if another process is making it."""
    lock, mine = None, True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = disk.Lock(path.with_suffix(".lock"))
    except BlockingIOError:
        mine = False
    except OSError:  # no lock is possible: two processes may make the same file, with equal content
        pass
    try:
        yield mine
    finally:
        if lock is not None:
            lock.close()


def made_by_all(
    paths: dict[int, Path], make: Callable[[list[int]], list[Any] | None], most: int
) -> Iterator[tuple[int, Any]]:
    """Make files together with the other processes that lack them: yields each number with its content.

    `make` returns the contents for up to `most` numbers, or None if these are too many; then half as many are next.
    """
    missing, waited = list(paths), 0
    while missing:
        with contextlib.ExitStack() as claims:
            done, mine = {}, []
            for number in missing:
                free = claims.enter_context(claimed(paths[number]))
                content = read(paths[number])
                if content is not None:
                    done[number] = content
                elif free:
                    mine.append(number)
                if len(mine) == most:
                    break
            made = make(mine) if mine else []
            if made is None:
                most = len(mine) // 2
                continue
            for number, content in zip(mine, made, strict=True):
                store(paths[number], content)
                done[number] = content
        yield from done.items()
        missing = [number for number in missing if number not in done]
        if not done and not mine:
            time.sleep(1)  # other processes make the rest
            waited += 1
            if waited == NOTE_SECONDS:
                where = paths[missing[0]].with_suffix(".lock")
                print(f"note: waiting for the process that trains this network and holds {where}", file=sys.stderr)


def store(path: Path, content: Any) -> None:
    """Write a file of the cache; print a warning if this fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.save(path, content)
    except OSError as error:
        text = f"a trained network can't be saved in {str(path.parent)!r} ({error.strerror}); see --network_cache"
        print(f"warning: {text}", file=sys.stderr)
