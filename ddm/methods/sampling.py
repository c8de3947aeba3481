"""Which real images of a class a step sees.

`random` is the published way. `balanced` picks images whose mean embedding is close to the class mean. Matching
compares means, and most of its gradient's noise comes from drawing few real images.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddm import rng
from ddm.data.images import ImageData
from ddm.networks import empty_network, initialise

CANDIDATES = 4  # random candidates per picked image
DIRECTIONS = 128  # principal directions of a class's embeddings that picks are balanced along


def initial_indices(data: ImageData, counts: Sequence[int], seed: int, experiment: int) -> Tensor:
    """Indices [N] of the random real images that an experiment starts from."""
    where = (seed, experiment, 0)
    draws = [data.draw(c, n, rng.generator(*where, c, "initial images")) for c, n in enumerate(counts)]
    return torch.cat(draws)


class Random:
    """Draws without replacement, each image equally likely."""

    def __init__(self, data: ImageData, n: int, seed: int, classes: range | None = None):
        """For n images per class; of all classes, or of some."""
        self.data, self.n = data, n

    def batch(self, classes: range, generator: Callable[[int], torch.Generator]) -> Tensor:
        """Normalised real images [classes, n, C, H, W]; `generator(c)` is class c's source of randomness."""
        return self.data.batch(torch.stack(self.indices(classes, generator)))

    def indices(self, classes: range, generator: Callable[[int], torch.Generator]) -> list[Tensor]:
        """Of each class, the indices [n] of the images to show."""
        return [self.data.draw(c, self.n, generator(c)) for c in classes]


class Balanced(Random):
    """Picks from random candidates, by herding (Welling, ICML 2009), images whose mean is close to the class mean.

    Distances are measured in the embedding of one narrow untrained network; they carry over to other networks.
    """

    def __init__(self, data: ImageData, n: int, seed: int, classes: range | None = None):
        super().__init__(data, n, seed)
        self.points = class_points(data, seed, range(data.num_classes) if classes is None else classes)
        self.sizes = [len(own) for own in data.indices]
        # The same number for all classes, whichever are requested together.
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
    """Positions [classes, n] of n of the points [classes, m, d], picked so that their sum stays near 0."""
    products = points @ points.transpose(1, 2)
    growth = products.diagonal(dim1=1, dim2=2).clone()  # of |sum|^2, if a point is added to the sum
    picks = []
    for _ in range(n):
        pick = growth.argmin(1, keepdim=True)
        picks.append(pick)
        growth += 2 * products.take_along_dim(pick[:, None], dim=2)[:, :, 0]
        growth.scatter_(1, pick, torch.inf)
    return torch.cat(picks, dim=1)


@torch.no_grad()
def class_points(data: ImageData, seed: int, classes: range) -> dict[int, Tensor]:
    """Embeddings of classes' training images, centred, along their principal directions: each [n, d] on the CPU."""
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
