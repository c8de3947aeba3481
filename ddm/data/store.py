"""A store: a prepared data set on disk, as memory-mapped uint8 arrays and a description.

    x_train.npy  x_test.npy     uint8 [N, C, H, W]
    y_train.npy  y_test.npy     int64 [N]
    store.json                  class names, mean and std, digest, and how the store was made

A `Writer` appends to a store and resumes after an interruption. `Mapped` reads images without loading all of them.
"""

import contextlib
import hashlib
import io
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddm import disk
from ddm.errors import UserError

FORMAT = 1
SUFFIX = ".store"
KEPT_BYTES = 2**27  # mapped bytes that may stay in this process after reading; the system's cache is separate
NEEDED = {"format", "name", "class_names", "mean", "std", "digest", "counts", "shape"}


class Mapped:
    """The images of a .npy file [N, C, H, W], read when indexed; used like a uint8 tensor on the CPU.

    Indices are an int, a slice or a tensor of any shape. `subset` selects images without reading them.
    """

    device = torch.device("cpu")
    dtype = torch.uint8

    def __init__(self, path: Path, array: np.ndarray | None = None, rows: Tensor | None = None):
        self.path, self.rows = path, rows
        self.array = np.load(path, mmap_mode="r") if array is None else array
        self._unreleased = 0

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self), *self.array.shape[1:]])

    @property
    def nbytes(self) -> int:
        return len(self) * int(np.prod(self.array.shape[1:]))

    def subset(self, rows: Tensor) -> "Mapped":
        """The images at some rows [n], without reading them."""
        return Mapped(self.path, self.array, rows if self.rows is None else self.rows[rows])

    def __getitem__(self, key: int | slice | Tensor) -> Tensor:
        if isinstance(key, slice):
            first, last, step = key.indices(len(self))
            if step < 0:
                raise ValueError("the step of a slice must be greater than 0")  # as for a tensor
            key = torch.arange(first, max(first, last), step)
        elif isinstance(key, int):
            key = torch.tensor(range(len(self))[key])  # raises IndexError, which ends a loop
        rows = key if self.rows is None else self.rows[key]
        images = torch.from_numpy(np.ascontiguousarray(self.array[rows.flatten().numpy()]))
        self._release(images.nbytes)
        return images.view(*rows.shape, *self.array.shape[1:])

    def _release(self, nbytes: int) -> None:
        """Release the pages that were read; otherwise the process would grow to the size of the file."""
        self._unreleased += nbytes
        mapped = getattr(self.array, "_mmap", None)
        if mapped is not None and self._unreleased > KEPT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
            self._unreleased = 0

    def to(self, device: str | torch.device, room: int | None = None) -> "Mapped | Tensor":
        """All images on an accelerator, if they fit into `room` bytes; else this object."""
        if torch.device(device).type == "cpu" or room is None or self.nbytes > room:
            return self
        parts = [self[first : first + 4096].to(device) for first in range(0, len(self), 4096)]
        return torch.cat(parts)


def is_store(path: Path) -> bool:
    return os.path.isfile(path / "store.json")  # False also for a path that is too long


def read(path: Path) -> tuple[dict, dict[str, Any]]:
    """Read store.json and the arrays of a store, images as `Mapped`, labels as tensors. Raises UserError if damaged."""
    try:
        metadata = json.loads((path / "store.json").read_text())
        missing = NEEDED - metadata.keys()
        if missing or metadata["format"] != FORMAT:
            raise ValueError(f"no {', '.join(sorted(missing))}" if missing else f"its format is {metadata['format']}")
        if (
            set(metadata["counts"]) != {"train", "test"}
            or not len(metadata["mean"]) == len(metadata["std"]) == metadata["shape"][0]
        ):
            raise ValueError("its counts, mean or std are inconsistent")
        arrays: dict[str, Any] = {}
        for split, count in metadata["counts"].items():
            arrays[f"x_{split}"] = Mapped(path / f"x_{split}.npy")
            arrays[f"y_{split}"] = torch.from_numpy(np.load(path / f"y_{split}.npy").astype(np.int64))
            x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
            if not len(x) == len(y) == count or x.array.dtype != np.uint8 or x.array.ndim != 4:
                raise ValueError(f"{split} has {len(x)} images and {len(y)} labels, {count} expected")
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a valid store ({str(error)[:100]}): delete it and prepare it again") from None
    return metadata, arrays


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The .npy header of a uint8 array. Its length does not depend on the number of images, as numpy pads it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def pixel_sums(images: np.ndarray) -> np.ndarray:
    """For each channel of images uint8 [n, C, H, W], the sum of its pixels and of their squares: int64 [2, C]."""
    # Counts of the 256 values: sums of the pixels would need them as 64-bit numbers.
    counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in images.swapaxes(0, 1)])
    values = np.arange(256)
    return np.stack([counts @ values, counts @ values**2])


def mean_and_std(sums: Sequence[int], squares: Sequence[int], n: int) -> tuple[list[float], list[float]]:
    """Each channel's mean and standard deviation in [0, 1], from sums over its n pixels (see `pixel_sums`)."""
    mean = [s / (n * 255) for s in sums]
    spread = [q * n - s * s for s, q in zip(sums, squares, strict=True)]  # exact: Python's integers do not overflow
    return mean, [value**0.5 / (n * 255) for value in spread]


def partial(path: Path) -> Path:
    """The folder of a store that is not complete."""
    return path.with_name(path.name + ".partial")


class Writer:
    """Writes a store part by part in `<path>.partial`, which is renamed to `path` when complete.

    The state is saved after every part; a Writer with the same `recipe` resumes after the last part. The store is
    locked until `close`. Raises UserError if another process has the lock.
    """

    def __init__(self, path: Path, recipe: dict):
        self.path, self.partial = path, partial(path)
        self.recipe, self.fresh = recipe, True
        self.state: dict[str, Any] = {"recipe": recipe, "splits": {}}
        if path.exists() and (not path.is_dir() or any(path.iterdir())):  # it could not be replaced at the end
            raise UserError(f"{path} exists and is no store: delete it, or name another place")
        self.partial.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = disk.Lock(self.partial / "lock")
        except BlockingIOError:
            raise UserError(f"another process is writing {path}: wait for it") from None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads((self.partial / "state.json").read_text())
            if state["recipe"] == json.loads(json.dumps(recipe)):
                self.state, self.fresh = state, False

    def close(self) -> None:
        self._lock.close()

    def split(self, name: str) -> dict:
        """The state of a split: sources consumed, rows written, sums of pixels, damaged sources, part digests."""
        blank = {"consumed": 0, "rows": 0, "shape": None, "sum": [], "squares": [], "damaged": [], "digests": []}
        return self.state["splits"].setdefault(name, blank)

    def append(self, name: str, images: np.ndarray, consumed: int, damaged: list) -> None:
        """Append images uint8 [n, C, H, W], decoded from the next `consumed` sources; `damaged` lists skipped ones."""
        split, file_path = self.split(name), self.partial / f"x_{name}.npy"
        shape = images.shape[1:]
        if len(images) and split["shape"] is None:
            split["shape"], split["sum"], split["squares"] = list(shape), [0] * shape[0], [0] * shape[0]
        if len(images):
            start = len(npy_header((split["rows"], *shape)))
            images = np.ascontiguousarray(images)
            with open(file_path, "r+b" if file_path.exists() else "w+b") as file:
                file.seek(start + split["rows"] * images[0].nbytes)
                file.truncate()  # remove the rest of an incomplete part
                file.write(images)
                file.seek(0)
                file.write(npy_header((split["rows"] + len(images), *shape)))
                file.flush()
                os.fsync(file.fileno())
            sums = pixel_sums(images)
            split["sum"], split["squares"] = np.add([split["sum"], split["squares"]], sums).tolist()
            split["digests"].append(hashlib.blake2b(images, digest_size=16).hexdigest())
        split["rows"] += len(images)
        split["damaged"] += damaged
        split["consumed"] += consumed
        disk.replace(self.partial / "state.json", json.dumps(self.state))

    def finish(self, labels: dict[str, np.ndarray], metadata: dict) -> dict:
        """Write labels and store.json and rename the store to `path`; return the content of store.json."""
        splits = self.state["splits"]
        sums = splits["train"]
        mean, std = mean_and_std(sums["sum"], sums["squares"], sums["rows"] * int(np.prod(sums["shape"][1:])))
        digest = hashlib.blake2b(repr(metadata["class_names"]).encode(), digest_size=16)
        for name, y in labels.items():
            np.save(self.partial / f"y_{name}.npy", y.astype(np.int64))
            digest.update("".join(splits[name]["digests"]).encode() + y.astype(np.int64).tobytes())
        record = {
            "format": FORMAT,
            **metadata,
            "shape": sums["shape"],
            "counts": {name: splits[name]["rows"] for name in labels},
            "measured_mean": mean,
            "measured_std": std,
            "mean": metadata.get("mean") or mean,
            "std": metadata.get("std") or std,
            "damaged": {name: splits[name]["damaged"] for name in labels},
            "digest": digest.hexdigest(),
            "recipe": self.recipe,
        }
        (self.partial / "store.json").write_text(json.dumps(record, indent=2) + "\n")
        (self.partial / "lock").unlink(missing_ok=True)  # Windows has no lock
        os.replace(self.partial, self.path)
        (self.path / "state.json").unlink()
        return record
