"""How a learning rate changes over a run: (iterations done, iterations in all) -> factor in [0, 1]."""

import math

SCHEDULES = {
    "constant": lambda done, total: 1.0,
    "cosine": lambda done, total: (1 + math.cos(math.pi * done / total)) / 2,
}
