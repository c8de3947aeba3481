"""Differentiable Siamese Augmentation (Zhao & Bilen, ICML 2021, arXiv 2102.08259), batched.

Parameters are drawn on the CPU, so that all devices augment equally. They are applied on the images' device without a
loop over images.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddm.errors import UserError, lookup
from ddm.rng import to_device


@dataclass
class ParamDiffAug:
    """The strength of each operation; defaults are the published values."""

    aug_mode: str = "S"  # 'S': one operation of the strategy per call; 'M': all of them, in order
    prob_flip: float = 0.5
    ratio_scale: float = 1.2
    ratio_rotate: float = 15.0  # degrees
    ratio_crop_pad: float = 0.125  # of the image size
    ratio_cutout: float = 0.5  # of the image size
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    # For published scripts that read them; DiffAugment uses its argument `seed` instead.
    Siamese: bool = False
    latestseed: int = -1


# --- operations: how each draws its numbers, and how it uses them --------------------------------------------


def _largest_shift(size: int, param: ParamDiffAug) -> int:
    """The largest shift of a crop, in pixels."""
    return int(size * param.ratio_crop_pad + 0.5)


def _cutout_side(size: int, param: ParamDiffAug) -> int:
    """The side of a cutout, in pixels."""
    return int(size * param.ratio_cutout + 0.5)


def _color(x: Tensor, param: ParamDiffAug, b: Tensor, t: Tensor, k: Tensor) -> Tensor:
    b, t, k = (draw.view(-1, 1, 1, 1) for draw in (b, t, k))
    x = x + (b - 0.5) * param.brightness
    gray = x.mean(dim=1, keepdim=True)
    x = (x - gray) * (t * param.saturation) + gray
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (k + param.contrast) + mean


def _crop(x: Tensor, param: ParamDiffAug, *shifts: Tensor) -> Tensor:
    for dim, shift in zip((2, 3), shifts, strict=True):  # along rows, then columns
        size = x.shape[dim]
        source = torch.arange(size, device=x.device) + shift[:, None]  # [n, size]
        inside = (source >= 0) & (source < size)
        shape = (-1, 1, size, 1) if dim == 2 else (-1, 1, 1, size)
        source, inside = source.clamp(0, size - 1).view(shape), inside.view(shape)
        x = torch.take_along_dim(x, source, dim=dim) * inside
    return x


def _cutout(x: Tensor, param: ParamDiffAug, *centres: Tensor) -> Tensor:
    covered = []
    for size, centre in zip(x.shape[2:], centres, strict=True):
        cut = _cutout_side(size, param)
        first = centre[:, None] - cut // 2  # [n, 1]
        at = torch.arange(size, device=x.device)
        covered.append((at >= first) & (at < first + cut))  # [n, size]
    rows, columns = covered
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _flip(x: Tensor, param: ParamDiffAug, draw: Tensor) -> Tensor:
    return torch.where(draw.view(-1, 1, 1, 1) < param.prob_flip, x.flip(3), x)


def _scale(x: Tensor, param: ParamDiffAug, *draws: Tensor) -> Tensor:
    low, high = 1 / param.ratio_scale, param.ratio_scale
    sx, sy = (draw * (high - low) + low for draw in draws)
    zero = torch.zeros_like(sx)
    return _affine(x, [[sx, zero, zero], [zero, sy, zero]])


def _rotate(x: Tensor, param: ParamDiffAug, draw: Tensor) -> Tensor:
    angle = (draw - 0.5) * 2 * math.radians(param.ratio_rotate)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _affine(x, [[cos, -sin, zero], [sin, cos, zero]])


def _affine(x: Tensor, rows: list[list[Tensor]]) -> Tensor:
    theta = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # [n, 2, 3]
    grid = F.affine_grid(theta, [theta.shape[0], *x.shape[1:]], align_corners=False)
    return F.grid_sample(x, grid.expand(x.shape[0], -1, -1, -1), align_corners=False)


class Operation(NamedTuple):
    """An augmentation: how it draws random numbers, and how it applies them."""

    # the images' size (H, W), strengths, a source of uniform numbers, one of integers in [low, high) -> numbers [n]
    draw: Callable[
        [tuple[int, int], ParamDiffAug, Callable[[], Tensor], Callable[[int, int], Tensor]], tuple[Tensor, ...]
    ]
    apply: Callable[..., Tensor]  # x [N, C, H, W], strengths, the numbers, [N] or [1] each -> x


DRAWS = 3  # numbers that an operation draws, at most
OPERATIONS: dict[str, Operation] = {
    "color": Operation(lambda size, param, uniform, integers: (uniform(), uniform(), uniform()), _color),
    "crop": Operation(
        lambda size, param, uniform, integers: tuple(
            integers(-_largest_shift(s, param), _largest_shift(s, param) + 1) for s in size
        ),
        _crop,
    ),
    "cutout": Operation(
        lambda size, param, uniform, integers: tuple(integers(0, s + 1 - _cutout_side(s, param) % 2) for s in size),
        _cutout,
    ),
    "flip": Operation(lambda size, param, uniform, integers: (uniform(),), _flip),
    "scale": Operation(lambda size, param, uniform, integers: (uniform(), uniform()), _scale),
    "rotate": Operation(lambda size, param, uniform, integers: (uniform(),), _rotate),
}
BUILT_IN = dict(OPERATIONS)  # a program may change OPERATIONS


def numbers_of_images(
    operation: Operation, n: int, size: tuple[int, int], param: ParamDiffAug, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """The numbers of an operation for n images, each [n], on the CPU."""
    return operation.draw(
        size,
        param,
        lambda: torch.rand(n, generator=generator, device="cpu"),
        lambda low, high: torch.randint(low, high, (n,), generator=generator, device="cpu"),
    )


def numbers_of_class(
    operation: Operation, seeds: Iterator[int], size: tuple[int, int], param: ParamDiffAug
) -> tuple[Tensor, ...]:
    """The numbers of an operation for all images of a class, each [1], from the next seeds."""

    def fresh() -> torch.Generator:
        return torch.Generator("cpu").manual_seed(next(seeds))

    return operation.draw(
        size,
        param,
        lambda: torch.rand(1, generator=fresh()),
        lambda low, high: torch.randint(low, high, (1,), generator=fresh()),
    )


UNAUGMENTED = ("", "none", "None")  # strategies without an operation


def operations_of(strategy: str) -> list[Operation]:
    """The operations in a strategy string, [] for 'none'; raises UserError for an unknown operation."""
    if strategy in UNAUGMENTED:
        return []
    for mark in (",", "+", " ", "-"):
        if mark in strategy:
            raise UserError(f"--dsa_strategy {strategy!r}: join the operations by _, such as color_crop_flip")
    return [lookup(OPERATIONS, name, "part of the DSA strategy") for name in strategy.split("_")]


def DiffAugment(
    x: Tensor,
    strategy: str = "",
    seed: int = -1,
    param: ParamDiffAug | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Augment a batch x [N, C, H, W]; gradients flow to x.

    A seed other than -1 is Siamese: one draw for the whole batch, equal for all batches with that seed. With seed -1
    each image gets different parameters, drawn from `generator` (on the CPU; None: torch's global generator). Raises
    UserError for an unknown strategy. Source: DSA, section 3.2.
    """
    operations = operations_of(strategy)
    if not operations:
        return x
    if seed != -1:
        return augment_classes(x[None], strategy, [seed], param)[0]
    param = param or ParamDiffAug()
    for operation in _one_or_all(operations, param, generator):
        numbers = numbers_of_images(operation, len(x), tuple(x.shape[2:]), param, generator)
        x = operation.apply(x, param, *(to_device(values, x.device) for values in numbers))
    return x.contiguous()


def augment_classes(x: Tensor, strategy: str, seeds: list[int], param: ParamDiffAug | None = None) -> Tensor:
    """Augment x [classes, n, C, H, W], each class like `DiffAugment` with that class's seed.

    Classes that draw the same operation are augmented together. Large classes on a CPU are not: they would not fit its
    caches. Raises UserError for an unknown strategy. Source: DSA, section 3.2.
    """
    operations = operations_of(strategy)
    if not operations:
        return x
    param = param or ParamDiffAug()
    n, size, alone = x.shape[1], tuple(x.shape[3:]), x.device.type == "cpu" and x[0].numel() > 2**17
    groups: dict[tuple[tuple[Operation, ...], int | None], list[int]] = {}
    for c, seed in enumerate(seeds):
        chosen = _one_or_all(operations, param, torch.Generator("cpu").manual_seed(seed))
        groups.setdefault((chosen, c if alone else None), []).append(c)
    done = []
    for (chosen, _), classes in groups.items():
        # seed for the operation, then seed + 1, seed + 2, ... for its numbers
        nexts = [itertools.count(seeds[c] + 1) for c in classes]
        first, last = classes[0], classes[-1]
        neighbours = last - first + 1 == len(classes)  # then a view suffices
        part = x[first : last + 1] if neighbours else x[to_device(torch.tensor(classes), x.device)]
        out = part.flatten(0, 1)
        for operation in chosen:
            drawn = zip(*(numbers_of_class(operation, seeds_, size, param) for seeds_ in nexts), strict=True)
            numbers = (to_device(torch.cat(values), x.device).repeat_interleave(n) for values in drawn)
            out = operation.apply(out, param, *numbers)
        done.append(out)
    if len(groups) == 1:
        return done[0].view_as(x).contiguous()
    out = torch.cat(done).view_as(x)
    order = torch.tensor([c for classes in groups.values() for c in classes]).argsort()
    return out if alone else out[to_device(order, x.device)]


def _one_or_all(
    operations: list[Operation], param: ParamDiffAug, generator: torch.Generator | None
) -> tuple[Operation, ...]:
    if param.aug_mode == "S":
        return (operations[int(torch.randint(0, len(operations), (1,), generator=generator, device="cpu"))],)
    if param.aug_mode != "M":
        raise UserError(f"unknown aug_mode {param.aug_mode!r}: choose 'S' (one operation per call) or 'M' (all)")
    return tuple(operations)


# --- constant shape: all operations in one call ---------------------------------------------------------------
#
# Drawing (on the CPU, at any time before) is apart from applying (on the device, without a loop, branch or sync).


class Parameters(NamedTuple):
    """What an operation does to an image of H x W pixels; tensors of parameters have these 17 in the last dimension.

    A pixel (i, j) is read at (i + row_shift, column_sign * j + column_shift). It is set to 0 outside the rectangle
    |i - row_centre| < row_half, |j - column_centre| < column_half, or within it if `inverted` is 1. If `affine` is 1,
    the pixel is instead interpolated at x = xi * i + xj * j, y = yi * i + yj * j; all coordinates are from -1 to 1. Its
    colour is then own * pixel + gray * (mean over channels) + mean * (mean of the image) + shift.
    """

    row_shift: Tensor
    row_centre: Tensor
    row_half: Tensor
    column_sign: Tensor
    column_shift: Tensor
    column_centre: Tensor
    column_half: Tensor
    inverted: Tensor
    affine: Tensor
    xi: Tensor
    yi: Tensor
    xj: Tensor
    yj: Tensor
    own: Tensor
    gray: Tensor
    mean: Tensor
    shift: Tensor


def draw_images(
    strategy: str, n: int, size: tuple[int, int], generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The draws of `DiffAugment` for n images of size (H, W): indices in BUILT_IN [n], numbers [n, DRAWS].

    One operation is drawn for all of them. `generator` is left as DiffAugment leaves it. Raises UserError for an
    unknown strategy. The strategy must have an operation.
    """
    (operation,) = _one_or_all(operations_of(strategy), ParamDiffAug(), generator)
    return _row(operation, n, numbers_of_images(operation, n, size, ParamDiffAug(), generator))


def draw_classes(strategy: str, seeds: list[int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The draws of `augment_classes`: operation [classes, 1] and numbers [classes, 1, DRAWS].

    Every class has one draw for all its images: `seed` draws the operation, seed + 1, ... its numbers.
    """
    rows, operations = [], operations_of(strategy)
    for seed in seeds:
        (operation,) = _one_or_all(operations, ParamDiffAug(), torch.Generator("cpu").manual_seed(seed))
        rows.append(_row(operation, 1, numbers_of_class(operation, itertools.count(seed + 1), size, ParamDiffAug())))
    return tuple(map(torch.stack, zip(*rows, strict=True)))


def _row(operation: Operation, n: int, drawn: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    numbers = torch.zeros(n, DRAWS)
    for k, values in enumerate(drawn):
        numbers[:, k] = values
    return torch.full((n,), list(BUILT_IN.values()).index(operation)), numbers


def drawn_ahead(strategy: str) -> bool:
    """Whether `parameters` and `applied` have all operations of a strategy, which are then those of this module.

    Raises UserError for an unknown strategy.
    """
    return all(operation in BUILT_IN.values() for operation in operations_of(strategy))


def parameters(operation: Tensor, numbers: Tensor, size: tuple[int, int]) -> Tensor:
    """The Parameters of draws, as a float32 tensor [..., len(Parameters)]: operation [...], numbers [..., DRAWS].

    To be called on the CPU, so that all devices augment equally.
    """
    param, (H, W) = ParamDiffAug(), size
    first, second, third = numbers.unbind(-1)
    of = {name: operation == k for k, name in enumerate(BUILT_IN)}

    def chosen(default: float, **values: Tensor | float) -> Tensor:
        out = torch.full_like(first, default)
        for name, value in values.items():
            out = torch.where(of[name], value, out)
        return out

    def rectangle(size: int, draw: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and half length: the pixels that a crop fills, those that a cutout covers, else all."""
        low, high = (-draw).clamp(min=0), size - draw.clamp(min=0)
        cut = _cutout_side(size, param)
        centre = chosen(0, crop=(low + high - 1) / 2, cutout=draw - cut // 2 + (cut - 1) / 2)
        return centre, chosen(size, crop=(high - low) / 2, cutout=cut / 2)

    flipped = of["flip"] & (first < param.prob_flip)
    low, high = 1 / param.ratio_scale, param.ratio_scale
    sx, sy = (draw * (high - low) + low for draw in (first, second))
    angle = (first - 0.5) * 2 * math.radians(param.ratio_rotate)
    xx, yy = chosen(1, scale=sx, rotate=angle.cos()), chosen(1, scale=sy, rotate=angle.cos())
    xy, yx = chosen(0, rotate=-angle.sin()), chosen(0, rotate=angle.sin())
    bright, saturation, contrast = (first - 0.5) * param.brightness, second * param.saturation, third + param.contrast
    row_centre, row_half = rectangle(H, first)
    column_centre, column_half = rectangle(W, second)
    columns = Parameters(
        row_shift=chosen(0, crop=first),
        row_centre=row_centre,
        row_half=row_half,
        column_sign=torch.where(flipped, -1.0, 1.0),
        column_shift=torch.where(flipped, W - 1.0, chosen(0, crop=second)),
        column_centre=column_centre,
        column_half=column_half,
        inverted=of["cutout"],
        affine=of["scale"] | of["rotate"],
        xi=xy,
        yi=yy,
        xj=xx,
        yj=yx,
        own=chosen(1, color=saturation * contrast),
        gray=chosen(0, color=contrast * (1 - saturation)),
        mean=chosen(0, color=1 - contrast),
        shift=chosen(0, color=bright),
    )
    return torch.stack([column.float() for column in columns], dim=-1)


def applied(x: Tensor, parameters: Tensor) -> Tensor:
    """Augment x [G, n, C, H, W] with `parameters` [G, m, len(Parameters)], on one device; m is 1 or n.

    The parameters of a group are those of all its images if m is 1. Gradients flow to x. Shapes and operations are
    constant, and the host never waits, so that a CUDA graph can hold them. Equal to DiffAugment up to rounding.
    """
    G, m, _ = parameters.shape
    H, W = x.shape[-2:]
    p = Parameters(*parameters.flatten(0, 1).unbind(-1))  # [G * m]
    images = x.reshape(G * m, -1, H, W)  # a group with one draw is an image with more channels
    at = torch.arange(max(H, W), device=x.device, dtype=parameters.dtype)
    i, j = at[:H, None], at[:W]  # [H, 1] and [W]

    def wide(value: Tensor) -> Tensor:
        return value[:, None, None]

    # Flip and crop. Pixels that a crop would read outside the image are read at its other side, and set to 0 below:
    # then no two pixels are read at the same place, and the gradient adds nothing up.
    rows = (i + wide(p.row_shift)).remainder(H)
    columns = torch.addcmul(wide(p.column_shift), wide(p.column_sign), j).remainder(W)
    index = torch.add(columns, rows, alpha=W).long().view(G * m, 1, H * W)
    moved = images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view_as(images)
    inside = ((i - wide(p.row_centre)).abs() < wide(p.row_half)) & (
        (j - wide(p.column_centre)).abs() < wide(p.column_half)
    )
    moved = moved * (inside != wide(p.inverted))[:, None]

    # Scale and rotate.
    first = Parameters._fields.index("xi")
    matrices = parameters.flatten(0, 1)[:, None, None, first : first + 4]
    by_row, by_column = matrices.split(2, dim=-1)  # both (x, y)
    # as affine_grid computes them, so that a scaled grid is equal bit for bit
    along = {s: torch.linspace(-1, 1, s, device=x.device, dtype=parameters.dtype) * ((s - 1) / s) for s in {H, W}}
    i, j = along[H], along[W]
    grid = torch.addcmul(by_column * j[:, None], by_row, i[:, None, None])  # [G * m, H, W, 2]
    sampled = F.grid_sample(images, grid.to(x.dtype), align_corners=False)
    x = torch.where(p.affine.bool()[:, None, None, None], sampled, moved).view(x.shape)

    # Colour: the steps of `_color` multiplied out. Other operations have 1 * x + 0 + 0 + 0, which is exactly x.
    own, gray, mean, shift = (value.view(G, m, 1, 1, 1) for value in (p.own, p.gray, p.mean, p.shift))
    out = torch.addcmul(shift, x.mean(dim=(2, 3, 4), keepdim=True), mean)
    out = torch.addcmul(out, x.mean(dim=2, keepdim=True), gray)
    return torch.addcmul(out, x, own)


class Siamese:
    """The augmentation of real and synthetic images: one draw for all images of a class.

    `drawn` draws on the CPU at any time before `applied`. A CPU augments classes with the same operation together; on
    an accelerator all classes are augmented in one call of constant shape.
    """

    PREFIX = "augmentation "

    def __init__(self, strategy: str, size: tuple[int, int], device: str | torch.device):
        """Prepare for images of size (H, W). Raises UserError for an unknown strategy."""
        self.strategy, self.size = strategy, size
        self.nothing = not operations_of(strategy)
        # Constant shapes compute every operation for every image. Where nothing is launched, that only costs time.
        self.constant = not self.nothing and drawn_ahead(strategy) and torch.device(device).type != "cpu"
        self.captured = self.nothing or self.constant  # a CUDA graph can hold it

    def drawn(self, seeds: list[int]) -> dict[str, Tensor]:
        """Tensors [classes, ...] on the CPU, by name, from a seed per class."""
        if self.nothing:
            return {}
        if not self.constant:
            return {self.PREFIX + "seeds": torch.tensor(seeds)}
        return {self.PREFIX + "parameters": parameters(*draw_classes(self.strategy, seeds, self.size), self.size)}

    def applied(self, x: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Augment x [classes, n, C, H, W] with the result of `drawn` for these classes; other names are ignored."""
        if self.nothing:
            return x
        if not self.constant:
            return augment_classes(x, self.strategy, drawn[self.PREFIX + "seeds"].tolist())
        return applied(x, drawn[self.PREFIX + "parameters"])
