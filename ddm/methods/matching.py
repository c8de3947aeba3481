"""Real and synthetic images under a network: the features and statistics that are matched.

Matching needs only embeddings of real images and means over them, so real images go through the network in parts,
without gradients. `--compile` makes two graphs of this: one of a part, one of the rest.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddm.device import Machine
from ddm.errors import UserError
from ddm.networks import Network


def pass_pixels(device: str | torch.device) -> int:
    """Pixels in one pass: of real images in a part, and of synthetic ones in a chunk when --class_chunk is 0.

    A CPU is fastest while feature maps stay in its caches; an accelerator wants large passes.
    """
    return 2**16 if torch.device(device).type == "cpu" else 2**20


class Features(NamedTuple):
    """Several classes' images under a network."""

    embedding: Tensor  # phi(x): [classes, n, D]
    style: dict[str, list[Tensor]]  # by name, over tapped layers: a statistic of the feature maps, [classes, ...]


# (real, syn, settings) -> the weighted terms by name, each [classes].
Objective = Callable[[Features, Features, Any], dict[str, Tensor]]
# By name: feature maps [classes, n, C, H, W] -> a mean over the n images, [classes, ...].
Statistics = Mapping[str, Callable[[Tensor], Tensor]]


class Needs(NamedTuple):
    """What an objective needs beyond embeddings."""

    statistics: Statistics = MappingProxyType({})  # of feature maps, found in `real.style` and `syn.style`
    tap: str = "published"  # where feature maps are read, see Network.tap
    layers: tuple[int, ...] | None = None  # which of these layers; None: all
    all_classes: bool = False  # all classes in one pass, for a term that runs over classes
    accumulated: bool = False  # weight the style terms of classes by `accumulator_weights`


STYLE_TERMS = {"L_MM", "L_CM"}


def accumulator_weights(num_classes: int, layers: int) -> list[float]:
    """The factor of each class's style term, a mean over layers, where the sum is never reset.

    The published scripts keep s_c = (s_{c-1} + sum over layers) / layers and add every s_c to the loss. So the term of
    class c comes again with each later class, divided by `layers` once more.
    """
    return [sum(layers**-j for j in range(num_classes - c)) for c in range(num_classes)]


def features(net: Network, images: Tensor, statistics: Statistics, machine: Machine) -> Features:
    """Embed images [classes, n, C, H, W] in one forward pass."""
    with machine.autocast():
        out = net.embed(images.flatten(0, 1))
    embedding, maps = out if isinstance(out, tuple) else (out, [])
    shape = images.shape[:2]
    style = {name: [mean(m.unflatten(0, shape)) for m in maps] for name, mean in statistics.items()}
    return Features(embedding.float().unflatten(0, shape), style)


def merged(parts: list[Features]) -> Features:
    """Features of the same classes' images, computed in parts, as if computed at once."""
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
    """Features of several groups of classes, one after the other."""
    style = {
        name: [torch.cat(layer) for layer in zip(*(group.style[name] for group in groups), strict=True)]
        for name in groups[0].style
    }
    return Features(torch.cat([group.embedding for group in groups]), style)


class Matcher:
    """An objective under a network. `--compile` makes two graphs of it: a part of the real images, and the rest."""

    def __init__(self, net: Network, objective: Objective, needs: Needs, settings: Any, machine: Machine):
        self.net, self.objective, self.statistics = net, objective, needs.statistics
        self.settings, self.machine = settings, machine
        self._features, self._syn_terms = machine.compiled(features), machine.compiled(self._eager_syn_terms)
        self._style_weights = None
        if needs.statistics and needs.accumulated:
            weights = accumulator_weights(net.classifier.out_features, len(net.taps))
            self._style_weights = torch.tensor(weights, device=machine.device)

    def _eager_syn_terms(
        self, net: Network, syn: Tensor, real: Features, style_weights: Tensor | None
    ) -> dict[str, Tensor]:
        weighted = self.objective(real, features(net, syn, self.statistics, self.machine), self.settings)
        check_terms(weighted, len(syn))
        if style_weights is not None:
            for name in STYLE_TERMS & weighted.keys():
                weighted[name] = weighted[name] * style_weights
        return {name: value.sum() for name, value in weighted.items()}

    def terms(self, real: Tensor, syn: Tensor, classes: range) -> dict[str, Tensor]:
        """The weighted terms, summed over the given classes, of their augmented images [classes, n, C, H, W].

        Real images carry no gradient. Raises UserError where the objective returns other shapes than [classes].
        """
        weights = None if self._style_weights is None else self._style_weights[classes.start : classes.stop]
        return self._syn_terms(self.net, syn, self.real_features(real), weights)

    @torch.no_grad()
    def real_features(self, real: Tensor) -> Features:
        """Features of real images [classes, n, C, H, W], computed in parts."""
        classes, part = part_shape(self.net, real)
        return stacked(
            [
                merged([self._features(self.net, x, self.statistics, self.machine) for x in own.split(part, 1)])
                for own in real.split(classes)
            ]
        )


def check_terms(weighted: object, classes: int) -> None:
    """Raise UserError unless an objective returned a dict of tensors [classes]."""
    if not isinstance(weighted, dict):
        found = type(weighted).__name__
        raise UserError(f"the objective returned a {found}: return a dict of name -> tensor [classes]")
    for name, value in weighted.items():
        if not isinstance(value, Tensor) or value.shape != (classes,):
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"the objective's term {name!r} is {found}: return one value per class, [{classes}], not their mean"
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
