"""Real and synthetic images under a network: the features and statistics that are matched, and the terms.

All that matching needs of real images are embeddings and means over images, so that they go through the network in
parts, without gradients. `--compile` makes two graphs of this: one of a part, one of the rest.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddm.networks import Network
from ddm.speed import autocast, compiled


def pass_pixels(device: str | torch.device) -> int:
    """Pixels in one pass: of real images in a part, and of synthetic ones in a chunk when --class_chunk is 0.

    A CPU is fastest while feature maps are reused before they leave its caches; an accelerator wants large passes.
    """
    return 2**16 if torch.device(device).type == "cpu" else 2**20


class Features(NamedTuple):
    """What a network says of several classes' images."""

    embedding: Tensor  # phi(x): [classes, n, D]
    style: dict[str, list[Tensor]]  # by name, over tapped layers: a statistic of the feature maps, [classes, ...]


# A recipe: (real, syn, args) -> its weighted terms by name, [classes].
Objective = Callable[[Features, Features, Namespace], dict[str, Tensor]]
# By name, what a recipe needs of feature maps [classes, n, C, H, W]: a mean over the n images, [classes, ...].
Statistics = dict[str, Callable[[Tensor], Tensor]]


STYLE_TERMS = {"L_MM", "L_CM"}


def accumulator_weights(num_classes: int, layers: int) -> list[float]:
    """What a class's style term, a mean over layers, is multiplied by where the sum is never reset.

    The published scripts keep s_c = (s_{c-1} + sum over layers) / layers and add every s_c to the loss, so that the
    term of class c comes again, divided by `layers` once more, with each later class.
    """
    return [sum(layers**-j for j in range(num_classes - c)) for c in range(num_classes)]


def features(net: Network, images: Tensor, statistics: Statistics, precision: str) -> Features:
    """Embed images [classes, n, C, H, W] in one forward pass."""
    with autocast(images.device, precision):
        out = net.embed(images.flatten(0, 1))
    embedding, maps = out if isinstance(out, tuple) else (out, [])
    shape = images.shape[:2]
    style = {name: [mean(m.unflatten(0, shape)) for m in maps] for name, mean in statistics.items()}
    return Features(embedding.float().unflatten(0, shape), style)


def merged(parts: list[Features]) -> Features:
    """Features of the same classes' images, taken some images at a time, as if taken at once."""
    n = sum(part.embedding.shape[1] for part in parts)
    weights = [part.embedding.shape[1] / n for part in parts]
    style = {
        name: [
            sum(weight * mean for weight, mean in zip(weights, layer, strict=True))
            for layer in zip(*(part.style[name] for part in parts), strict=True)
        ]
        for name in parts[0].style
    }
    return Features(torch.cat([part.embedding for part in parts], dim=1), style)


def stacked(groups: list[Features]) -> Features:
    """Features of some classes after those of others."""
    style = {
        name: [torch.cat(layer) for layer in zip(*(group.style[name] for group in groups), strict=True)]
        for name in groups[0].style
    }
    return Features(torch.cat([group.embedding for group in groups]), style)


class Matcher:
    """An objective under a network; what `--compile` makes two graphs of: a part of the real images, and the rest."""

    def __init__(self, net: Network, objective: Objective, statistics: Statistics, args: Namespace):
        self.net, self.objective, self.statistics, self.args = net, objective, statistics, args
        self._features, self._syn_terms = compiled(features, args), compiled(self._eager_syn_terms, args)
        self._style_weights = None
        if statistics and getattr(args, "published_accumulator", False):
            weights = accumulator_weights(net.classifier.out_features, len(net.taps))
            self._style_weights = torch.tensor(weights, device=args.device)

    def _eager_syn_terms(
        self, net: Network, syn: Tensor, real: Features, style_weights: Tensor | None
    ) -> dict[str, Tensor]:
        weighted = self.objective(real, features(net, syn, self.statistics, self.args.precision), self.args)
        if style_weights is not None:
            for name in STYLE_TERMS & weighted.keys():
                weighted[name] = weighted[name] * style_weights
        return {name: value.sum() for name, value in weighted.items()}

    def terms(self, real: Tensor, syn: Tensor, classes: range) -> dict[str, Tensor]:
        """The weighted terms, summed over the classes given, of their augmented images [classes, n, C, H, W].

        Real images carry no gradient.
        """
        weights = None if self._style_weights is None else self._style_weights[classes.start : classes.stop]
        return self._syn_terms(self.net, syn, self.real_features(real), weights)

    @torch.no_grad()
    def real_features(self, real: Tensor) -> Features:
        classes, part = part_shape(self.net, real)
        return stacked(
            [
                merged([self._features(self.net, x, self.statistics, self.args.precision) for x in own.split(part, 1)])
                for own in real.split(classes)
            ]
        )


def part_shape(net: Network, real: Tensor) -> tuple[int, int]:
    """(classes, images of each) of real images [classes, n, C, H, W] that go through the network in one pass."""
    classes, n, _, height, width = real.shape
    most = max(1, pass_pixels(real.device) // (height * width))
    if has_batch_norm(net):  # its statistics run over all classes of a pass, as published
        return classes, n
    if n > most:
        parts = -(-n // most)
        return 1, -(-n // parts)
    # A divisor of the classes, so that all parts have the same shape and are compiled once.
    return max(c for c in range(1, classes + 1) if classes % c == 0 and (c == 1 or c * n <= most)), n


def has_batch_norm(net: Network) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
