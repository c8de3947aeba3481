"""Optimizers of the synthetic pixels. A new one is one function and one row of OPTIMIZERS."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddm.methods.settings import CondensingSettings


class Rule(NamedTuple):
    """An optimizer of the pixels."""

    # images [N, C, H, W], settings -> torch's optimizer
    make: Callable[[Tensor, CondensingSettings], torch.optim.Optimizer]
    buffers: tuple[str, ...]  # the names of its buffers in torch's state, each with the shape of the images
    lr: Callable[[float], float]  # lr_img if it is unset, from ipc
    normalised: bool = False  # whether the gradient of each image is first divided by its root mean square

    def empty(self, images: Tensor) -> Tensor:
        """The buffers before the first step: [N, C, H, W] for one buffer, [N, buffers, C, H, W] for several."""
        several = [len(self.buffers)] if len(self.buffers) > 1 else []
        shape = (len(images), *several, *images.shape[1:])
        return torch.zeros(shape, dtype=images.dtype, device=images.device)

    def state(self, velocity: Tensor) -> dict[str, Tensor]:
        """Torch's state of one parameter, whose buffers are views of `velocity` (as `empty` returns it)."""
        parts = velocity.unbind(1) if len(self.buffers) > 1 else [velocity]
        return dict(zip(self.buffers, parts, strict=True)) | {"step": torch.zeros(())}


def sgd(images: Tensor, settings: CondensingSettings) -> torch.optim.Optimizer:
    return torch.optim.SGD([images], lr=settings.lr_img, momentum=settings.momentum_img)


def adam(images: Tensor, settings: CondensingSettings) -> torch.optim.Optimizer:
    return torch.optim.Adam([images], lr=settings.lr_img, betas=(0.9, 0.999))


# The steps of normalised and adam do not depend on the scale of the losses.
OPTIMIZERS = {  # lr of these two: chosen on validation splits, see docs/tried.md
    # The gradient of one image is 1 / ipc of the mean's, so the step of SGD grows with ipc.
    "sgd": Rule(sgd, ("momentum_buffer",), lambda ipc: 0.5 * ipc),
    "normalised": Rule(sgd, ("momentum_buffer",), lambda ipc: 0.03, normalised=True),
    "adam": Rule(adam, ("exp_avg", "exp_avg_sq"), lambda ipc: 0.1),
}
