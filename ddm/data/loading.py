"""Loads data sets by name or path.

The name determines the source, in this order: the store `<data_path>/<NAME>.store` that `ddm prepare` writes, the file
`<data_path>/<NAME>.npz`, torchvision's files there, torchvision's download. A path is a store, an .npz file or a folder
of class folders.
"""

import contextlib
import hashlib
import os
import sys
from collections import ChainMap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddm import rng, torchrun
from ddm.data import layouts, store
from ddm.data.catalogue import DATASETS, Arrays, Spec, torchvision_arrays
from ddm.data.checks import split_warnings
from ddm.data.images import ImageData, Normalisation, by_class, subset
from ddm.data.store import Mapped
from ddm.errors import UserError, lookup

NAMES = ChainMap(layouts.PREPARED, DATASETS)


def is_path(name: str) -> bool:
    """Whether --dataset is a path, not one of NAMES."""
    if not name or name in NAMES:
        return False
    return os.sep in name or name.endswith((".npz", store.SUFFIX)) or os.path.exists(name)  # False for a long name


def short_name(name: str) -> str:
    """The name of a data set in file names: for a path, its last part without extension."""
    return Path(os.path.abspath(name)).stem if is_path(name) else name


def check_name(name: str) -> None:
    """Raise UserError with the nearest name, unless --dataset is a path or one of NAMES."""
    if not is_path(name):
        lookup(NAMES, name, "dataset")


def load_split(settings: Any) -> tuple[ImageData, str]:
    """Load the data set of a run, on the CPU, and the digest of its files.

    `settings` inherit DataSettings, HeldOutSettings and SeedSettings. With --eval_split val the test images are a
    seeded tenth of the training images. With --zca all images are whitened. Raises UserError as `load`,
    `ImageData.with_validation` and `ImageData.whitened` do.
    """
    data = load(settings.dataset, settings.data_path, settings.res)
    return split(data, settings.eval_split, settings.zca, settings.seed), data.digest


def split(data: ImageData, eval_split: str, zca: bool, seed: int) -> ImageData:
    """The data that a run uses: with the validation split as test set, whitened, or as they are (see `load_split`)."""
    if eval_split == "val":
        data = data.with_validation(rng.seed_of(seed, 0, 0, -1, "validation split"))
    return data.whitened() if zca else data


def load(name: str, data_path: str | Path, res: int | None = None, download: bool = True) -> ImageData:
    """Load a data set: a name of NAMES, or the path of a store, an .npz file or a folder of class folders.

    An .npz file contains x_train uint8 [N, H, W, C] or [N, H, W], y_train, x_test, y_test and optionally classes. `res`
    is the image side in pixels, for data sets with a choice. A folder is first converted into a store. `download` is
    for data sets of torchvision that are missing. Raises UserError if the data are missing and can't be downloaded, and
    for unreadable files or wrong shapes. Prints the warnings about the data.
    """
    data = _loaded(name, Path(data_path), res, download)
    warn(data)
    return data


def warn(data: ImageData) -> None:
    """Print the warnings about a data set on stderr, on one rank."""
    if torchrun.rank_and_world()[0] == 0:
        for line in data.warning_lines:
            print(line, file=sys.stderr)


def _loaded(name: str, data_path: Path, res: int | None, download: bool) -> ImageData:
    if is_path(name):
        return _user_data(Path(name), data_path, res)
    lookup(NAMES, name, "dataset")
    prepared, requested = layouts.PREPARED.get(name), res
    if prepared is not None:
        res = res or prepared.res
    elif res not in (None, DATASETS[name].shape[1]):
        raise UserError(f"--res {res}: {name} has images of {DATASETS[name].shape[1]} pixels; leave --res out")
    npz = data_path / f"{name}.npz"
    try:
        for path in (layouts.store_path(data_path, name, res), layouts.store_path(data_path, name, None)):
            if store.is_store(path):
                return _stored(name, path, requested)
        has_npz = npz.is_file() and prepared is None
    except OSError as error:
        raise UserError(f"--data_path {str(data_path)[:80]!r} can't be read: {error.strerror}") from None
    if prepared is not None:
        whole = layouts.store_path(data_path, "ImageNet", res)
        if prepared.indices and store.is_store(whole):
            return classes_of(_stored("ImageNet", whole, requested), name, sorted(prepared.indices))
        raise UserError(
            f"no {name} at {res} pixels in {str(data_path)!r}: ddm prepare {name} --source DIR_OR_ARCHIVE "
            f"--res {res} --data_path {data_path} makes it (docs/datasets.md)"
        )
    if has_npz:
        return _tensors(name, DATASETS[name], _read_npz(npz), str(npz))
    return _tensors(name, DATASETS[name], _read_or_download(name, DATASETS[name], data_path, download), name)


def _stored(name: str, path: Path, res: int | None = None) -> ImageData:
    """A data set from its store; the images stay on disk."""
    metadata, arrays = store.read(path)
    if res is not None and metadata["shape"][1:] != [res, res]:
        raise UserError(
            f"{path} has images of {metadata['shape'][2]}x{metadata['shape'][1]} pixels: leave --res {res} out"
        )
    data = _image_data(
        name, metadata["class_names"], metadata["mean"], metadata["std"], arrays, str(path), metadata["digest"]
    )
    return replace(data, warnings=tuple(metadata.get("warnings", ())))


def classes_of(data: ImageData, name: str, classes: list[int]) -> ImageData:
    """Some classes of a data set, labelled in the given order, with a new name."""
    label = torch.full((data.num_classes,), -1)
    label[classes] = torch.arange(len(classes))
    arrays = {}
    for split in ("train", "test"):
        y = label[getattr(data, f"y_{split}")]
        rows = torch.nonzero(y >= 0).flatten()
        arrays |= {f"x_{split}": subset(getattr(data, f"x_{split}"), rows), f"y_{split}": y[rows]}
    digest = hashlib.blake2b(f"{data.digest} {classes}".encode(), digest_size=16).hexdigest()
    names = [data.class_names[c] for c in classes]
    found = _image_data(name, names, data.mean, data.std, arrays, name, digest)
    return replace(found, normalisation=data.normalisation, warnings=data.warnings)


def _user_data(path: Path, data_path: Path, res: int | None) -> ImageData:
    """A user's data: a store, an .npz file, or a folder of class folders; a folder becomes a store in data_path."""
    if not os.path.exists(path):  # False also for a path that is too long
        raise UserError(f"--dataset {str(path)[:80]!r}: there is no such file or folder: check the path")
    name = short_name(str(path))
    if store.is_store(path):
        return _stored(name, path, res)
    if path.is_file():
        data = load_file(path)
        if res is not None and data.im_size != (res, res):
            raise UserError(f"--res {res}: {path} has images of {data.im_size[1]}x{data.im_size[0]}; leave --res out")
        return data
    listing = layouts.folders(path, name)
    where = layouts.store_path(data_path / "own", name, res)  # apart from published data sets
    if store.is_store(where):
        metadata, _ = store.read(where)
        listed = {split: files.digest() for split, files in listing.splits.items()}
        if metadata["recipe"].get("listing") != listed or metadata["recipe"].get("source") != str(path.resolve()):
            raise UserError(
                f"{where} was made from other files than those in {path}, or by another version: delete it, or name "
                "another --data_path"
            )
    else:
        for note in listing.notes:
            print(f"note: {path}: {note}")
        layouts.fill(where, listing, str(path.resolve()), res)
    data = _stored(name, where)
    return replace(data, warnings=tuple(dict.fromkeys([*listing.warnings, *data.warnings])))


def load_file(path: Path, name: str | None = None) -> ImageData:
    """Load an .npz file (see `load`). With `name` its arrays must fit that data set; else shape and constants are read.

    Raises UserError for an unreadable file or wrong arrays.
    """
    arrays = _read_npz(path)
    if name is None:
        return from_arrays(arrays, str(path), short_name(str(path)))
    return _tensors(name, DATASETS[name], arrays, str(path))


def from_arrays(arrays: Arrays, source: str, name: str = "data") -> ImageData:
    """A data set from a user's arrays, with measured constants. Raises UserError that names `source`."""
    return _tensors(name, user_spec(source, arrays), arrays, source)


MOST_CLASSES = 100_000
MEASURED = 512  # images counted at a time; NumPy's mean and std would copy all of them as 64-bit numbers


def user_spec(path: str, arrays: Arrays) -> Spec:
    """The table row for a user's arrays, with constants measured on the training images. Raises UserError."""
    x, y = arrays.x_train, arrays.y_train
    for labels in (y, arrays.y_test):
        good = (
            np.issubdtype(labels.dtype, np.integer)
            and labels.size
            and labels.min() >= 0
            and labels.max() < MOST_CLASSES
        )
        if not good:
            raise UserError(f"{path}: labels must be integers from 0, one for each image, fewer than {MOST_CLASSES}")
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or not x.size:
        raise UserError(f"{path}: x_train is {x.dtype} {list(x.shape)}: uint8 images are needed, [N, H, W, C]")
    x = x[..., None] if x.ndim == 3 else x
    if x.shape[3] not in (1, 3):
        raise UserError(f"{path}: x_train is {list(x.shape)}: channels come last, [N, H, W, C] with C 1 or 3")
    names = arrays.classes or [str(label) for label in range(max(int(y.max()), int(arrays.y_test.max())) + 1)]
    n, h, w, c = x.shape
    parts = [x[first : first + MEASURED].transpose(0, 3, 1, 2) for first in range(0, n, MEASURED)]
    mean, std = store.mean_and_std(*sum(map(store.pixel_sums, parts)).tolist(), n * h * w)
    return Spec((c, h, w), names, mean, std, None)


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file if key in Arrays._fields}
    except Exception as error:  # damaged archives raise many kinds of errors: zlib, tokenize, MemoryError, ...
        raise UserError(f"{path}: not a readable .npz file ({_reason(error)})") from None
    missing = [key for key in Arrays._fields[:4] if not isinstance(arrays.get(key), np.ndarray)]
    if missing:
        raise UserError(f"{path}: no array {', '.join(missing)}; it has {', '.join(arrays) or 'none of them'}")
    classes = arrays.pop("classes", None)
    if classes is not None:
        names = np.atleast_1d(classes).tolist()
        classes = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
    return Arrays(**arrays, classes=classes)


def _read_or_download(name: str, spec: Spec, data_path: Path, download: bool) -> Arrays:
    before, where = _folders(data_path), repr(str(data_path))
    published = getattr(spec.read, "func", None) is torchvision_arrays
    try:
        return Arrays(*(spec.read(data_path, download=download) if published else spec.read(data_path)))
    except UserError:  # raised by a reader that the user registered
        raise
    except Exception as error:  # no network, no permission, or a damaged file, which raises many kinds of errors
        for folder in sorted(_folders(data_path) - before, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails if it contains files
        if not published:
            raise UserError(
                f"reading {name} raises {type(error).__name__} ({_reason(error)}): correct the function that reads it"
            ) from error
        if not download:
            reason = "" if "download" in str(error) else f" that can be read ({_reason(error)})"
            raise UserError(
                f"{where} has no {name}{reason}: name a folder with {name}.npz or torchvision's files"
            ) from None
        if isinstance(error, OSError) or "download" in str(error):  # URLError is an OSError
            raise UserError(
                f"no {name} in {where}, and downloading it failed ({_reason(error)}): put {name}.npz (x_train, "
                "y_train, x_test, y_test) or torchvision's files there, or name their folder with --data_path"
            ) from None
        raise UserError(
            f"the {name} files in {where} can't be read ({_reason(error)}): delete them to download them again"
        ) from None


def _folders(path: Path) -> set[Path]:
    """The folders that a download may add: the folder, its parents, and two levels below."""
    return {*path.glob("*/*/"), *path.glob("*/"), *(folder for folder in (path, *path.parents) if folder.is_dir())}


def _reason(error: Exception) -> str:
    """The last line of an error's text, which is the cause in torchvision's errors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:100] if lines else type(error).__name__


def _tensors(name: str, spec: Spec, arrays: Arrays, source: str) -> ImageData:
    """Check the arrays against the table and convert them to tensors."""
    splits, num_classes = {}, len(spec.class_names)
    for split in ("train", "test"):
        x, y = getattr(arrays, f"x_{split}"), getattr(arrays, f"y_{split}")
        if x.ndim == 3:
            x = x[..., None]
        c, h, w = spec.shape
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (h, w, c):
            raise UserError(f"{source}: x_{split} is {x.dtype} {list(x.shape)}, {name} needs uint8 [N, {h}, {w}, {c}]")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if not np.issubdtype(y.dtype, np.integer) or y.shape != (len(x),):
            raise UserError(f"{source}: y_{split} is {y.dtype} {list(y.shape)}, x_{split} needs integers [{len(x)}]")
        if len(x) == 0:
            raise UserError(f"{source}: x_{split} is empty")
        if y.min() < 0 or y.max() >= num_classes:
            raise UserError(f"{source}: y_{split} has labels {y.min()} to {y.max()}, {name} has 0 to {num_classes - 1}")
        splits[f"x_{split}"] = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        splits[f"y_{split}"] = torch.from_numpy(y.astype(np.int64))
    class_names = arrays.classes or spec.class_names
    if len(class_names) != num_classes:
        raise UserError(f"{source}: {len(class_names)} class names, {name} has {num_classes} classes")
    data = _image_data(name, list(class_names), spec.mean, spec.std, splits, source)
    images = {split: getattr(arrays, f"x_{split}") for split in ("train", "test")}
    return replace(data, warnings=tuple(split_warnings(class_names, images, splits["y_test"])))


def _image_data(
    name: str,
    class_names: list[str],
    mean: list[float],
    std: list[float],
    splits: dict[str, Tensor | Mapped],
    source: str,
    digest: str | None = None,
) -> ImageData:
    for split in ("train", "test"):
        y = splits[f"y_{split}"]
        if not len(y) or y.min() < 0 or y.max() >= len(class_names):
            raise UserError(f"{source}: the {split} set has no images, or labels beyond its {len(class_names)} classes")
    indices = by_class(splits["y_train"], len(class_names))
    std = [max(value, 1e-6) for value in std]  # a constant channel has 0
    return ImageData(name, class_names, Normalisation.of(mean, std), **splits, indices=indices, known_digest=digest)
