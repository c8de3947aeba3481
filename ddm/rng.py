"""Random numbers of a run: functions of (seed, experiment, iteration, class, purpose).

The module has no state. An experiment therefore draws the same numbers in every run, also when it runs alone. Draws for
one purpose do not change those for another. Generators are on the CPU, so that all devices get the same draws;
`to_device` copies them.
"""

import hashlib

import torch


def seed_of(seed: int, experiment: int, iteration: int, cls: int, purpose: str) -> int:
    """Hash the coordinates of a draw into an int in [0, 2**62); cls -1 means that a draw belongs to no class."""
    key = repr((seed, experiment, iteration, cls, purpose)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 2


def generator(seed: int, experiment: int, iteration: int, cls: int, purpose: str) -> torch.Generator:
    """A new CPU generator, seeded with `seed_of` the same arguments."""
    return torch.Generator("cpu").manual_seed(seed_of(seed, experiment, iteration, cls, purpose))


def to_device(draw: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A tensor on a device. Copies from the CPU to CUDA use pinned memory, so that the host does not wait.

    All other copies wait: the host could read a tensor on the CPU before an asynchronous copy has filled it.
    """
    if torch.device(device).type == "cuda" and draw.device.type == "cpu":
        return draw.pin_memory().to(device, non_blocking=True)
    return draw.to(device)
