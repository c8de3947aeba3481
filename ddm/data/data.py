"""Datasets become uint8 tensors once, and are normalised on the device when used.

A data set is one row of `DATASETS`: its shape, its published normalisation constants and how to read it; or one of
`layouts.PREPARED`, which `prepare_data.py` brings into a store, read where it is needed and never loaded whole; or
one's own, named by its path. A store `<data_path>/<NAME>.store`, or else `<data_path>/<NAME>.npz`, where it exists, is
used instead of torchvision's download.
"""

import contextlib
import hashlib
import os
from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddm.data import layouts
from ddm.data import store
from ddm.errors import UserError, lookup
from ddm.memory import free_memory
from ddm.rng import to_device
from ddm.data.store import Mapped


class Arrays(NamedTuple):
    """A data set as read: images uint8 [N, H, W, C] or [N, H, W], labels [N] or [N, 1], class names or None."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: list[str] | None = None


class Whitening(NamedTuple):
    """How to undo a ZCA transform of pixels in [0, 1]: x @ inverse + mean."""

    mean: Tensor  # [1, C * H * W]
    inverse: Tensor  # [C * H * W, C * H * W]


@dataclass(frozen=True)
class ImageData:
    """A data set on one device: images uint8 [N, C, H, W], labels int64 [N], constants for pixels in [0, 1].

    Images of a store stay on the disk (`Mapped`) unless the device has room for them. After `whitened` they are
    float32, as networks see them.
    """

    name: str
    class_names: list[str]
    mean: list[float]
    std: list[float]
    x_train: Tensor | Mapped
    y_train: Tensor
    x_test: Tensor | Mapped
    y_test: Tensor
    constants: Tensor = field(repr=False)  # mean and std as [2, C, 1, 1], where the images are
    indices: list[Tensor] = field(repr=False)  # of the training images of each class, on the CPU
    known_digest: str | None = None  # of a store: found when it was made
    whitening: Whitening | None = None

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
        moved = {name: getattr(self, name).to(device) for name in ("y_train", "y_test", "constants")}
        for name in ("x_train", "x_test"):
            images = getattr(self, name)
            room = (free_memory(str(device)) or 0) // 4  # the rest is for what is computed
            moved[name] = images.to(device, room) if isinstance(images, Mapped) else images.to(device)
        if self.whitening is not None:
            moved["whitening"] = Whitening(*(x.to(device) for x in self.whitening))
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
        y, indices = self.y_train, by_class(self.y_train[kept], self.num_classes)
        x_train, x_test = (subset(self.x_train, rows) for rows in (kept, held))
        return replace(self, x_train=x_train, y_train=y[kept], x_test=x_test, y_test=y[held], indices=indices)

    def whitened(self) -> "ImageData":
        """The same data after ZCA (eps 0.1), fitted to the training images in [0, 1], which are not normalised then.

        All images become float32 in memory. Raises UserError for images too large for the transform.
        """
        from kornia.enhance import ZCAWhitening  # imported here: it takes seconds, and only --zca needs it

        size = self.channel * self.im_size[0] * self.im_size[1]
        if size > ZCA_LIMIT:
            raise UserError(f"--zca: an image of {self.name} has {size} values, the transform can do {ZCA_LIMIT}")
        x_train, x_test = (images[:].float() / 255 for images in (self.x_train, self.x_test))
        zca = ZCAWhitening(dim=0, eps=0.1, compute_inv=True).fit(x_train)
        x_train, x_test = (zca(images) for images in (x_train, x_test))
        ones = torch.ones_like(self.constants[0])
        return replace(
            self,
            x_train=x_train,
            x_test=x_test,
            mean=[0.0] * self.channel,
            std=[1.0] * self.channel,
            constants=torch.stack([0 * ones, ones]),
            whitening=Whitening(zca.mean_vector, zca.transform_inv),
        )

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [..., C, H, W] to the float32 that networks see, on their device: (x / 255 - mean) / std."""
        mean, std = self.constants
        if images.device != mean.device:
            images = to_device(images, mean.device)
        return images if self.whitening is not None else (images.float() / 255 - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`, to floats in [0, 1], clipped."""
        if self.whitening is not None:
            flat = images.flatten(-3) @ self.whitening.inverse + self.whitening.mean
            return flat.view(images.shape).clamp(0, 1)
        mean, std = self.constants
        return (images * std + mean).clamp(0, 1)

    def bounds(self) -> Tensor:
        """What pixels 0 and 1 are as networks see them: [2, C, 1, 1]. Whitened images have none."""
        mean, std = self.constants
        return torch.stack([(0 - mean) / std, (1 - mean) / std])

    def digest(self) -> str:
        """Of all images, labels and class names, to know them again."""
        if self.known_digest is not None:
            return self.known_digest
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
        if n == 0:
            return own[:0]
        rounds = -(-n // len(own))
        order = torch.cat([torch.randperm(len(own), generator=generator) for _ in range(rounds)])
        return own[order[:n]]

    def batch(self, indices: Tensor) -> Tensor:
        """The training images at indices [...] (on the CPU), normalised on the device: [..., C, H, W]."""
        return self.normalise(self.x_train[to_device(indices, self.x_train.device)])


ZCA_LIMIT = 4096  # values of an image: 3x32x32 is 3,072; the transform takes the square of it, and hours beyond


def subset(images: Tensor | Mapped, rows: Tensor) -> Tensor | Mapped:
    """The images at some rows; of a store without reading them."""
    return images.subset(rows) if isinstance(images, Mapped) else images[rows]


def by_class(labels: Tensor, num_classes: int) -> list[Tensor]:
    """Positions of each class's labels, ascending."""
    order = labels.argsort(stable=True)
    return list(order.split(torch.bincount(labels, minlength=num_classes).tolist()))


class Normalised:
    """The images of a split as networks see them, normalised where they are indexed."""

    def __init__(self, data: ImageData, images: Tensor | Mapped):
        self.data, self.images = data, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: slice | Tensor) -> Tensor:
        if isinstance(key, Tensor):
            key = to_device(key, self.images.device)
        return self.data.normalise(self.images[key])


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


NAMES = ChainMap(layouts.PREPARED, DATASETS)
# --dataset ImageNet --subset imagenette is another way to say --dataset ImageNette.
SUBSETS = {name.lower(): name for name, prepared in layouts.PREPARED.items() if prepared.indices}


def is_path(name: str) -> bool:
    """Whether --dataset names one's own data by their path, not one of NAMES."""
    if name in NAMES:
        return False
    with contextlib.suppress(OSError):  # a name too long for one
        return os.sep in name or name.endswith((".npz", store.SUFFIX)) or Path(name).exists()
    return False


def short_name(name: str) -> str:
    """The name of a data set for files: of a path, its last part without extension."""
    return Path(os.path.abspath(name)).stem if is_path(name) else name


def load(name: str, data_path: str | Path, res: int | None = None) -> ImageData:
    """Find a data set: a name of NAMES, or the path of a store, an .npz file or a folder of class folders.

    Of a name, the store `<data_path>/<name>_<res>.store` or `<name>.store` comes first, then `<data_path>/<name>.npz`
    (x_train uint8 [N, H, W, C] or [N, H, W], y_train, x_test, y_test, optional classes), then torchvision's own files
    there, then a download. `res` is the side in pixels, where it can be chosen. A folder is made into a store first.
    Raises UserError when there is neither data nor network, and for files that can't be read or don't have the data
    set's shape.
    """
    data_path = Path(data_path)
    if is_path(name):
        return _own(Path(name), data_path, res)
    lookup(NAMES, name, "dataset")
    prepared = layouts.PREPARED.get(name)
    if prepared is not None:
        res = res or prepared.res
    elif res not in (None, DATASETS[name].shape[1]):
        raise UserError(f"--res {res}: {name} has images of {DATASETS[name].shape[1]} pixels; leave --res out")
    npz = data_path / f"{name}.npz"
    try:
        for path in (layouts.store_path(data_path, name, res), layouts.store_path(data_path, name, None)):
            if store.is_store(path):
                return _stored(name, path, res)
        has_npz = npz.is_file() and prepared is None
    except OSError as error:
        raise UserError(f"--data_path {str(data_path)[:80]!r} can't be read: {error.strerror}") from None
    if prepared is not None:
        whole = layouts.store_path(data_path, "ImageNet", res)
        if prepared.indices and store.is_store(whole):
            return classes_of(_stored("ImageNet", whole, res), name, sorted(prepared.indices))
        raise UserError(
            f"no {name} at {res} pixels in {str(data_path)!r}: python prepare_data.py {name} --source DIR_OR_ARCHIVE "
            f"--res {res} --data_path {data_path} makes it (docs/datasets.md)"
        )
    if has_npz:
        return _tensors(name, DATASETS[name], _read_npz(npz), str(npz))
    return _tensors(name, DATASETS[name], _read_or_download(name, DATASETS[name], data_path), name)


def _stored(name: str, path: Path, res: int | None = None) -> ImageData:
    """A data set from its store, images left where they are."""
    about, arrays = store.read(path)
    if res is not None and about["shape"][1:] != [res, res]:
        raise UserError(f"{path} has images of {about['shape'][2]}x{about['shape'][1]} pixels, --res asks for {res}")
    return _image_data(name, about["class_names"], about["mean"], about["std"], arrays, str(path), about["digest"])


def classes_of(data: ImageData, name: str, classes: list[int]) -> ImageData:
    """Some classes of a data set, labelled in the order given, under a name of their own."""
    label = torch.full((data.num_classes,), -1)
    label[classes] = torch.arange(len(classes))
    arrays = {}
    for split in ("train", "test"):
        y = label[getattr(data, f"y_{split}")]
        rows = torch.nonzero(y >= 0).flatten()
        arrays |= {f"x_{split}": subset(getattr(data, f"x_{split}"), rows), f"y_{split}": y[rows]}
    digest = hashlib.blake2b(f"{data.digest()} {classes}".encode(), digest_size=16).hexdigest()
    names = [data.class_names[c] for c in classes]
    found = _image_data(name, names, data.mean, data.std, arrays, name, digest)
    return replace(found, whitening=data.whitening)


def _own(path: Path, data_path: Path, res: int | None) -> ImageData:
    """A user's data: a store, an .npz file, or a folder of class folders, which becomes a store in data_path."""
    if not os.path.exists(path):  # of a path too long, too
        raise UserError(f"--dataset {str(path)[:80]!r}: there is no such file or folder")
    name = short_name(str(path))
    if store.is_store(path):
        return _stored(name, path, res)
    if path.is_file():
        data = load_file(path)
        if res is not None and data.im_size != (res, res):
            raise UserError(f"--res {res}: {path} has images of {data.im_size[1]}x{data.im_size[0]}; leave --res out")
        return data
    listing = layouts.folders(path, name)
    where = layouts.store_path(data_path / "own", name, res)  # not in the place of a published one
    if store.is_store(where):
        about, _ = store.read(where)
        listed = {split: files.digest() for split, files in listing.splits.items()}
        if about["recipe"].get("listing") != listed or about["recipe"].get("source") != str(path.resolve()):
            raise UserError(
                f"{where} was made from other files than {path} has now: delete it, or name another --data_path"
            )
    else:
        for note in listing.notes:
            print(f"note: {path}: {note}")
        layouts.fill(where, listing, str(path.resolve()), res)
    return _stored(name, where)


def load_file(path: Path, name: str | None = None) -> ImageData:
    """An .npz file (see `load`): of a known data set, if a name is given, else what it says itself."""
    arrays = _read_npz(path)
    spec = own_spec(path, arrays) if name is None else DATASETS[name]
    return _tensors(name or short_name(str(path)), spec, arrays, str(path))


MOST_CLASSES = 100_000


def own_spec(path: Path, arrays: Arrays) -> "Spec":
    """What an .npz file of one's own says of itself; constants are measured on its training images."""
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
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or not len(x) or not np.issubdtype(y.dtype, np.integer):
        raise UserError(
            f"{path}: x_train is {x.dtype} {list(x.shape)} and y_train {y.dtype}, needs uint8 images, integers"
        )
    x = x[..., None] if x.ndim == 3 else x
    names = arrays.classes or [str(label) for label in range(max(int(y.max()), int(arrays.y_test.max())) + 1)]
    mean, std = (getattr(x, f)((0, 1, 2), dtype=np.float64) / 255 for f in ("mean", "std"))
    return Spec((x.shape[3], *x.shape[1:3]), names, mean.tolist(), np.maximum(std, 1e-6).tolist(), None)


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
    return _image_data(name, list(class_names), spec.mean, spec.std, splits, source)


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
    constants = torch.tensor([mean, std])[:, :, None, None]
    indices = by_class(splits["y_train"], len(class_names))
    return ImageData(name, class_names, mean, std, **splits, constants=constants, indices=indices, known_digest=digest)


# --- batches ---------------------------------------------------------------------------------------------


class Batches:
    """Iterate over (images, labels) in batches cut from tensors, on the device where they are.

    Images may be `Normalised`, then only a batch of them is in memory. With `shuffle`, every pass has a new order,
    drawn from `generator` (CPU; None is torch's global one).
    """

    def __init__(
        self,
        images: Tensor | Normalised,
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
        n = len(self.images)
        order = torch.randperm(n, generator=self.generator, device="cpu") if self.shuffle else None
        if order is not None:
            order = to_device(order, self.labels.device)
        for first in range(0, n, self.batch_size):
            key = slice(first, min(first + self.batch_size, n))
            key = key if order is None else order[key]
            yield self.images[key], self.labels[key]


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
