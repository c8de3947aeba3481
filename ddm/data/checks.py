"""Warnings about data that may be wrong: a class without test images, training images in the test set."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

SHARED = 0.01  # a larger share of test images that are also training images gives a warning


def split_warnings(class_names: Sequence[str], splits: dict[str, Iterable[Any]], y_test: Any) -> list[str]:
    """One warning line for each problem of a data set, [] without problems.

    `splits` has the images of "train" and "test", uint8 [N, ...], as arrays or tensors; `y_test` the labels [N].
    """
    found = []
    counts = np.bincount(np.asarray(y_test), minlength=len(class_names))
    absent = [name for name, count in zip(class_names, counts, strict=False) if not count]
    if absent:
        found.append(f"the test set has no images of {listed(absent)}: accuracy does not cover them")
    shared, n = shared_images(splits["train"], splits["test"]), len(y_test)
    if shared > SHARED * n:
        found.append(
            f"{shared} of {n} test images are training images, pixel by pixel: accuracy is too high; use other images"
        )
    return found


def shared_images(train: Iterable[Any], test: Iterable[Any]) -> int:
    """The number of test images whose pixels equal those of a training image."""
    known = {hash(np.asarray(image).tobytes()) for image in test}
    known &= {hash(np.asarray(image).tobytes()) for image in train}
    return sum(hash(np.asarray(image).tobytes()) in known for image in test) if known else 0


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names and the number of the others: 'a, b and 3 more'."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
