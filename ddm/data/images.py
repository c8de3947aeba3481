"""A data set on one device: uint8 images, normalised when they are used."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ddm.data.store import Mapped
from ddm.device import free_memory
from ddm.errors import UserError
from ddm.rng import to_device

ZCA_LIMIT = 4096  # values of an image: 3x32x32 has 3,072; the transform takes the square of it, and hours beyond


@dataclass(frozen=True)
class Normalisation:
    """How pixels in [0, 1] become what networks see, and back.

    Either (x - mean) / std per channel, or a ZCA whitening, whose inverse is x @ inverse + offset.
    """

    mean: list[float]
    std: list[float]
    constants: Tensor = field(repr=False)  # mean and std as [2, C, 1, 1]
    offset: Tensor | None = field(default=None, repr=False)  # of a whitening: [1, C * H * W]
    inverse: Tensor | None = field(default=None, repr=False)  # [C * H * W, C * H * W]

    @classmethod
    def of(cls, mean: list[float], std: list[float], zca: Mapping[str, Tensor] | None = None) -> "Normalisation":
        """From lists over channels, and the whitening that a saved set has under 'zca'."""
        mean, std = ([float(x) for x in values] for values in (mean, std))
        constants = torch.tensor([mean, std])[:, :, None, None]
        return cls(mean, std, constants, *((zca["mean"], zca["inverse"]) if zca else ()))

    @property
    def whitened(self) -> bool:
        return self.inverse is not None

    @property
    def zca(self) -> dict[str, Tensor] | None:
        """The whitening as saved sets have it, on the CPU."""
        return {"mean": self.offset.cpu(), "inverse": self.inverse.cpu()} if self.whitened else None

    def to(self, device: str | torch.device) -> "Normalisation":
        moved = {name: getattr(self, name) for name in ("constants", "offset", "inverse")}
        return replace(self, **{name: x if x is None else x.to(device) for name, x in moved.items()})

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], [..., C, H, W], to what networks see. Whitening can't be repeated on new pixels."""
        mean, std = self.constants
        return (pixels - mean) / std

    def unclipped(self, images: Tensor) -> Tensor:
        """Images [..., C, H, W] as networks see them to pixels, which may leave [0, 1]."""
        if self.whitened:
            return (images.flatten(-3) @ self.inverse + self.offset).view(images.shape)
        mean, std = self.constants
        return images * std + mean

    def pixels(self, images: Tensor) -> Tensor:
        """Images [..., C, H, W] as networks see them to pixels clipped to [0, 1]."""
        return self.unclipped(images).clamp(0, 1)

    def bounds(self) -> Tensor:
        """Pixels 0 and 1 as networks see them: [2, C, 1, 1]. Whitened images have no bounds."""
        mean, std = self.constants
        return torch.stack([(0 - mean) / std, (1 - mean) / std])


@dataclass(frozen=True)
class ImageData:
    """A data set on one device: images uint8 [N, C, H, W], labels int64 [N].

    Images of a store stay on disk (`Mapped`) unless the device has room for them. After `whitened` they are float32,
    as networks see them.
    """

    name: str
    class_names: list[str]
    normalisation: Normalisation
    x_train: Tensor | Mapped
    y_train: Tensor
    x_test: Tensor | Mapped
    y_test: Tensor
    indices: list[Tensor] = field(repr=False)  # of the training images of each class, on the CPU
    known_digest: str | None = None  # of a store: computed when it was made

    @property
    def mean(self) -> list[float]:
        return self.normalisation.mean

    @property
    def std(self) -> list[float]:
        return self.normalisation.std

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
        """Where normalised images are."""
        return self.normalisation.constants.device

    def to(self, device: str | torch.device) -> "ImageData":
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in ("y_train", "y_test")}
        for name in ("x_train", "x_test"):
            images = getattr(self, name)
            room = (free_memory(str(device)) or 0) // 4  # the rest is for the computation
            moved[name] = images.to(device, room) if isinstance(images, Mapped) else images.to(device)
        return replace(self, normalisation=self.normalisation.to(device), **moved)

    def with_validation(self, seed: int) -> "ImageData":
        """The same data with a tenth of each class's training images held out; they replace the test set.

        For choosing settings without looking at the test images. The same seed holds out the same images, at least one
        per class. Raises UserError where a class has fewer than two.
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
        """The same data after ZCA (eps 0.1), fitted to the training images in [0, 1] instead of normalising them.

        All images become float32 in memory. Raises UserError for images too large for the transform.
        """
        from kornia.enhance import ZCAWhitening  # imported here: it takes seconds, and only --zca needs it

        size = self.channel * self.im_size[0] * self.im_size[1]
        if size > ZCA_LIMIT:
            raise UserError(f"--zca: an image of {self.name} has {size} values, the transform can do {ZCA_LIMIT}")
        x_train, x_test = (images[:].float() / 255 for images in (self.x_train, self.x_test))
        zca = ZCAWhitening(dim=0, eps=0.1, compute_inv=True).fit(x_train)
        x_train, x_test = (zca(images) for images in (x_train, x_test))
        ones = torch.ones_like(self.normalisation.constants[0])
        mean, std = [0.0] * self.channel, [1.0] * self.channel
        constants = torch.stack([0 * ones, ones])
        normalisation = Normalisation(mean, std, constants, zca.mean_vector, zca.transform_inv)
        return replace(self, x_train=x_train, x_test=x_test, normalisation=normalisation)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [..., C, H, W] to the float32 that networks see, on their device. Whitened images are that already."""
        if images.device != self.device:
            images = to_device(images, self.device)
        return images if self.normalisation.whitened else self.normalisation.normalise(images.float() / 255)

    def digest(self) -> str:
        """A digest of all images, labels and class names."""
        if self.known_digest is not None:
            return self.known_digest
        found = hashlib.blake2b(repr(self.class_names).encode(), digest_size=16)
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            found.update(tensor.contiguous().numpy())
        return found.hexdigest()

    def draw(self, cls: int, n: int, generator: torch.Generator) -> Tensor:
        """Indices [n] of training images of a class, without replacement.

        A class smaller than n is repeated in a new order, so that each image comes n // size or n // size + 1 times.
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


def subset(images: Tensor | Mapped, rows: Tensor) -> Tensor | Mapped:
    """The images at some rows; of a store without reading them."""
    return images.subset(rows) if isinstance(images, Mapped) else images[rows]


def by_class(labels: Tensor, num_classes: int) -> list[Tensor]:
    """Positions of each class's labels, ascending."""
    order = labels.argsort(stable=True)
    return list(order.split(torch.bincount(labels, minlength=num_classes).tolist()))


class Normalised:
    """The images of a split as networks see them, normalised when they are indexed."""

    def __init__(self, data: ImageData, images: Tensor | Mapped):
        self.data, self.images = data, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: slice | Tensor) -> Tensor:
        if isinstance(key, Tensor):
            key = to_device(key, self.images.device)
        return self.data.normalise(self.images[key])


class Batches:
    """Iterate over (images, labels) in batches cut from tensors, on the device where they are.

    Images may be `Normalised`, then only one batch of them is in memory. With `shuffle`, every pass has a new order,
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
