"""Sampling of real images for a condensation step.

`random` is the published sampling. `balanced` (not of the DDM paper) picks images whose mean embedding is close to the
class mean. Matching compares means, and most noise in its gradient comes from drawing few real images.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddm import rng
from ddm.data.images import ImageData
from ddm.networks import empty_network, initialise

CANDIDATES = 4  # random candidates per selected image
DIRECTIONS = 128  # principal directions of a class's embeddings, used for balancing


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
        """For each class, the indices [n] of the drawn images; `generator(c)` is the random generator of class c."""
        return [self.data.draw(c, self.n, generator(c)) for c in classes]


class Balanced(Random):
    """Selects images with a mean embedding close to the class mean, by herding (Welling, ICML 2009) random candidates.

    The embedding is that of one narrow untrained network; the selection works for other networks too.
    """

    def __init__(self, data: ImageData, n: int, seed: int, classes: range):
        super().__init__(data, n, seed, classes)
        self.points = class_points(data, seed, classes)
        self.sizes = [len(indices) for indices in data.indices]
        # One number for all classes, independent of the classes in a call.
        self.candidates = min([CANDIDATES * self.n, *(size for size in self.sizes if size > self.n)])

    def indices(self, classes: range, generator: Callable[[int], torch.Generator]) -> list[Tensor]:
        large = [c for c in classes if self.sizes[c] > self.n]  # smaller classes leave no choice
        if not large:
            return super().indices(classes, generator)
        candidates = [torch.randperm(self.sizes[c], generator=generator(c))[: self.candidates] for c in large]
        picks = herd(torch.stack([self.points[c][own] for c, own in zip(large, candidates, strict=True)]), self.n)
        picked = {c: self.data.indices[c][own[pick]] for c, own, pick in zip(large, candidates, picks, strict=True)}
        return [picked[c] if c in picked else self.data.draw(c, self.n, generator(c)) for c in classes]


def herd(points: Tensor, n: int) -> Tensor:
    """Select n of the points [classes, m, d] whose sum stays near 0: indices [classes, n] (Welling, ICML 2009).

    The points are on the CPU. The loop is numpy's, whose calls on small arrays cost less than torch's.
    """
    products = (points @ points.transpose(1, 2)).numpy()
    diagonal = np.arange(products.shape[1])
    growth = products[:, diagonal, diagonal]  # a copy: the growth of |sum|^2 if a point is added
    products[:, diagonal, diagonal] = np.inf  # no point is picked twice
    classes, picks = np.arange(len(points)), np.empty((len(points), n), dtype=np.int64)
    for k in range(n):
        picks[:, k] = growth.argmin(1)
        growth += 2 * products[classes, picks[:, k]]  # rows; the products are symmetric
    return torch.from_numpy(picks)


@torch.no_grad()
def class_points(data: ImageData, seed: int, classes: range) -> dict[int, Tensor]:
    """Centred embeddings of each class's training images along their principal directions: [n, d], on the CPU."""
    net = empty_network("ConvNetW32", data.channel, data.num_classes, data.im_size, data.device)
    initialise(net, rng.generator(seed, 0, 0, -1, "sampling network"))
    points = {}
    for c in classes:
        parts = data.indices[c].split(128)
        maps = torch.cat([F.adaptive_avg_pool2d(net.features(data.batch(part)), 4) for part in parts])
        embedding = maps.flatten(1)
        embedding -= embedding.mean(0)
        embedding = embedding.cpu()
        points[c] = embedding @ torch.linalg.eigh(embedding.T @ embedding).eigenvectors[:, -DIRECTIONS:]
    return points


SAMPLERS: dict[str, type[Random]] = {"random": Random, "balanced": Balanced}
