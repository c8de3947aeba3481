"""A data set on one device: uint8 images that are normalised on access."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddm.data.store import Mapped
from ddm.device import free_memory
from ddm.errors import UserError
from ddm.rng import to_device

ZCA_LIMIT = 4096  # values per image (3x32x32 has 3,072): the transform needs the square of this, and hours for more


@dataclass(frozen=True)
class Normalisation:
    """The map between pixels in [0, 1] and normalised images.

    It is (x - mean) / std per channel, or a ZCA whitening with the inverse x @ inverse + offset.
    """

    mean: list[float]
    std: list[float]
    constants: Tensor = field(repr=False)  # mean and std as [2, C, 1, 1]
    offset: Tensor | None = field(default=None, repr=False)  # for whitening: [1, C * H * W]
    inverse: Tensor | None = field(default=None, repr=False)  # [C * H * W, C * H * W]

    @classmethod
    def of(cls, mean: list[float], std: list[float], zca: Mapping[str, Tensor] | None = None) -> "Normalisation":
        """A normalisation from lists over channels and the entry 'zca' of a saved set."""
        mean, std = ([float(x) for x in values] for values in (mean, std))
        constants = torch.tensor([mean, std])[:, :, None, None]
        return cls(mean, std, constants, *((zca["mean"], zca["inverse"]) if zca else ()))

    @property
    def whitened(self) -> bool:
        return self.inverse is not None

    @property
    def zca(self) -> dict[str, Tensor] | None:
        """The entry 'zca' of saved sets, on the CPU; None without whitening."""
        return {"mean": self.offset.cpu(), "inverse": self.inverse.cpu()} if self.whitened else None

    def to(self, device: str | torch.device) -> "Normalisation":
        moved = {name: getattr(self, name) for name in ("constants", "offset", "inverse")}
        return replace(self, **{name: x if x is None else x.to(device) for name, x in moved.items()})

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels [..., C, H, W] in [0, 1] with mean and std. Whitening can't be applied to new pixels."""
        mean, std = self.constants
        return (pixels - mean) / std

    def unclipped(self, images: Tensor) -> Tensor:
        """The pixels of normalised images [..., C, H, W]; they may be outside [0, 1]."""
        if self.whitened:
            return (images.flatten(-3) @ self.inverse + self.offset).view(images.shape)
        mean, std = self.constants
        return images * std + mean

    def pixels(self, images: Tensor) -> Tensor:
        """The pixels of normalised images [..., C, H, W], clipped to [0, 1]."""
        return self.unclipped(images).clamp(0, 1)

    def bounds(self) -> Tensor:
        """The normalised values of pixels 0 and 1: [2, C, 1, 1]. Whitened images have no bounds."""
        mean, std = self.constants
        return torch.stack([(0 - mean) / std, (1 - mean) / std])


@dataclass(frozen=True)
class ImageData:
    """A data set on one device: images uint8 [N, C, H, W], labels int64 [N].

    Images of a store stay on disk (`Mapped`) unless the device has room for them. Whitened images (see `whitened`) are
    float32 and already normalised.
    """

    name: str
    class_names: list[str]
    normalisation: Normalisation
    x_train: Tensor | Mapped
    y_train: Tensor
    x_test: Tensor | Mapped
    y_test: Tensor
    indices: list[Tensor] = field(repr=False)  # for each class, the indices of its training images, on the CPU
    known_digest: str | None = None  # the digest of a store, computed when it was made
    warnings: tuple[str, ...] = field(default=(), repr=False)  # doubts about the data, one line each

    @property
    def mean(self) -> list[float]:
        return self.normalisation.mean

    @property
    def std(self) -> list[float]:
        return self.normalisation.std

    @property
    def warning_lines(self) -> list[str]:
        return [f"warning: {self.name}: {line}" for line in self.warnings]

    @property
    def channel(self) -> int:
        return self.x_train.shape[1]

    @property
    def im_size(self) -> tuple[int, int]:
        return tuple(self.x_train.shape[2:])

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of an image."""
        return (self.channel, *self.im_size)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        """The device of normalised images."""
        return self.normalisation.constants.device

    def to(self, device: str | torch.device) -> "ImageData":
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in ("y_train", "y_test")}
        for name in ("x_train", "x_test"):
            images = getattr(self, name)
            room = (free_memory(str(device)) or 0) // 4  # the rest is for the computation
            moved[name] = images.to(device, room) if isinstance(images, Mapped) else images.to(device)
        return replace(self, normalisation=self.normalisation.to(device), **moved)

    def with_validation(self, seed: int) -> "ImageData":
        """The same data, with a held-out tenth of each class's training images as the test set.

        It allows choosing settings without the test images. Equal seeds hold out equal images, at least one per class.
        Raises UserError if a class has fewer than two images.
        """
        least = min(map(len, self.indices))
        if least < 2:
            raise UserError(
                f"--eval_split val: a class of {self.name} has {least} training image(s), needs 2 or more: use "
                "--eval_split test"
            )
        generator = torch.Generator("cpu").manual_seed(seed)
        order = [rows[torch.randperm(len(rows), generator=generator)] for rows in self.indices]
        sizes = [max(1, len(rows) // 10) for rows in order]
        held = torch.cat([rows[:size] for rows, size in zip(order, sizes, strict=True)])
        kept = torch.cat([rows[size:] for rows, size in zip(order, sizes, strict=True)])
        y, indices = self.y_train, by_class(self.y_train[kept], self.num_classes)
        x_train, x_test = (subset(self.x_train, rows) for rows in (kept, held))
        split = replace(self, x_train=x_train, y_train=y[kept], x_test=x_test, y_test=y[held], indices=indices)
        if self.known_digest is None:
            return split
        digest = hashlib.blake2b(f"{self.known_digest} held out {seed}".encode(), digest_size=16).hexdigest()
        return replace(split, known_digest=digest)

    def whitened(self) -> "ImageData":
        """The same data, ZCA-whitened instead of normalised; the whitening (eps 0.1) is fitted to the training images.

        All images become float32 in memory. Raises UserError for images larger than ZCA_LIMIT.
        """
        from kornia.enhance import ZCAWhitening  # imported here: it takes seconds, and only --zca needs it

        size = self.channel * self.im_size[0] * self.im_size[1]
        if size > ZCA_LIMIT:
            raise UserError(
                f"--zca: {self.name} has {size} values per image, the limit is {ZCA_LIMIT}: leave --zca out"
            )
        x_train, x_test = (images[:].float() / 255 for images in (self.x_train, self.x_test))
        zca = ZCAWhitening(dim=0, eps=0.1, compute_inv=True).fit(x_train)
        x_train, x_test = (zca(images) for images in (x_train, x_test))
        fit = {"mean": zca.mean_vector, "inverse": zca.transform_inv}
        normalisation = Normalisation.of([0.0] * self.channel, [1.0] * self.channel, fit)
        return replace(self, x_train=x_train, x_test=x_test, normalisation=normalisation)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 images [..., C, H, W] to float32 on the device. Whitened images are only moved there."""
        if images.device != self.device:
            images = to_device(images, self.device)
        return images if self.normalisation.whitened else self.normalisation.normalise(images.float() / 255)

    @cached_property
    def digest(self) -> str:
        """A digest of all images, labels and class names."""
        if self.known_digest is not None:
            return self.known_digest
        hasher = hashlib.blake2b(repr(self.class_names).encode(), digest_size=16)
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            hasher.update(tensor.cpu().contiguous().numpy())
        return hasher.hexdigest()

    def draw(self, cls: int, n: int, generator: torch.Generator) -> Tensor:
        """Draw indices [n] of training images of a class, without replacement.

        A class smaller than n is repeated in new orders: each image is drawn n // size or n // size + 1 times. Raises
        UserError for a class without training images.
        """
        indices = self.indices[cls]
        if n == 0:
            return indices[:0]
        if not len(indices):
            raise UserError(f"class {self.class_names[cls]!r} of {self.name} has no training images to draw from")
        rounds = -(-n // len(indices))
        order = torch.cat([torch.randperm(len(indices), generator=generator) for _ in range(rounds)])
        return indices[order[:n]]

    def batch(self, indices: Tensor) -> Tensor:
        """The training images at indices [...] (a CPU tensor), normalised on the device: [..., C, H, W]."""
        return self.normalise(self.x_train[to_device(indices, self.x_train.device)])

    def drawn(self, real: Tensor) -> Tensor:
        """The normalised training images [...] at indices [...] on any device; images [..., C, H, W] are normalised."""
        return self.batch(real) if real.dtype == torch.long else self.normalise(real)


def subset(images: Tensor | Mapped, rows: Tensor) -> Tensor | Mapped:
    """The images at some rows; images of a store are not read yet."""
    return images.subset(rows) if isinstance(images, Mapped) else images[rows]


def by_class(labels: Tensor, num_classes: int) -> list[Tensor]:
    """For each class, the ascending indices of its labels."""
    order = labels.argsort(stable=True)
    return list(order.split(torch.bincount(labels, minlength=num_classes).tolist()))


class Normalised:
    """The images of a split, normalised when indexed."""

    def __init__(self, data: ImageData, images: Tensor | Mapped):
        self.data, self.images = data, images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """The device of the stored images: keys are needed there. Normalised images may be on another device."""
        return self.images.device

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W]."""
        return self.images.shape

    def to(self, device: str | torch.device) -> "Normalised":
        """This object: its images are normalised on the device of the data set."""
        return self

    def __getitem__(self, key: slice | Tensor) -> Tensor:
        if isinstance(key, Tensor):
            key = to_device(key, self.device)
        return self.data.normalise(self.images[key])


class Batches:
    """Batches of (images, labels), cut from tensors on their device.

    Images may be `Normalised`; then only one batch of them is in memory. With `shuffle`, every pass has a new order,
    drawn from `generator` (on the CPU; None: torch's global generator).
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
        batches = (slice(first, min(first + self.batch_size, n)) for first in range(0, n, self.batch_size))
        if not self.shuffle:
            for rows in batches:
                yield self.images[rows], self.labels[rows]
            return
        order = torch.randperm(n, generator=self.generator, device="cpu")
        # Images may be on the CPU and labels on an accelerator, from which the host would have to wait for a key.
        of_images, of_labels = (to_device(order, x.device) for x in (self.images, self.labels))
        for rows in batches:
            yield self.images[of_images[rows]], self.labels[of_labels[rows]]
