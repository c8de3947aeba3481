"""Learning rates of the pixels: how one changes over a run, and how it follows the number of images."""

import math

# (iterations done, iterations in all) -> factor in [0, 1]
SCHEDULES = {
    "constant": lambda done, total: 1.0,
    "cosine": lambda done, total: (1 + math.cos(math.pi * done / total)) / 2,
}


def lr_of(ipc: float) -> float:
    """lr_img of presets, by the number of images a class.

    An image's share of the mean, and with it its gradient, is 1 / ipc: its step is as large with many as with few.
    """
    return 0.5 * ipc
