"""Partition: a stored image holds factor x factor smaller images.

The budget counts stored images, while networks see the decoded ones: cut out and scaled up. Not of the DDM paper;
sources: multi-formation in IDC (Kim et al., ICML 2022) and partitioning in IDM (Zhao et al., CVPR 2023).
"""

import torch.nn.functional as F
from torch import Tensor

from ddm.errors import UserError

SMALLEST = 28  # shortest side; on 8x8 digits a factor of 2 costs 11 points, see docs/strong.md


def decoded(stored: Tensor, factor: int) -> Tensor:
    """The parts of stored images [N, C, H, W], row by row, each scaled up bilinearly: [N * factor^2, C, H, W].

    Gradients flow to `stored`. Values stay in the range of the stored ones.
    """
    if factor == 1:
        return stored
    size = stored.shape[-2:]
    parts = stored.unflatten(3, (factor, -1)).unflatten(2, (factor, -1))  # [N, C, row, h, column, w]
    parts = parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return F.interpolate(parts, size=size, mode="bilinear", align_corners=False)


def encoded(images: Tensor, factor: int) -> Tensor:
    """Stored images that hold factor^2 consecutive images [N * factor^2, C, H, W] each, scaled down: [N, C, H, W]."""
    if factor == 1:
        return images
    parts = F.avg_pool2d(images, factor).unflatten(0, (-1, factor, factor))  # [N, row, column, C, h, w]
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def decoded_labels(labels: Tensor, factor: int) -> Tensor:
    """The labels of decoded images, from those of stored ones."""
    return labels.repeat_interleave(factor * factor)


def default_factor(im_size: tuple[int, int]) -> int:
    """2, or 1 for images that are too small to be split (below SMALLEST) or have odd sides."""
    return 2 if min(im_size) >= SMALLEST and not any(side % 2 for side in im_size) else 1


def check_factor(factor: int, im_size: tuple[int, int], flag: str = "--factor") -> None:
    """Raise UserError if images of this size can't be split into factor x factor equal parts."""
    if any(side % factor for side in im_size):
        size = "x".join(map(str, im_size))
        raise UserError(
            f"{flag} {factor}: images of {size} can't be split into {factor}x{factor} equal parts: choose a factor "
            "that divides both sides"
        )
