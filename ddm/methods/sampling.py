"""Which real images a class shows in an iteration.

`random` is the published way. `balanced` picks images whose mean is near the mean of the class: matching compares
means, and most of the noise in its gradient is that of drawing few real images.
"""

from argparse import Namespace
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddm import rng
from ddm.data.data import ImageData
from ddm.networks import empty_network, initialise

CANDIDATES = 4  # images looked at for each one picked
DIRECTIONS = 128  # principal directions of a class's embeddings that picks are balanced along


def initial_indices(data: ImageData, args: Namespace, experiment: int, classes: range | None = None) -> Tensor:
    """Indices [N] of the random real images that an experiment starts from, of all classes or of some."""
    where = (args.seed, experiment, 0)
    classes = range(data.num_classes) if classes is None else classes
    return torch.cat([data.draw(c, args.counts[c], rng.generator(*where, c, "initial images")) for c in classes])


class Random:
    """Without replacement, each image as likely as any other."""

    def __init__(self, data: ImageData, args: Namespace, classes: range | None = None):
        """For all classes, or for some of them only."""
        self.data, self.n = data, args.batch_real

    def batch(self, classes: range, generator: Callable[[int], torch.Generator]) -> Tensor:
        """Normalised real images [classes, batch_real, C, H, W]; `generator(c)` is class c's source of randomness."""
        return self.data.batch(torch.stack(self.indices(classes, generator)))

    def indices(self, classes: range, generator: Callable[[int], torch.Generator]) -> list[Tensor]:
        return [self.data.draw(c, self.n, generator(c)) for c in classes]


class Balanced(Random):
    """Some random candidates, of which herding (Welling, ICML 2009) picks those whose mean is near the class's.

    Nearness is measured in the embedding of one narrow untrained network, and holds under others too.
    """

    def __init__(self, data: ImageData, args: Namespace, classes: range | None = None):
        super().__init__(data, args)
        self.points = class_points(data, args, range(data.num_classes) if classes is None else classes)
        self.sizes = [len(own) for own in data.indices]
        # The same for all classes, whichever are asked for together.
        self.candidates = min([CANDIDATES * self.n, *(size for size in self.sizes if size > self.n)])

    def indices(self, classes: range, generator: Callable[[int], torch.Generator]) -> list[Tensor]:
        large = [c for c in classes if self.sizes[c] > self.n]  # of the others there is nothing to choose
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
def class_points(data: ImageData, args: Namespace, classes: range) -> dict[int, Tensor]:
    """Embeddings of classes' training images, centred, along their principal directions: each [n, d] on the CPU."""
    net = empty_network("ConvNetW32", data.channel, data.num_classes, data.im_size, args.device)
    initialise(net, rng.generator(args.seed, 0, 0, -1, "sampling network"))
    points = {}
    for c in classes:
        parts = data.indices[c].split(128)
        maps = torch.cat([F.adaptive_avg_pool2d(net.features(data.batch(part)), 4) for part in parts])
        embedding = maps.flatten(1)
        embedding -= embedding.mean(0)
        embedding = embedding.cpu()
        points[c] = embedding @ torch.linalg.eigh(embedding.T @ embedding).eigenvectors[:, -DIRECTIONS:]
    return points


SAMPLERS = {"random": Random, "balanced": Balanced}
