"""The architectures of the DC/DSA/DM family, with taps for feature maps.

Every network is a `Network`: a stack `features`, flattened into the embedding phi(x), and one linear `classifier`. The
forms `_gram` and `_style` (equal) of a network also return the feature maps F^l at its taps. Parameters have the
published order and shapes (github.com/VICO-UoE/DatasetCondensation). The classifier adapts to the image size; the
published AlexNet, VGG and ResNet accept 32x32 only.
"""

import copy
import itertools
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddm.errors import UserError, lookup
from ddm.rng import to_device

# --- the network -----------------------------------------------------------------------------------------


Split = Callable[[Tensor], tuple[Tensor, Any]]


class Network(nn.Module):
    """A feature stack and a linear classifier: `net(x)` returns logits [n, num_classes].

    `embed(x)` returns the embedding phi(x) [n, D]. If `taps` is not empty, it returns `(embedding, maps)`: maps is a
    list over layers of [n, C, H, W], in forward order. `split(map)` returns two values: the next layer
    reads the first, and `maps` has the second. `sites` are the layers that taps can read, by kind (see `tap`).
    """

    def __init__(
        self,
        layers: list[nn.Module],
        embed_dim: int,
        num_classes: int,
        taps: tuple[int, ...] = (),
        sites: dict[str, tuple[int, ...]] | None = None,
    ):
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(embed_dim, num_classes)
        self.taps, self.sites = taps, sites or {}

    def tap(self, kind: str = "published", layers: list[int] | None = None) -> None:
        """Read feature maps after every layer of a kind ('conv', 'norm', 'act', 'pool', 'published', 'none').

        `layers` selects some of them by number, from 0. Raises UserError for a kind or layer that the network lacks.
        """
        if kind == "none":
            self.taps = ()
            return
        sites = self.sites.get(kind, ())
        if not sites:
            has = ", ".join(self.sites)
            remedy = f"choose from {has}" if has else "take another network, or declare its sites (docs/extending.md)"
            raise UserError(f"has no {kind} feature maps to match: {remedy}")
        wrong = [layer for layer in layers or [] if layer >= len(sites)]
        if wrong:
            raise UserError(f"has no layer {wrong[0]} of kind {kind}, only 0 to {len(sites) - 1}")
        self.taps = sites if layers is None else tuple(sites[layer] for layer in layers)

    def _features(self, x: Tensor, split: Split | None = None) -> tuple[Tensor, list]:
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                x, tapped = split(x) if split else (x, x)
                maps.append(tapped)
                if i + 1 < len(self.features) and getattr(self.features[i + 1], "inplace", False):
                    x = x.clone()  # the next layer works in place
        return x.flatten(1), maps

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self._features(x)[0])

    def embed(self, x: Tensor, split: Split | None = None) -> Tensor | tuple[Tensor, list]:
        embedding, maps = self._features(x, split)
        return (embedding, maps) if self.taps else embedding

    @property
    def module(self) -> "Network":
        """The network itself: DM-family scripts call `net.module.embed` on machines with several GPUs."""
        return self


# --- parts -----------------------------------------------------------------------------------------------


class GroupNorm(nn.GroupNorm):
    """A group norm that returns the input's type, also under autocast on CUDA, which would return float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """A layer norm that returns the input's type, also under autocast on CUDA, which would return float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class InstanceNorm(GroupNorm):
    """One group per channel, as published.

    Under torch.compile it uses explicit operations, which are fused with the next layers. They compute in float32 and
    return the input's type.
    """

    def __init__(self, channel: int):
        super().__init__(channel, channel)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        var, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0, keepdim=True)
        scale = (var + self.eps).rsqrt() * self.weight[:, None, None]
        return ((x.float() - mean) * scale + self.bias[:, None, None]).to(x.dtype)


NORMS: dict[str, Callable[[int, int, int], nn.Module | None]] = {
    "none": lambda c, h, w: None,
    "batchnorm": lambda c, h, w: nn.BatchNorm2d(c),
    "layernorm": lambda c, h, w: LayerNorm([c, h, w]),
    "instancenorm": lambda c, h, w: InstanceNorm(c),
    "groupnorm": lambda c, h, w: GroupNorm(4, c),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leakyrelu": lambda: nn.LeakyReLU(negative_slope=0.01, inplace=True),
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
}
POOLINGS: dict[str, Callable[[], nn.Module | None]] = {
    "none": lambda: None,
    "maxpooling": lambda: nn.MaxPool2d(2),
    "avgpooling": lambda: nn.AvgPool2d(2),
}


class Trunk:
    """A growing list of layers, with the output shape [C, H, W] of the last one.

    Raises UserError if the image is too small for a layer.
    """

    def __init__(self, channel: int, im_size: tuple[int, int]):
        self.channel, (self.height, self.width) = channel, im_size
        self.im_size = tuple(im_size)
        self.layers: list[nn.Module] = []
        self.sites: dict[str, list[int]] = {}
        # The first convolution pads MNIST-like 1x28x28 input to 32x32: 2 more pixels on each side.
        self.extra_padding = 2 if channel == 1 and self.im_size == (28, 28) else 0

    @property
    def size(self) -> int:
        return self.channel * self.height * self.width

    def add(self, layer: nn.Module | None, kind: str | None = None) -> None:
        if layer is not None:
            self.layers.append(layer)
            if kind:
                self.site(kind)

    def site(self, kind: str) -> None:
        """Register the output of the last layer as a site for taps of a kind."""
        self.sites.setdefault(kind, []).append(len(self.layers) - 1)

    def conv(self, channel: int, kernel: int, padding: int, bias: bool = True) -> None:
        padding += self.extra_padding if not self.layers else 0
        self.add(nn.Conv2d(self.channel, channel, kernel, padding=padding, bias=bias), "conv")
        grow = 2 * padding - kernel + 1
        self.channel, self.height, self.width = channel, self.height + grow, self.width + grow
        if min(self.height, self.width) < 1:
            self._too_small()

    def make_norm(self, kind: str) -> nn.Module | None:
        if kind == "instancenorm" and self.height * self.width <= 1:
            self._too_small()  # one pixel minus its own mean is 0: the network would be constant
        return lookup(NORMS, kind, "norm")(self.channel, self.height, self.width)

    def norm(self, kind: str) -> None:
        self.add(self.make_norm(kind), "norm")

    def act(self, kind: str) -> None:
        self.add(lookup(ACTIVATIONS, kind, "activation")(), "act")

    def pool(self, kind: str, last: bool = False) -> None:
        """Halve the map, unless later layers would then normalise a single pixel (tiny images, deep networks)."""
        layer = lookup(POOLINGS, kind, "pooling")()
        if layer is not None and (min(self.height, self.width) >= 4 or (last and min(self.height, self.width) >= 2)):
            self.add(layer, "pool")
            self.height, self.width = self.height // 2, self.width // 2

    def network(self, num_classes: int, tapped: bool, published: list[int]) -> Network:
        """The finished network; `published` are the layers that its published tapped form reads."""
        sites = {kind: tuple(at) for kind, at in {**self.sites, "published": published}.items()}
        return Network(self.layers, self.size, num_classes, sites["published"] if tapped else (), sites)

    def _too_small(self) -> None:
        raise UserError(f"images of {self.im_size[0]}x{self.im_size[1]} are too small for it; choose a ConvNet")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `pooled` replaces strides by average pooling."""

    def __init__(self, trunk: Trunk, channel: int, stride: int, norm: str, pooled: bool):
        super().__init__()
        in_channel, conv_stride = trunk.channel, 1 if pooled else stride
        pool = [nn.AvgPool2d(2)] if pooled and stride == 2 else []
        if stride == 2:  # a 3x3 convolution of stride 2 rounds up, a pooling down
            trunk.height, trunk.width = ((s + (not pooled)) // 2 for s in (trunk.height, trunk.width))
        trunk.channel = channel
        self.body = nn.Sequential(
            nn.Conv2d(in_channel, channel, 3, stride=conv_stride, padding=1, bias=False),
            trunk.make_norm(norm),
            nn.ReLU(inplace=True),
            *pool,
            nn.Conv2d(channel, channel, 3, padding=1, bias=False),
            trunk.make_norm(norm),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channel != channel:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channel, channel, 1, stride=conv_stride, bias=False), *pool, trunk.make_norm(norm)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


# --- architectures: one function each. Published taps: ConvNet and VGG after every activation, ------------
# --- AlexNet after its first two poolings, ResNet18 after the stem and the first two stages    ------------


def ConvNet(
    channel: int,
    num_classes: int,
    net_width: int = 128,
    net_depth: int | None = None,
    net_act: str = "relu",
    net_norm: str = "instancenorm",
    net_pooling: str = "avgpooling",
    im_size: tuple[int, int] = (32, 32),
    tapped: bool = False,
) -> Network:
    """`net_depth` blocks of 3x3 convolution, norm, activation, pooling (DC, Zhao et al. 2021).

    Without `net_depth` the image size determines it, see `default_depth`.
    """
    trunk = Trunk(channel, im_size)
    net_depth = net_depth or default_depth(im_size)
    for depth in range(net_depth):
        trunk.conv(net_width, 3, padding=1)
        trunk.norm(net_norm)
        trunk.act(net_act)
        trunk.pool(net_pooling, last=depth == net_depth - 1)
    # The published losses read the activation (of the in-place ReLU).
    return trunk.network(num_classes, tapped, trunk.sites.get("act", []))


def default_depth(im_size: tuple[int, int]) -> int:
    """The usual number of ConvNet blocks for an image size: 3 up to 32 pixels, 4 at 64, 5 at 128, 6 at 256."""
    return max(3, round(math.log2(max(im_size))) - 2)


def MLP(channel: int, num_classes: int, im_size: tuple[int, int] = (32, 32)) -> Network:
    """Two hidden layers of width 128."""
    width = channel * im_size[0] * im_size[1]
    layers = [nn.Flatten(), nn.Linear(width, 128), nn.ReLU(inplace=True), nn.Linear(128, 128), nn.ReLU(inplace=True)]
    return Network(layers, 128, num_classes)


def LeNet(channel: int, num_classes: int, im_size: tuple[int, int] = (32, 32)) -> Network:
    """Two 5x5 convolutions and two hidden linear layers."""
    trunk = Trunk(channel, im_size)
    for width in (6, 16):
        trunk.conv(width, 5, padding=0)
        trunk.act("relu")
        trunk.pool("maxpooling", last=True)
    hidden = [nn.Linear(trunk.size, 120), nn.ReLU(inplace=True), nn.Linear(120, 84), nn.ReLU(inplace=True)]
    return Network([*trunk.layers, nn.Flatten(), *hidden], 84, num_classes)


def AlexNet(
    channel: int,
    num_classes: int,
    im_size: tuple[int, int] = (32, 32),
    norm: str = "none",
    tapped: bool = False,
) -> Network:
    """Five convolutions, three poolings (the small AlexNet of the DC code)."""
    trunk = Trunk(channel, im_size)
    for width, kernel, pooled in ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True)):
        trunk.conv(width, kernel, padding=kernel // 2)
        trunk.norm(norm)
        trunk.act("relu")
        if pooled:
            trunk.pool("maxpooling")
            trunk.site("after pool")  # the pooling, or the layer before it if the image is too small to pool
    return trunk.network(num_classes, tapped, trunk.sites.pop("after pool")[:2])


def VGG11(
    channel: int,
    num_classes: int,
    im_size: tuple[int, int] = (32, 32),
    norm: str = "instancenorm",
    tapped: bool = False,
) -> Network:
    """Eight 3x3 convolutions in five groups; each group ends in a pooling."""
    trunk = Trunk(channel, im_size)
    for group, widths in enumerate(((64,), (128,), (256, 256), (512, 512), (512, 512))):
        for width in widths:
            trunk.conv(width, 3, padding=1)
            trunk.norm(norm)
            trunk.act("relu")
        trunk.pool("maxpooling", last=group == 4)
    return trunk.network(num_classes, tapped, trunk.sites["act"])


def ResNet18(
    channel: int,
    num_classes: int,
    im_size: tuple[int, int] = (32, 32),
    norm: str = "instancenorm",
    pooled: bool = False,
    tapped: bool = False,
) -> Network:
    """Four stages of two basic blocks; `pooled` (the AP form) has average pooling for strides and no final pooling."""
    trunk = Trunk(channel, im_size)
    trunk.extra_padding = 0  # the published ResNets do not pad 28x28
    trunk.conv(64, 3, padding=1, bias=False)
    trunk.norm(norm)
    trunk.act("relu")
    stages = [len(trunk.layers) - 1]
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks = [BasicBlock(trunk, width, s, norm, pooled) for s in (stride, 1)]
        trunk.add(nn.Sequential(*blocks))
        stages.append(len(trunk.layers) - 1)
    if not pooled:
        window = min(4, trunk.height, trunk.width)
        trunk.add(nn.AvgPool2d(window))
        trunk.height, trunk.width = trunk.height // window, trunk.width // window
    trunk.sites = {}  # the layers inside the stages can't be read
    return trunk.network(num_classes, tapped, stages[:3])


# --- names -----------------------------------------------------------------------------------------------

AlexNetBN = partial(AlexNet, norm="batchnorm")
VGG11BN = partial(VGG11, norm="batchnorm")
ResNet18BN = partial(ResNet18, norm="batchnorm")
ResNet18BN_AP = partial(ResNet18, norm="batchnorm", pooled=True)

UNTAPPED: dict[str, Callable[..., Network]] = {"MLP": MLP, "LeNet": LeNet}
TAPPABLE: dict[str, Callable[..., Network]] = {
    "ConvNet": ConvNet,
    **{f"ConvNetD{depth}": partial(ConvNet, net_depth=depth) for depth in (1, 2, 3, 4, 5)},
    **{f"ConvNetW{width}": partial(ConvNet, net_width=width) for width in (32, 64, 128, 256)},
    "ConvNetAS": partial(ConvNet, net_act="sigmoid"),
    "ConvNetAR": partial(ConvNet, net_act="relu"),
    "ConvNetAL": partial(ConvNet, net_act="leakyrelu"),
    "ConvNetASwish": partial(ConvNet, net_act="swish"),
    "ConvNetASwishBN": partial(ConvNet, net_act="swish", net_norm="batchnorm"),
    "ConvNetNN": partial(ConvNet, net_norm="none"),
    "ConvNetBN": partial(ConvNet, net_norm="batchnorm"),
    "ConvNetLN": partial(ConvNet, net_norm="layernorm"),
    "ConvNetIN": partial(ConvNet, net_norm="instancenorm"),
    "ConvNetGN": partial(ConvNet, net_norm="groupnorm"),
    "ConvNetNP": partial(ConvNet, net_pooling="none"),
    "ConvNetMP": partial(ConvNet, net_pooling="maxpooling"),
    "ConvNetAP": partial(ConvNet, net_pooling="avgpooling"),
    "AlexNet": AlexNet,
    "AlexNetBN": AlexNetBN,
    "VGG11": VGG11,
    "VGG11BN": VGG11BN,
    "ResNet18": ResNet18,
    "ResNet18BN": ResNet18BN,
    "ResNet18BN_AP": ResNet18BN_AP,
}
TAPPED: dict[str, Callable[..., Network]] = {
    name + suffix: partial(make, tapped=True) for name, make in TAPPABLE.items() for suffix in ("_gram", "_style")
}
ARCHITECTURES: dict[str, Callable[..., Network]] = {**UNTAPPED, **TAPPABLE, **TAPPED}
DEFAULT_RESETS = (nn.Conv2d.reset_parameters, nn.Linear.reset_parameters)
BUILT_IN = frozenset(ARCHITECTURES.values())  # others are the user's


def description(model: str, im_size: tuple[int, int]) -> str:
    """The name of a network, with its depth if the image size determines it."""
    make = ARCHITECTURES[model]
    while isinstance(make, partial) and "net_depth" not in make.keywords:
        make = make.func
    return f"{model} of depth {default_depth(im_size)}" if make is ConvNet else model


def untapped(model: str) -> str:
    """The name without the suffix of the tapped form, which has the same parameters."""
    return model.removesuffix("_gram").removesuffix("_style") if model in TAPPED else model


def get_network(model: str, channel: int, num_classes: int, im_size: tuple[int, int] = (32, 32)) -> Network:
    """Build the network named `model` with torch's default initialisation, on the default device.

    Unlike the published function it never reseeds torch. Raises UserError for an unknown name, for images too small
    for the network, or for a network that `initialise` can't fill.
    """
    make = lookup(ARCHITECTURES, model, "model")
    try:
        net = make(channel, num_classes, im_size=tuple(im_size))
        if make not in BUILT_IN:
            outputs = getattr(net.classifier, "out_features", None)
            if outputs != num_classes:
                raise UserError(f"its classifier has {outputs} outputs: give it num_classes, here {num_classes}")
            check_initialised(net)
    except UserError as error:
        raise UserError(f"model {model}: {error}") from None
    return net


@torch.no_grad()
def check_initialised(net: nn.Module) -> None:
    """Raise UserError unless `initialise` sets every parameter and buffer of a network on any device."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        net = copy.deepcopy(net).to_empty(device="cpu")
        values = dict(itertools.chain(net.named_parameters(), net.named_buffers()))
        values = {name: x for name, x in values.items() if x.is_floating_point()}
        for x in values.values():
            x.fill_(torch.nan)
        initialise(net, torch.Generator().manual_seed(0))
    left = [name for name, x in values.items() if not x.isfinite().all()]
    if left:
        raise UserError(f"its {left[0]} has no initial value: set it in reset_parameters() of its module")


def default_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The weight, and the bias if it has one, of a convolution or linear layer with torch's default initialisation."""
    if not isinstance(module, nn.Conv2d | nn.Linear) or type(module).reset_parameters not in DEFAULT_RESETS:
        return []
    parameters = dict(module.named_parameters(recurse=False))
    return [parameters[name] for name in ("weight", "bias") if name in parameters] if "weight" in parameters else []


@torch.no_grad()
def initialise(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Initialise all parameters in place from torch's default distributions.

    Convolutions and linear layers: uniform in +-1/sqrt(fan_in). Norms: weight 1, bias 0, running statistics reset.
    Other modules, and subclasses with their own `reset_parameters`, are initialised by that method. Draws are made on
    the generator's device (the CPU), so that all devices get the same networks.
    """
    for module in net.modules():
        if parameters := default_parameters(module):
            bound = parameters[0][0].numel() ** -0.5
            for parameter in parameters:
                draw = torch.rand(parameter.shape, generator=generator, device=generator.device)
                parameter.copy_(to_device(draw.mul_(2 * bound).sub_(bound), parameter.device))
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return net


class Initial:
    """Draws the parameters that `initialise` draws, the same bits, as one vector on the CPU.

    A call changes nothing but its generator, so that several threads can make calls. Modules that draw from torch's
    global generator when they are reset are drawn here from a seed that the call's generator gives.
    """

    def __init__(self, net: nn.Module):
        """Read shapes and constants from a network on any device."""
        self.net = copy.deepcopy(net).to_empty(device="cpu")
        self.lock = threading.Lock()
        first, second = self._reset(0), self._reset(1)
        self.spans: list[tuple[slice, float]] = []  # in the order of the draws: where, and the bound of the values
        ends = itertools.accumulate(p.numel() for p in self.net.parameters())  # in the vector of `flat`
        at = {id(p): slice(end - p.numel(), end) for p, end in zip(self.net.parameters(), ends, strict=True)}
        for module in self.net.modules():
            if parameters := default_parameters(module):
                bound = parameters[0][0].numel() ** -0.5
                self.spans += [(at[id(p)], bound) for p in parameters]
        for where, _ in self.spans:
            first[where] = second[where] = 0
        self.constants = first if torch.equal(first, second) else None

    def __call__(self, generator: torch.Generator) -> Tensor:
        """The parameters [P] of a fresh network, float32."""
        if self.constants is None:
            return self._reset(int(torch.randint(2**62, (1,), generator=generator)), generator)
        vector = self.constants.clone()
        for where, bound in self.spans:
            vector[where].uniform_(generator=generator).mul_(2 * bound).sub_(bound)
        return vector

    def _reset(self, seed: int, generator: torch.Generator | None = None) -> Tensor:
        with self.lock, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's generators too
            return flat(initialise(self.net, generator or torch.Generator("cpu")))


@torch.no_grad()
def flat(net: nn.Module) -> Tensor:
    """All parameters as one vector; running statistics of BatchNorm are left out."""
    return torch.cat([p.flatten() for p in net.parameters()])


@torch.no_grad()
def assign(net: nn.Module, vector: Tensor) -> None:
    """Set all parameters from one vector."""
    parameters = list(net.parameters())
    pieces = vector.split([p.numel() for p in parameters])
    torch._foreach_copy_(parameters, [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)])


def empty_network(
    model: str, channel: int, num_classes: int, im_size: tuple[int, int], device: str | torch.device
) -> Network:
    """`get_network` on a device, with parameters that `initialise` must fill; draws nothing from a generator."""
    with torch.device("meta"):
        net = get_network(model, channel, num_classes, im_size)
    return net.to_empty(device=device)
