"""Datasets become uint8 tensors once, and are normalised on the device when used.

A data set is one row of `DATASETS`: its shape, its published normalisation constants and how to read it.
`<data_path>/<NAME>.npz`, where it exists, is used instead of torchvision's download.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from errors import UserError, lookup
from rng import to_device


class Arrays(NamedTuple):
    """A data set as read: images uint8 [N, H, W, C] or [N, H, W], labels [N] or [N, 1], class names or None."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: list[str] | None = None


@dataclass(frozen=True)
class ImageData:
    """A data set on one device: images uint8 [N, C, H, W], labels int64 [N], constants for pixels in [0, 1]."""

    name: str
    class_names: list[str]
    mean: list[float]
    std: list[float]
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    constants: Tensor = field(repr=False)  # mean and std as [2, C, 1, 1], where the images are
    indices: list[Tensor] = field(repr=False)  # of the training images of each class, on the CPU

    @property
    def channel(self) -> int:
        return self.x_train.shape[1]

    @property
    def im_size(self) -> tuple[int, int]:
        return tuple(self.x_train.shape[2:])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def to(self, device: str | torch.device) -> "ImageData":
        moved = {
            name: getattr(self, name).to(device) for name in ("x_train", "y_train", "x_test", "y_test", "constants")
        }
        return replace(self, **moved)

    def with_validation(self, seed: int) -> "ImageData":
        """The same data with a tenth of every class's training images held out, and these in the place of the test set.

        For choosing settings without a look at the test images; the same seed holds out the same images. A class
        gives one image at least. Raises UserError where a class has not two.
        """
        least = min(len(own) for own in self.indices)
        if least < 2:
            raise UserError(f"--eval_split val: a class of {self.name} has {least} training image(s), needs 2 or more")
        generator = torch.Generator("cpu").manual_seed(seed)
        order = [own[torch.randperm(len(own), generator=generator)] for own in self.indices]
        sizes = [max(1, len(own) // 10) for own in order]
        held = torch.cat([own[:size] for own, size in zip(order, sizes, strict=True)])
        kept = torch.cat([own[size:] for own, size in zip(order, sizes, strict=True)])
        x, y = self.x_train, self.y_train
        indices = [torch.nonzero(y[kept] == c).flatten() for c in range(self.num_classes)]
        return replace(self, x_train=x[kept], y_train=y[kept], x_test=x[held], y_test=y[held], indices=indices)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [..., C, H, W] to the float32 that networks see: (x / 255 - mean) / std."""
        mean, std = self.constants
        return (images.float() / 255 - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`, to floats in [0, 1], clipped."""
        mean, std = self.constants
        return (images * std + mean).clamp(0, 1)

    def digest(self) -> str:
        """Of all images, labels and class names, to know them again."""
        found = hashlib.blake2b(repr(self.class_names).encode(), digest_size=16)
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            found.update(tensor.contiguous().numpy())
        return found.hexdigest()

    def draw(self, cls: int, n: int, generator: torch.Generator) -> Tensor:
        """Indices [n] of training images of a class, without replacement.

        A class smaller than n is gone through again in a new order, so that each of its images comes
        n // size or n // size + 1 times.
        """
        own = self.indices[cls]
        rounds = -(-n // len(own))
        order = torch.cat([torch.randperm(len(own), generator=generator) for _ in range(rounds)])
        return own[order[:n]]

    def batch(self, indices: Tensor) -> Tensor:
        """The training images at indices [...] (on the CPU), normalised on the device: [..., C, H, W]."""
        return self.normalise(self.x_train[to_device(indices, self.x_train.device)])


# --- reading ---------------------------------------------------------------------------------------------


def _digits(data_path: Path) -> Arrays:
    """scikit-learn's 1,797 digits; a fixed fifth of every class is the test set (there is no official split)."""
    from sklearn.datasets import load_digits  # imported here: it takes a second, and only Digits needs it
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)  # 17 grey levels
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return Arrays(x_train, y_train, x_test, y_test)


def _torchvision(name: str, data_path: Path, train: dict, test: dict) -> Arrays:
    """Let torchvision find, or download, and verify both splits."""
    import torchvision.datasets as tv  # imported here: it takes two seconds, and a run on .npz files needs none of it

    cls = getattr(tv, name)
    sets = [cls(str(data_path), download=True, **split) for split in (train, test)]
    (x_train, y_train), (x_test, y_test) = (
        (np.asarray(s.data), np.asarray(getattr(s, "targets", getattr(s, "labels", None)))) for s in sets
    )
    if name == "SVHN":  # the only one that comes channels first
        x_train, x_test = x_train.transpose(0, 2, 3, 1), x_test.transpose(0, 2, 3, 1)
    return Arrays(x_train, y_train, x_test, y_test)


_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}
_DIGIT_NAMES = [str(digit) for digit in range(10)]
_FASHION_NAMES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]
_CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()  # noqa: SIM905 - a list would take a hundred lines


class Spec(NamedTuple):
    """A row of DATASETS: image shape, class names, published constants (pixels in [0, 1]), reader."""

    shape: tuple[int, int, int]  # [C, H, W]
    class_names: list[str]
    mean: list[float]
    std: list[float]
    read: Callable[[Path], Arrays]


DATASETS: dict[str, Spec] = {
    # Digits' constants are those of its training pixels; the others are the published ones.
    "Digits": Spec((1, 8, 8), _DIGIT_NAMES, [0.3054], [0.3760], _digits),
    "MNIST": Spec((1, 28, 28), _DIGIT_NAMES, [0.1307], [0.3081], partial(_torchvision, "MNIST", **_BY_FLAG)),
    "FashionMNIST": Spec(
        (1, 28, 28),
        _FASHION_NAMES,
        [0.2861],
        [0.3530],
        partial(_torchvision, "FashionMNIST", **_BY_FLAG),
    ),
    "SVHN": Spec(
        (3, 32, 32),
        _DIGIT_NAMES,
        [0.4377, 0.4438, 0.4728],
        [0.1980, 0.2010, 0.1970],
        partial(_torchvision, "SVHN", **_BY_NAME),
    ),
    "CIFAR10": Spec(
        (3, 32, 32),
        _CIFAR10_NAMES,
        [0.4914, 0.4822, 0.4465],
        [0.2023, 0.1994, 0.2010],
        partial(_torchvision, "CIFAR10", **_BY_FLAG),
    ),
    "CIFAR100": Spec(
        (3, 32, 32),
        _CIFAR100_NAMES,
        [0.5071, 0.4866, 0.4409],
        [0.2673, 0.2564, 0.2762],
        partial(_torchvision, "CIFAR100", **_BY_FLAG),
    ),
}


def load(name: str, data_path: str | Path) -> ImageData:
    """Read a data set into CPU tensors.

    `<data_path>/<name>.npz` (x_train uint8 [N, H, W, C] or [N, H, W], y_train, x_test, y_test, optional classes)
    comes first, then torchvision's own files there, then a download. Raises UserError when there is neither data
    nor network, and for files that can't be read or don't have the data set's shape.
    """
    spec, data_path = lookup(DATASETS, name, "dataset"), Path(data_path)
    npz = data_path / f"{name}.npz"
    try:
        has_npz = npz.is_file()
    except OSError as error:
        raise UserError(f"--data_path {str(data_path)[:80]!r} can't be read: {error.strerror}") from None
    if has_npz:
        return _tensors(name, spec, _read_npz(npz), str(npz))
    return _tensors(name, spec, _read_or_download(name, spec, data_path), name)


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file if key in Arrays._fields}
    except Exception as error:  # a damaged archive raises whatever its damage hits: zlib, tokenize, MemoryError, ...
        raise UserError(f"{path}: not a readable .npz file ({_reason(error)})") from None
    missing = [key for key in Arrays._fields[:4] if not isinstance(arrays.get(key), np.ndarray)]
    if missing:
        raise UserError(f"{path}: no array {', '.join(missing)}; it has {', '.join(arrays) or 'none of them'}")
    classes = arrays.pop("classes", None)
    if classes is not None:
        names = np.atleast_1d(classes).tolist()
        classes = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
    return Arrays(**arrays, classes=classes)


def _read_or_download(name: str, spec: Spec, data_path: Path) -> Arrays:
    before = _folders(data_path)
    try:
        return spec.read(data_path)
    except Exception as error:  # no network, no permission, or whatever damaged files make a reader raise
        for folder in sorted(_folders(data_path) - before, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()  # refuses one with files in it
        where = repr(str(data_path))
        if isinstance(error, OSError) or "download" in str(error):  # URLError is an OSError
            raise UserError(
                f"no {name} in {where}, and downloading it failed ({_reason(error)}): put {name}.npz (x_train, "
                "y_train, x_test, y_test) or torchvision's files there, or name their folder with --data_path"
            ) from None
        raise UserError(
            f"the {name} files in {where} can't be read ({_reason(error)}): delete them, to have them downloaded again"
        ) from None


def _folders(path: Path) -> set[Path]:
    """Those that a download may add: the folder, its parents, and two levels below."""
    return {*path.glob("*/*/"), *path.glob("*/"), *(folder for folder in (path, *path.parents) if folder.is_dir())}


def _reason(error: Exception) -> str:
    """The last line of an error's text, which in torchvision's is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:100] if lines else type(error).__name__


def _tensors(name: str, spec: Spec, arrays: Arrays, source: str) -> ImageData:
    """Check the arrays against the table and turn them into tensors."""
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
    indices = [torch.nonzero(splits["y_train"] == c).flatten() for c in range(num_classes)]
    constants = torch.tensor([spec.mean, spec.std])[:, :, None, None]
    return ImageData(name, list(class_names), spec.mean, spec.std, **splits, constants=constants, indices=indices)


# --- batches ---------------------------------------------------------------------------------------------


class Batches:
    """Iterate over (images, labels) in batches cut from tensors, on the device where they are.

    With `shuffle`, every pass has a new order, drawn from `generator` (CPU; None is torch's global one).
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
    ):
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shuffle, self.generator = shuffle, generator

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.images, self.labels
        if self.shuffle:
            order = to_device(torch.randperm(len(images), generator=self.generator, device="cpu"), images.device)
            images, labels = images[order], labels[order]
        yield from zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)


# --- what DC/DM-derived code imports ---------------------------------------------------------------------


class TensorDataset(Dataset):
    """Images [N, C, H, W] and labels [N] as a torch Dataset (the published name)."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images = images.detach().float()
        self.labels = labels.detach()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __len__(self) -> int:
        return self.images.shape[0]


class NormalisedDataset(Dataset):
    """A split of an ImageData as a torch Dataset of (normalised image [C, H, W], int label)."""

    def __init__(self, data: ImageData, images: Tensor, labels: Tensor):
        self.data, self.images, self.labels = data, images, labels
        self.classes, self.targets = data.class_names, labels.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data.normalise(self.images[index]), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def get_dataset(dataset: str, data_path: str) -> tuple:
    """The published 9-tuple: channel, im_size, num_classes, class_names, mean, std, dst_train, dst_test, testloader."""
    data = load(dataset, data_path)
    dst_train = NormalisedDataset(data, data.x_train, data.y_train)
    dst_test = NormalisedDataset(data, data.x_test, data.y_test)
    testloader = DataLoader(dst_test, batch_size=256, shuffle=False, num_workers=0)
    return (
        data.channel,
        data.im_size,
        data.num_classes,
        data.class_names,
        data.mean,
        data.std,
        dst_train,
        dst_test,
        testloader,
    )
