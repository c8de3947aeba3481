"""The table of data sets that need no preparation: image shape, published constants and reader."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Arrays(NamedTuple):
    """The arrays of a data set: images uint8 [N, H, W, C] or [N, H, W], labels [N] or [N, 1], class names or None."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: list[str] | None = None


def _digits(data_path: Path) -> Arrays:
    """scikit-learn's 1,797 digits; a fixed fifth of every class is the test set (there is no official split)."""
    from sklearn.datasets import load_digits  # imported here: it takes a second, and only Digits needs it
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)  # 17 grey levels
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return Arrays(x_train, y_train, x_test, y_test)


def torchvision_arrays(name: str, data_path: Path, train: dict, test: dict, download: bool = True) -> Arrays:
    """Read both splits with torchvision, which verifies them, and downloads them if they are missing."""
    import torchvision.datasets as tv  # imported here: it takes two seconds, and .npz files do not need it

    cls = getattr(tv, name)
    sets = [cls(str(data_path), download=download, **split) for split in (train, test)]
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
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
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
    read: Callable[[Path], Arrays] | None  # data folder -> arrays; None: the arrays were read already


DATASETS: dict[str, Spec] = {
    # The constants of Digits are measured on its training pixels; the others are published.
    "Digits": Spec((1, 8, 8), _DIGIT_NAMES, [0.3054], [0.3760], _digits),
    "MNIST": Spec((1, 28, 28), _DIGIT_NAMES, [0.1307], [0.3081], partial(torchvision_arrays, "MNIST", **_BY_FLAG)),
    "FashionMNIST": Spec(
        (1, 28, 28),
        _FASHION_NAMES,
        [0.2861],
        [0.3530],
        partial(torchvision_arrays, "FashionMNIST", **_BY_FLAG),
    ),
    "SVHN": Spec(
        (3, 32, 32),
        _DIGIT_NAMES,
        [0.4377, 0.4438, 0.4728],
        [0.1980, 0.2010, 0.1970],
        partial(torchvision_arrays, "SVHN", **_BY_NAME),
    ),
    "CIFAR10": Spec(
        (3, 32, 32),
        _CIFAR10_NAMES,
        [0.4914, 0.4822, 0.4465],
        [0.2023, 0.1994, 0.2010],
        partial(torchvision_arrays, "CIFAR10", **_BY_FLAG),
    ),
    "CIFAR100": Spec(
        (3, 32, 32),
        _CIFAR100_NAMES,
        [0.5071, 0.4866, 0.4409],
        [0.2673, 0.2564, 0.2762],
        partial(torchvision_arrays, "CIFAR100", **_BY_FLAG),
    ),
}
