"""Random numbers of a run: functions of (seed, experiment, iteration, class, purpose).

The module has no state. An experiment therefore draws the same numbers in every run, also when it runs alone. Draws for
one purpose do not change those for another. Generators are on the CPU, so that all devices get the same draws;
`to_device` copies them.
"""

import hashlib

import torch
from torch import Tensor


def seed_of(seed: int, experiment: int, iteration: int, cls: int, purpose: str) -> int:
    """Hash the coordinates of a draw into an int in [0, 2**62); cls -1 means that a draw belongs to no class.

    torch's generators on the CPU use its lower 32 bits.
    """
    key = repr((seed, experiment, iteration, cls, purpose)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 2


def generator(seed: int, experiment: int, iteration: int, cls: int, purpose: str) -> torch.Generator:
    """A new CPU generator, seeded with `seed_of` the same arguments."""
    return torch.Generator("cpu").manual_seed(seed_of(seed, experiment, iteration, cls, purpose))


def to_device(draw: Tensor, device: str | torch.device) -> Tensor:
    """A tensor on a device. Copies from the CPU to CUDA use pinned memory, so that the host does not wait.

    All other copies wait: the host could read a tensor on the CPU before an asynchronous copy has filled it.
    """
    if torch.device(device).type == "cuda" and draw.device.type == "cpu":
        return draw.pin_memory().to(device, non_blocking=True)
    return draw.to(device)


def all_to_device(draws: dict[str, Tensor], device: str | torch.device) -> dict[str, Tensor]:
    """`to_device` of several tensors on the CPU, in one copy."""
    kind = torch.device(device).type
    if kind == "cpu":
        return draws
    pinned = kind == "cuda"
    return unpacked(packed(draws, pinned).to(device, non_blocking=pinned), draws)


ALIGNED = 16  # bytes; each tensor begins at a multiple, as every dtype demands


def offsets(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The first byte of each tensor in the memory of `packed`; "" is the end."""
    at, found = 0, {}
    for name, x in tensors.items():
        found[name] = at
        at += -(-x.numel() * x.element_size() // ALIGNED) * ALIGNED
    return found | {"": at}


def packed(tensors: dict[str, Tensor], pinned: bool) -> Tensor:
    """Tensors on the CPU, one after the other in one block of bytes."""
    # Torch reuses pinned blocks, but not before copies from them have ended.
    block = torch.empty(offsets(tensors)[""], dtype=torch.uint8, pin_memory=pinned)
    for name, x in unpacked(block, tensors).items():
        x.copy_(tensors[name])
    return block


def unpacked(block: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in a block of bytes on any device, as views; dtypes and shapes are those of `like`."""
    begins = offsets(like)
    return {
        name: block[begins[name] : begins[name] + x.numel() * x.element_size()].view(x.dtype).view(x.shape)
        for name, x in like.items()
    }
