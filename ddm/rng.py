"""Every random number of a run is a function of (seed, experiment, iteration, class, purpose).

Nothing here keeps state: two runs draw the same numbers, also when one experiment runs alone. Drawing for one purpose
never shifts another. Generators live on the CPU, so that every device sees the same draws; `to_device` copies them.
"""

import hashlib

import torch


def seed_of(seed: int, experiment: int, iteration: int, cls: int, purpose: str) -> int:
    """Hash the coordinates of a draw into an int in [0, 2**62); -1 stands for "no class in particular"."""
    key = repr((seed, experiment, iteration, cls, purpose)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 2


def generator(seed: int, experiment: int, iteration: int, cls: int, purpose: str) -> torch.Generator:
    """A fresh CPU generator for one purpose at one place of a run (see `seed_of`)."""
    return torch.Generator("cpu").manual_seed(seed_of(seed, experiment, iteration, cls, purpose))


def to_device(draw: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device; to CUDA through pinned memory, so that the host does not wait."""
    if torch.device(device).type == "cuda":
        draw = draw.pin_memory()
    return draw.to(device, non_blocking=True)
