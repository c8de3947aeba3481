"""Features of real and synthetic images under a network, and the objective on them.

Real images need no gradient, and style terms need only means over them. So they go through the network in parts. A
compiled run has two graphs: one for a part of the real images, one for the rest.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddm.device import Machine, memory_budget
from ddm.errors import UserError
from ddm.losses import PER_IMAGE, balanced
from ddm.networks import Network
from ddm.ranks import Ranks

BYTES_OF_A_PIXEL = 4 * 128 * 2 * 4  # of a pass: two maps of 128 channels in float32 are a fourth of the budget


def pass_pixels(device: str | torch.device) -> int:
    """Pixels per pass, for real images in a part and for synthetic images in a chunk if --class_chunk is 0.

    A CPU is fastest if feature maps fit its caches. An accelerator is fastest with large passes: 8,192 images of 32x32
    if it has 80 GB. Its whole memory decides, not what is free, so that two runs are computed alike.
    """
    if torch.device(device).type == "cpu":
        return 2**16
    return min(2**23, (memory_budget(str(device)) or 2**32) // BYTES_OF_A_PIXEL)


def _same(x: Tensor) -> Tensor:
    return x


class Features(NamedTuple):
    """The features of the images of several classes."""

    embedding: Tensor  # phi(x): [classes, n, D]
    style: dict[str, list[Tensor]]  # statistic -> list over tapped layers of [classes, ...]
    # [this rank's classes, ...] -> [all classes, ...], in which this rank's part keeps its gradient
    gather: Callable[[Tensor], Tensor] = _same
    # The next two only with Needs.logits, for synthetic images.
    logits: Tensor | None = None  # the outputs of a network that has finished its training: [classes, n, num_classes]
    labels: Tensor | None = None  # [classes]


# (real, syn, settings) -> weighted terms by name, each [classes].
Objective = Callable[[Features, Features, Any], dict[str, Tensor]]
# Name -> function from feature maps [classes, n, C, H, W] to a mean over the n images, [classes, ...].
Statistics = Mapping[str, Callable[[Tensor], Tensor]]


class Needs(NamedTuple):
    """The requirements of an objective besides embeddings."""

    statistics: Statistics = MappingProxyType({})  # statistics of feature maps, for `real.style` and `syn.style`
    tap: str = "published"  # the kind of layers to read, see Network.tap
    layers: tuple[int, ...] | None = None  # numbers among these layers; None: all
    all_classes: bool = False  # all classes in one pass, for a term that depends on several classes
    gathers: bool = False  # such a term reads all embeddings by Features.gather, so classes can be split over ranks
    accumulated: bool = False  # weight the style terms of classes by `accumulator_weights`
    # Statistic -> the norm of its terms' gradient at a map, relative to the gradient of all else; None: not balanced.
    balance: Mapping[str, float] | None = None
    logits: bool = False  # the outputs of a network that has finished its training, for `syn.logits`
    # A CUDA graph can hold it: it is a function of its arguments alone, and no operation waits for the device.
    captured: bool = False


STYLE_TERMS = {"L_MM", "L_CM"}


def accumulator_weights(num_classes: int, layers: int) -> list[float]:
    """The weight of each class's style term (a mean over layers) in the published scripts.

    The scripts never reset their sum: s_c = (s_{c-1} + sum over layers) / layers, and add every s_c to the loss. So the
    term of class c appears again with each later class, each time divided by `layers`.
    """
    return [sum(layers**-j for j in range(num_classes - c)) for c in range(num_classes)]


def features(
    net: Network,
    images: Tensor,
    statistics: Statistics,
    machine: Machine,
    balance: Mapping[str, float] | None = None,
) -> Features:
    """Embed images [classes, n, C, H, W] in one forward pass; `balance` is that of Needs."""
    balance = balance if statistics else None

    def split(m: Tensor) -> tuple[Tensor, list[Tensor]]:
        onward, *copies = balanced(m, [balance[name] for name in statistics], PER_IMAGE)
        return onward, copies

    with machine.autocast():
        # Networks of users may have an `embed` without `split`.
        out = net.embed(images.flatten(0, 1), split) if balance else net.embed(images.flatten(0, 1))
    embedding, maps = out if isinstance(out, tuple) else (out, [])
    shape = images.shape[:2]
    style = {
        name: [mean((m[i] if balance else m).unflatten(0, shape)) for m in maps]
        for i, (name, mean) in enumerate(statistics.items())
    }
    return Features(embedding.float().unflatten(0, shape), style)


def merged(parts: list[Features]) -> Features:
    """Merge the features of parts of the images of the same classes."""
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
    """Concatenate the features of several groups of classes."""
    style = {
        name: [torch.cat(layer) for layer in zip(*(group.style[name] for group in groups), strict=True)]
        for name in groups[0].style
    }
    return Features(torch.cat([group.embedding for group in groups]), style)


class Matcher:
    """An objective on the features of one network."""

    def __init__(
        self,
        net: Network,
        objective: Objective,
        needs: Needs,
        settings: Any,
        machine: Machine,
        ranks: Ranks | None = None,
    ):
        self.net, self.objective, self.needs, self.statistics = net, objective, needs, needs.statistics
        if needs.balance and needs.statistics and "split" not in inspect.signature(net.embed).parameters:
            raise UserError(
                f"{type(net).__name__}.embed has no argument `split`, which style terms need with --weights balanced: "
                "add it as in ddm.networks.Network, or use --weights absolute"
            )
        self.finished = copy.deepcopy(net) if needs.logits else None  # for the parameters of a trained network
        if self.finished is not None:
            self.finished.tap("none")
        self.settings, self.machine = settings, machine
        # Terms that gather over ranks are not compiled.
        self.ranks = ranks if ranks and ranks.world > 1 and needs.all_classes else None
        self._features = machine.compiled(features)
        self._syn_terms = self._eager_syn_terms if self.ranks else machine.compiled(self._eager_syn_terms)
        self._style_weights = None
        if needs.statistics and needs.accumulated:
            weights = accumulator_weights(net.classifier.out_features, len(net.taps))
            self._style_weights = torch.tensor(weights, device=machine.device)

    def _eager_syn_terms(
        self,
        net: Network,
        finished: Network | None,
        syn: Tensor,
        labels: Tensor | None,
        real: Features,
        style_weights: Tensor | None,
    ) -> dict[str, Tensor]:
        embed = self._features if self.ranks else features
        syn_features = embed(net, syn, self.statistics, self.machine, self.needs.balance)
        if finished is not None:
            with self.machine.autocast():
                logits = finished(syn.flatten(0, 1))
            syn_features = syn_features._replace(logits=logits.float().unflatten(0, syn.shape[:2]), labels=labels)
        if self.ranks:
            real, syn_features = (x._replace(gather=self._gather) for x in (real, syn_features))
        weighted = self.objective(real, syn_features, self.settings)
        if self.ranks and isinstance(weighted, dict):
            weighted = {name: self._own(value) for name, value in weighted.items()}
        check_terms(weighted, len(syn))
        if style_weights is not None:
            for name in STYLE_TERMS & weighted.keys():
                weighted[name] = weighted[name] * style_weights
        return {name: value.sum() for name, value in weighted.items()}

    def terms(self, real: Tensor, syn: Tensor, classes: range) -> dict[str, Tensor]:
        """The weighted terms, summed over the given classes, for augmented images [classes, n, C, H, W].

        Real images carry no gradient. Raises UserError if the objective returns shapes other than [classes].
        """
        weights = None if self._style_weights is None else self._style_weights[classes.start : classes.stop]
        labels = None if self.finished is None else torch.arange(classes.start, classes.stop, device=syn.device)
        try:
            terms = self._syn_terms(self.net, self.finished, syn, labels, self.real_features(real), weights)
        except KeyError as error:
            name = error.args[0] if error.args else None
            if name in self.statistics:
                raise
            raise UserError(
                f"the objective raises KeyError {name!r}: if it is a statistic of feature maps, name it in Needs"
            ) from error
        if syn.requires_grad and not any(value.requires_grad for value in terms.values()):
            raise UserError("no term of the objective depends on the synthetic images: nothing can be learnt")
        return terms

    def _gather(self, x: Tensor) -> Tensor:
        """The tensor [all classes, ...] of all ranks, in which this rank's part keeps its gradient."""
        classes = self.net.classifier.out_features
        return self.ranks.gathered(x, [len(self.ranks.share(classes, rank)) for rank in range(self.ranks.world)])

    def _own(self, term: Tensor) -> Tensor:
        """This rank's classes of a term [all classes]; the others add their gradient, but not their value."""
        classes = self.net.classifier.out_features
        share = self.ranks.share(classes)
        if not isinstance(term, Tensor) or term.shape != (classes,):
            return term
        others = term.sum() - term[share].sum()
        return term[share] + (others - others.detach()) / len(share)

    @torch.no_grad()
    def real_features(self, real: Tensor) -> Features:
        """Features of real images [classes, n, C, H, W], computed in parts."""
        classes, part = part_shape(self.net, real)
        return stacked(
            [
                merged([self._features(self.net, x, self.statistics, self.machine) for x in group.split(part, 1)])
                for group in real.split(classes)
            ]
        )


def check_terms(weighted: object, classes: int) -> None:
    """Raise UserError unless an objective returned a dict of tensors [classes]."""
    if not isinstance(weighted, dict) or not weighted:
        found = "an empty dict" if isinstance(weighted, dict) else f"a {type(weighted).__name__}"
        raise UserError(f"the objective returned {found}: return a dict of name -> tensor [classes]")
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
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
