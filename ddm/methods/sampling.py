"""Sampling of real images for a condensation step.

`random` is the published sampling. `balanced` (not of the DDM paper) picks images whose mean embedding is close to the
class mean. Matching compares means, and most noise in its gradient comes from drawing few real images.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddm import rng
from ddm.data.images import ImageData
from ddm.networks import empty_network, initialise

CANDIDATES = 4  # random candidates per selected image
DIRECTIONS = 128  # principal directions of a class's embeddings, used for balancing
PRODUCT_BYTES = 2**28  # of the inner products of candidates that are in memory at a time


def initial_indices(data: ImageData, counts: Sequence[int], seed: int, experiment: int) -> Tensor:
    """Indices [N] of the random real images that initialise an experiment."""
    where = (seed, experiment, 0)
    draws = [data.draw(c, n, rng.generator(*where, c, "initial images")) for c, n in enumerate(counts)]
    return torch.cat(draws)


def real_images(data: ImageData, counts: Sequence[int], seed: int, experiment: int) -> Tensor:
    """counts[c] random real images of each class c, normalised: [N, C, H, W]."""
    return data.batch(initial_indices(data, counts, seed, experiment))


class Random:
    """Draws without replacement; all images of a class are equally likely."""

    def __init__(self, data: ImageData, n: int, seed: int, classes: range):
        """Prepare to draw n images per class, for some classes."""
        self.data, self.n = data, n

    def indices(self, classes: range, generator: Callable[[int], torch.Generator]) -> list[Tensor]:
        """For each class, the indices of the drawn images, on the CPU; `generator(c)` is the generator of class c.

        They are n images, or candidates for `selected`.
        """
        return [self.data.draw(c, self.n, generator(c)) for c in classes]

    def selected(self, drawn: Tensor) -> Tensor:
        """Select images from those that `indices` drew, [classes, m]: indices [classes, n], without a host sync.

        They are on the device of the data set's images.
        """
        return drawn


class Balanced(Random):
    """Selects images with a mean embedding close to the class mean, by herding (Welling, ICML 2009) random candidates.

    The embedding is that of one narrow untrained network; the selection works for other networks too.
    """

    def __init__(self, data: ImageData, n: int, seed: int, classes: range):
        super().__init__(data, n, seed, classes)
        large = [len(indices) for indices in data.indices if len(indices) > n]  # smaller classes leave no choice
        # One number for all classes, independent of the classes in a call.
        self.candidates = min(CANDIDATES * n, *large) if large else n
        own, where = [data.indices[c] for c in classes], data.x_train.device
        rows = torch.cat(own)
        position = torch.full((len(data.y_train),), -1)
        position[rows] = torch.arange(len(rows))
        # The position [N] of each training image in the next two tensors, -1 for images of other classes.
        self.position = position.to(where)
        self.points = torch.cat(class_points(data, seed, classes)).to(where)  # [len(rows), d]
        choice = torch.cat([torch.full((len(indices), 1), len(indices) > n) for indices in own])
        self.choice = choice.to(where)  # boolean [len(rows), 1]: the class has more than n images

    def indices(self, classes: range, generator: Callable[[int], torch.Generator]) -> list[Tensor]:
        return [self.data.draw(c, self.candidates, generator(c)) for c in classes]

    def selected(self, drawn: Tensor) -> Tensor:
        if self.candidates == self.n:
            return drawn
        at = self.position[drawn]
        groups = at.split(max(1, PRODUCT_BYTES // (4 * self.candidates**2)))
        picks = torch.cat([herd(self.points[group], self.n) for group in groups])
        return torch.where(self.choice[at[:, 0]], drawn.gather(1, picks), drawn[:, : self.n])


def herd(points: Tensor, n: int) -> Tensor:
    """Select n of the points [classes, m, d] whose sum stays near 0: indices [classes, n] (Welling, ICML 2009).

    On an accelerator it does not wait for the device.
    """
    products = points @ points.transpose(1, 2)
    diagonal = products.diagonal(dim1=1, dim2=2)
    growth = diagonal.clone()  # the growth of |sum|^2 if a point is added
    diagonal.fill_(torch.inf)  # no point is picked twice
    classes, picks = torch.arange(len(points), device=points.device), []
    for _ in range(n):
        picks.append(growth.argmin(1))
        growth.add_(products[classes, picks[-1]], alpha=2)  # rows; the products are symmetric
    return torch.stack(picks, dim=1)


@torch.no_grad()
def class_points(data: ImageData, seed: int, classes: range) -> list[Tensor]:
    """Centred embeddings of each class's training images along their principal directions: [n, d], on the CPU."""
    net = empty_network("ConvNetW32", data.channel, data.num_classes, data.im_size, data.device)
    initialise(net, rng.generator(seed, 0, 0, -1, "sampling network"))
    points = []
    for c in classes:
        parts = data.indices[c].split(128)
        maps = torch.cat([F.adaptive_avg_pool2d(net.features(data.batch(part)), 4) for part in parts])
        embedding = maps.flatten(1)
        embedding -= embedding.mean(0)
        embedding = embedding.cpu()
        points.append(embedding @ torch.linalg.eigh(embedding.T @ embedding).eigenvectors[:, -DIRECTIONS:])
    return points


SAMPLERS: dict[str, type[Random]] = {"random": Random, "balanced": Balanced}
