"""K networks of one architecture as one network, for accelerators: a small network leaves most of a GPU idle.

Maps of the K networks are channels of one tensor [n, K * C, H, W], so that convolutions and norms have groups. Vectors
are [K, n, D], so that linear layers are one batched product. Results equal those of K single networks up to rounding.
"""

import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddm import device
from ddm.augment import DRAWS, Parameters, draw_images, drawn_ahead, operations_of, parameters
from ddm.device import Machine
from ddm.networks import BasicBlock, GroupNorm, Initial, InstanceNorm, LayerNorm, Network
from ddm.rng import all_to_device, to_device

BLOCK_BYTES = 2**28  # of draws that are made at once and go to the device in one copy
MOST_ELEMENTS = 2**31 - 1  # of a feature map: libraries of a GPU count them with 32 bits


class NotStackable(Exception):
    """A network has a layer that ROWS does not cover."""


# (layer, input, the layer's parameters and buffers [K, ...] by name, K) -> output
Row = Callable[[nn.Module, Tensor, dict[str, Tensor], int], Tensor]


def through(layer: nn.Module, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    """The output of K layers. Raises NotStackable for a layer without a row, or one that does not fit its input."""
    row = ROWS.get(type(layer))  # not of a subclass, whose `forward` may differ
    if row is None:
        raise NotStackable(type(layer).__name__)
    return row(layer, x, own, K)


def of_child(own: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The parameters of a child."""
    return {key.removeprefix(f"{name}."): value for key, value in own.items() if key.startswith(f"{name}.")}


def flattened(own: dict[str, Tensor], name: str) -> Tensor | None:
    """[K, C, ...] -> [K * C, ...]."""
    return own[name].flatten(0, 1) if name in own else None


def require(fits: bool, layer: nn.Module) -> None:
    if not fits:
        raise NotStackable(repr(layer))


def _conv(layer: nn.Conv2d, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    require(x.dim() == 4 and layer.padding_mode == "zeros", layer)
    weight, bias = flattened(own, "weight"), flattened(own, "bias")
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, K * layer.groups)


def _linear(layer: nn.Linear, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    require(x.dim() == 3, layer)
    weight = own["weight"].transpose(1, 2)
    return torch.baddbmm(own["bias"][:, None], x, weight) if "bias" in own else torch.bmm(x, weight)


def _group_norm(layer: nn.GroupNorm, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    require(x.dim() == 4, layer)
    # Autocast on CUDA would return float32.
    out = F.group_norm(x, K * layer.num_groups, flattened(own, "weight"), flattened(own, "bias"), layer.eps)
    return out.to(x.dtype)


def _layer_norm(layer: nn.LayerNorm, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    require(x.dim() == 4 and len(layer.normalized_shape) == 3 and "weight" in own and "bias" in own, layer)
    return torch.addcmul(flattened(own, "bias"), F.group_norm(x, K, eps=layer.eps), flattened(own, "weight")).to(
        x.dtype
    )


def _batch_norm(layer: nn.BatchNorm2d, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    require(x.dim() == 4 and layer.track_running_stats and layer.momentum is not None, layer)
    values = (flattened(own, name) for name in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *values, layer.training, layer.momentum, layer.eps)


def _flatten(layer: nn.Flatten, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    require((layer.start_dim, layer.end_dim) == (1, -1), layer)
    return vectors(x, K)


def _children(layer: nn.Sequential, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    for name, child in layer.named_children():
        x = through(child, x, of_child(own, name), K)
    return x


def _basic_block(layer: BasicBlock, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    body, shortcut = (through(getattr(layer, name), x, of_child(own, name), K) for name in ("body", "shortcut"))
    return torch.relu(body + shortcut)


def _pooling(layer: nn.Module, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    require(x.dim() == 4, layer)
    return layer(x)


def _elementwise(layer: nn.Module, x: Tensor, own: dict[str, Tensor], K: int) -> Tensor:
    return layer(x)


ROWS: dict[type[nn.Module], Row] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    **dict.fromkeys((nn.GroupNorm, GroupNorm, InstanceNorm), _group_norm),
    **dict.fromkeys((nn.LayerNorm, LayerNorm), _layer_norm),
    nn.BatchNorm2d: _batch_norm,
    nn.Flatten: _flatten,
    nn.Sequential: _children,
    BasicBlock: _basic_block,
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), _pooling),
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Tanh, nn.Identity), _elementwise),
}


def vectors(x: Tensor, K: int) -> Tensor:
    """Maps [n, K * C, H, W] -> vectors [K, n, C * H * W]; vectors are unchanged."""
    return x if x.dim() == 3 else x.flatten(1).unflatten(1, (K, -1)).transpose(0, 1)


class Stack:
    """K networks of one architecture. All parameters are one leaf tensor, so that an optimizer has one to step."""

    flat: Tensor
    buffers: dict[str, Tensor]

    def __init__(self, net: Network, K: int, where: str | torch.device = "meta", machine: Machine | None = None):
        """`net` is the architecture, on any device; `initialise` fills the parameters. Raises NotStackable.

        `forward` is compiled once if the machine compiles.
        """
        if type(net) is not Network:
            raise NotStackable(type(net).__name__)
        if not all(p.requires_grad for p in net.parameters()):
            raise NotStackable("frozen parameters")
        if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules()):
            raise NotStackable("hooks")  # such as those of weight_norm
        self.net, self.K = net, K
        shapes = {name: p.shape for name, p in net.named_parameters()}
        if len(shapes) < sum(1 for _ in net.named_parameters(remove_duplicate=False)):
            raise NotStackable("layers share parameters")
        self.shapes = {name: (K, *shape) for name, shape in shapes.items()}
        self.sizes = [K * shape.numel() for shape in shapes.values()]
        self.flat = torch.empty(sum(self.sizes), device=where, requires_grad=True)
        buffers = {name: b for name, b in net.named_buffers() if b.dim()}  # of BatchNorm, less its count of batches
        self.buffers = {name: torch.empty(K, *b.shape, dtype=b.dtype, device=where) for name, b in buffers.items()}
        self.forward = (machine or Machine()).compiled(self.logits)

    @functools.cached_property
    def initial(self) -> Initial:
        return Initial(self.net)

    @torch.no_grad()
    def initialise(self, generators: list[torch.Generator]) -> None:
        """Fill the parameters of each network from one of the K generators, as `networks.initialise` does."""
        vectors = torch.stack([self.initial(generator) for generator in generators])  # [K, P]
        pieces = vectors.split([size // self.K for size in self.sizes], dim=1)
        flat = torch.cat([piece.flatten() for piece in pieces])
        self.flat.copy_(to_device(flat, self.flat.device))  # in place: a compiled forward knows this tensor
        self.flat.grad = None
        for name, buffer in self.buffers.items():  # BatchNorm's
            buffer.copy_(to_device(self.initial.net.get_buffer(name), buffer.device))

    def train(self, training: bool) -> None:
        self.net.train(training)

    def vectors(self) -> Tensor:
        """The parameters of each network as one vector, in the order of `Network.parameters`: [K, P]."""
        return torch.cat([piece.view(self.K, -1) for piece in self.flat.detach().split(self.sizes)], dim=1)

    def _own(self) -> dict[str, Tensor]:
        pieces = zip(self.flat.split(self.sizes), self.shapes.items(), strict=True)
        return {name: piece.view(shape) for piece, (name, shape) in pieces} | self.buffers

    def logits(self, maps: Tensor) -> Tensor:
        """Logits [K, n, num_classes] of maps [n, K * C, H, W]. Raises NotStackable."""
        own = self._own()
        x = through(self.net.features, maps, of_child(own, "features"), self.K)
        return through(self.net.classifier, vectors(x, self.K), of_child(own, "classifier"), self.K)


def maps_of(images: Tensor) -> Tensor:
    """The images [K, n, C, H, W] of K networks -> maps [n, K * C, H, W]."""
    return images.transpose(0, 1).flatten(1, 2)


def stackable(net: Network, image: tuple[int, int, int]) -> bool:
    """Whether ROWS covers a network on the meta device that reads images [C, H, W]."""
    try:
        stack = Stack(net, 2)
        with torch.no_grad():
            stack.logits(maps_of(torch.empty(2, 2, *image, device="meta")))
    except NotStackable:
        return False
    return True


# --- what the device decides -----------------------------------------------------------------------------------


def stacks(where: str) -> bool:
    """Whether a device trains networks together by default. A CPU has no idle cores to fill: measured, it is slower."""
    return torch.device(where).type != "cpu"


def at_once(net: Network, image: tuple[int, int, int], strategy: str, batch: int, number: int, where: str) -> int:
    """How many of `number` networks are trained together: as many as the memory budget holds, in equal parts.

    1 if there is no way to train these networks together with this augmentation. `net` is on the meta device. The
    estimate is rather high; without a known size of memory it is `number`.
    """
    if number < 2 or not drawn_ahead(strategy) or not stackable(net, image):
        return 1
    budget = device.memory_budget(where)
    # The augmentation needs about 16 floats per pixel; weights have gradients, momentum and two copies for a while.
    parameters = sum(p.numel() for p in net.parameters())
    each = device.class_bytes(net, image, batch_real=4 * batch, ipc=batch) + 4 * 6 * parameters
    most = MOST_ELEMENTS // (batch * largest(net, image))
    if budget is not None:
        most = min(most, budget // each)
    most = max(1, min(number, most))
    return -(-number // -(-number // most))


def largest(net: Network, image: tuple[int, int, int]) -> int:
    """The elements of the largest map of one image, the image included."""
    return max(*device.map_sizes(net, image), math.prod(image))


def test_batch(net: Network, image: tuple[int, int, int], K: int, where: str, usual: int, most: int) -> int:
    """Images per batch of a test of K networks: `usual` on a CPU, else up to `most` within the memory budget."""
    if not stacks(where):
        return usual
    budget = device.memory_budget(where)
    if budget is None:
        return min(usual, most)
    # Without a gradient only two maps are in memory at a time: less than a quarter of a training's.
    fits = budget // (K * device.class_bytes(net, image, batch_real=1, ipc=1) // 4)
    return max(1, min(most, fits, MOST_ELEMENTS // (K * largest(net, image))))


# --- draws -----------------------------------------------------------------------------------------------------


def drawn_epochs(
    generators: list[torch.Generator],
    epochs: int,
    n: int,
    batch: int,
    strategy: str,
    size: tuple[int, int],
    where: str | torch.device,
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The draws of each epoch: the order of the n images for every network, [K, n], on the CPU and on the device.

    With them the Parameters of the augmentation, [K, n, 17], on the device; None without augmentation. Every generator
    draws what the training of a single network draws. Draws of many epochs go up in one copy.
    """
    K, augmented = len(generators), bool(operations_of(strategy))
    most = max(1, BLOCK_BYTES // (K * n * (8 + 4 * len(Parameters._fields))))
    for first in range(0, epochs, most):
        count = min(most, epochs - first)
        order = torch.empty(count, K, n, dtype=torch.long)
        operation, numbers = torch.zeros(count, K, n, dtype=torch.long), torch.zeros(count, K, n, DRAWS)
        for k, generator in enumerate(generators):
            for e in range(count):
                order[e, k] = torch.randperm(n, generator=generator)
                for at in range(0, n if augmented else 0, batch):
                    part = (e, k, slice(at, min(at + batch, n)))
                    operation[part], numbers[part] = draw_images(strategy, len(order[part]), size, generator)
        drawn = {"order": order} | ({"rows": parameters(operation, numbers, size)} if augmented else {})
        there = all_to_device(drawn, where)
        for e in range(count):
            yield order[e], there["order"][e], there["rows"][e] if augmented else None
