"""Warnings about results that can't be right: pixels far outside the data's range, accuracy at chance."""

import math

import torch
from torch import Tensor

from ddm.data.images import ImageData, Normalisation
from ddm.evaluation.protocol import describe

FAR = 3.0  # standard deviations of the data's pixels
FAR_SHARE = 0.01  # a larger share of values beyond FAR gives a warning
CLIPPED_SHARE = 0.01  # a larger share of values outside [0, 1] gives a note on the cost of an export
NOISE = 2.0  # standard errors of an accuracy


def share_beyond(images: Tensor, normalisation: Normalisation, distance: float) -> float:
    """The share of values more than `distance` standard deviations outside the pixels' range; 0 for whitened images."""
    if normalisation.whitened or not len(images):
        return 0.0
    low, high = normalisation.bounds().to(images.device)
    return (torch.maximum(low - images, images - high) > distance).float().mean().item()


def far_outside(images: Tensor, normalisation: Normalisation) -> str | None:
    """A warning if many values of normalised images are far outside the range of pixels, else None."""
    share = share_beyond(images, normalisation, FAR)
    if share <= FAR_SHARE:
        return None
    low, high = images.min().item(), images.max().item()
    return (
        f"{100 * share:.0f} % of the values are more than {FAR:g} standard deviations outside the data's range "
        f"(normalised {low:.0f} to {high:.0f}): lower --lr_img, or condense with --clip_pixels"
    )


def clipping_cost(images: Tensor, normalisation: Normalisation) -> str | None:
    """The cost of an export of normalised images as pictures; None if few values are outside [0, 1]."""
    share = share_beyond(images, normalisation, 1e-3)
    if share <= CLIPPED_SHARE:
        return None
    return (
        f"{100 * share:.1f} % of the values are outside [0, 1]: an export as pictures clips them, which can lower "
        "accuracy; --to safetensors keeps them, --clip_pixels avoids them when condensing"
    )


def at_chance(accuracies: list[float], data: ImageData) -> str | None:
    """A warning if the mean accuracy of some networks is within noise of that of guessing, else None."""
    chance, n = 1 / data.num_classes, len(data.y_test)
    mean = math.fsum(accuracies) / len(accuracies)
    if mean > chance + NOISE * math.sqrt(chance * (1 - chance) / n):
        return None
    return (
        f"{describe(accuracies)} is no better than guessing ({100 * chance:.3g} %): check the epochs, the learning "
        "rate, the labels and the range of the pixels"
    )
