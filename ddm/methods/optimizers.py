"""Optimizers of the synthetic pixels. A new one is one function and one row of OPTIMIZERS.

They are functions of tensors, not torch.optim's objects. A step that is not finite must change nothing. A CUDA graph
needs the learning rate as a tensor.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddm.methods.settings import CondensingSettings

# (completed iterations, total iterations) -> factor of lr_img in [0, 1]
SCHEDULES = {
    "constant": lambda done, total: 1.0,
    "cosine": lambda done, total: (1 + math.cos(math.pi * done / total)) / 2,
}

# (images [N, C, H, W], their gradient, buffers as `empty` returns them, learning rate, completed iterations (scalar
# tensors), settings) -> new images and new buffers
Update = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, CondensingSettings], tuple[Tensor, Tensor]]


class Rule(NamedTuple):
    """An optimizer of the pixels."""

    update: Update
    buffers: int  # buffers with the shape of the images
    lr: Callable[[float], float]  # lr_img if it is unset, from ipc

    def empty(self, images: Tensor) -> Tensor:
        """The buffers before the first step: [N, C, H, W] for one buffer, [N, buffers, C, H, W] for several."""
        several = [self.buffers] if self.buffers > 1 else []
        shape = (len(images), *several, *images.shape[1:])
        return torch.zeros(shape, dtype=images.dtype, device=images.device)


def sgd(
    images: Tensor, gradient: Tensor, velocity: Tensor, lr: Tensor, done: Tensor, settings: CondensingSettings
) -> tuple[Tensor, Tensor]:
    velocity = (velocity * settings.momentum_img).add_(gradient)
    return torch.addcmul(images, velocity, lr, value=-1), velocity


def normalised(
    images: Tensor, gradient: Tensor, velocity: Tensor, lr: Tensor, done: Tensor, settings: CondensingSettings
) -> tuple[Tensor, Tensor]:
    """SGD on the gradient of each image divided by its root mean square."""
    gradient = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt().add_(1e-12)
    return sgd(images, gradient, velocity, lr, done, settings)


def adam(
    images: Tensor, gradient: Tensor, moments: Tensor, lr: Tensor, done: Tensor, settings: CondensingSettings
) -> tuple[Tensor, Tensor]:
    """Adam (Kingma & Ba, ICLR 2015), betas 0.9 and 0.999."""
    mean, square = moments.unbind(1)
    mean = mean.lerp(gradient, 1 - 0.9)
    square = (square * 0.999).addcmul_(gradient, gradient, value=1 - 0.999)
    scale = (square / (1 - 0.999 ** (done + 1))).sqrt_().add_(1e-8)
    return images - lr / (1 - 0.9 ** (done + 1)) * mean / scale, torch.stack([mean, square], 1)


# The steps of normalised and adam do not depend on the scale of the losses.
OPTIMIZERS = {  # lr of these two: chosen on validation splits, see docs/tried.md
    # The gradient of one image is 1 / ipc of the mean's, so the step of SGD grows with ipc.
    "sgd": Rule(sgd, 1, lambda ipc: 0.5 * ipc),
    "normalised": Rule(normalised, 1, lambda ipc: 0.03),
    "adam": Rule(adam, 2, lambda ipc: 0.1),
}
