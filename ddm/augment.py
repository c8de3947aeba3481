"""Differentiable Siamese Augmentation (Zhao & Bilen, ICML 2021, arXiv 2102.08259), batched.

Parameters are drawn on the CPU, so that all devices augment equally. They are applied on the images' device without a
loop over images.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

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


class Draws:
    """The source of the operations' parameters for N images.

    Each parameter is drawn `each` times from every generator that `sources()` returns. Every draw is used for `images`
    consecutive images: N = generators * each * images.
    """

    def __init__(
        self,
        device: torch.device,
        sources: Callable[[], list[torch.Generator | None]],
        each: int = 1,
        images: int = 1,
    ):
        self.device, self.sources, self.each, self.images = device, sources, each, images

    def uniform(self) -> Tensor:
        """[N, 1, 1, 1] in [0, 1)."""
        return self._spread([torch.rand(self.each, 1, 1, 1, generator=g, device="cpu") for g in self.sources()])

    def integers(self, low: int, high: int) -> Tensor:
        """[N, 1] in [low, high)."""
        return self._spread(
            [torch.randint(low, high, (self.each, 1), generator=g, device="cpu") for g in self.sources()]
        )

    def _spread(self, draws: list[Tensor]) -> Tensor:
        return to_device(torch.cat(draws), self.device).repeat_interleave(self.images, dim=0)


# --- operations: (x [N, C, H, W], param, draws) -> x ---------------------------------------------------------


def _color(x: Tensor, param: ParamDiffAug, draws: Draws) -> Tensor:
    b, t, k = draws.uniform(), draws.uniform(), draws.uniform()
    x = x + (b - 0.5) * param.brightness
    gray = x.mean(dim=1, keepdim=True)
    x = (x - gray) * (t * param.saturation) + gray
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (k + param.contrast) + mean


def _crop(x: Tensor, param: ParamDiffAug, draws: Draws) -> Tensor:
    for dim in (2, 3):  # shift along rows, then columns
        size = x.shape[dim]
        most = int(size * param.ratio_crop_pad + 0.5)
        source = torch.arange(size, device=x.device) + draws.integers(-most, most + 1)  # [n, size]
        inside = (source >= 0) & (source < size)
        shape = (-1, 1, size, 1) if dim == 2 else (-1, 1, 1, size)
        source, inside = source.clamp(0, size - 1).view(shape), inside.view(shape)
        x = torch.take_along_dim(x, source, dim=dim) * inside
    return x


def _cutout(x: Tensor, param: ParamDiffAug, draws: Draws) -> Tensor:
    covered = []
    for size in x.shape[2:]:
        cut = int(size * param.ratio_cutout + 0.5)
        first = draws.integers(0, size + (1 - cut % 2)) - cut // 2  # [n, 1]
        at = torch.arange(size, device=x.device)
        covered.append((at >= first) & (at < first + cut))  # [n, size]
    rows, columns = covered
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _flip(x: Tensor, param: ParamDiffAug, draws: Draws) -> Tensor:
    return torch.where(draws.uniform() < param.prob_flip, x.flip(3), x)


def _scale(x: Tensor, param: ParamDiffAug, draws: Draws) -> Tensor:
    low, high = 1 / param.ratio_scale, param.ratio_scale
    sx, sy = (draws.uniform().flatten() * (high - low) + low for _ in range(2))
    zero = torch.zeros_like(sx)
    return _affine(x, [[sx, zero, zero], [zero, sy, zero]])


def _rotate(x: Tensor, param: ParamDiffAug, draws: Draws) -> Tensor:
    angle = (draws.uniform().flatten() - 0.5) * 2 * math.radians(param.ratio_rotate)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _affine(x, [[cos, -sin, zero], [sin, cos, zero]])


def _affine(x: Tensor, rows: list[list[Tensor]]) -> Tensor:
    theta = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # [n, 2, 3]
    grid = F.affine_grid(theta, [theta.shape[0], *x.shape[1:]], align_corners=False)
    return F.grid_sample(x, grid.expand(x.shape[0], -1, -1, -1), align_corners=False)


OPERATIONS = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


def operations_of(strategy: str) -> list[Callable[[Tensor, ParamDiffAug, Draws], Tensor]]:
    """The operations in a strategy string, [] for 'none'; raises UserError for an unknown operation."""
    if strategy in ("", "none", "None"):
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
        x = operation(x, param, Draws(x.device, lambda: [generator], each=x.shape[0]))
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
    alone = x.device.type == "cpu" and x[0].numel() > 2**17
    groups: dict[tuple[tuple[Callable, ...], int | None], list[int]] = {}
    for c, seed in enumerate(seeds):
        chosen = _one_or_all(operations, param, torch.Generator("cpu").manual_seed(seed))
        groups.setdefault((chosen, c if alone else None), []).append(c)
    done = []
    for (chosen, _), classes in groups.items():
        # One fresh generator per class and parameter: seed for the operation, then seed + 1, seed + 2, ...
        nexts = [itertools.count(seeds[c] + 1) for c in classes]
        draws = Draws(x.device, partial(_fresh, nexts), images=x.shape[1])
        first, last = classes[0], classes[-1]
        neighbours = last - first + 1 == len(classes)  # then a view suffices
        part = x[first : last + 1] if neighbours else x[to_device(torch.tensor(classes), x.device)]
        out = part.flatten(0, 1)
        for operation in chosen:
            out = operation(out, param, draws)
        done.append(out)
    if len(groups) == 1:
        return done[0].view_as(x).contiguous()
    out = torch.cat(done).view_as(x)
    order = torch.tensor([c for classes in groups.values() for c in classes]).argsort()
    return out if alone else out[to_device(order, x.device)]


def _fresh(nexts: list[Iterator[int]]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(next(seeds)) for seeds in nexts]


def _one_or_all(
    operations: list[Callable], param: ParamDiffAug, generator: torch.Generator | None
) -> tuple[Callable, ...]:
    if param.aug_mode == "S":
        return (operations[int(torch.randint(0, len(operations), (1,), generator=generator, device="cpu"))],)
    if param.aug_mode != "M":
        raise UserError(f"unknown aug_mode {param.aug_mode!r}: choose 'S' (one operation per call) or 'M' (all)")
    return tuple(operations)
