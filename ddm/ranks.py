"""torchrun's processes: each condenses its part of the classes; they share only the seed.

They communicate to agree that a step was finite, to log the losses, to write a checkpoint and to evaluate. Without
torchrun there is one rank, and every function here returns its input.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ddm import torchrun
from ddm.errors import UserError

T = TypeVar("T")

# Ranks may finish far apart, so wait up to a day; torchrun notices dead ranks.
PATIENCE = timedelta(days=1)


def local_device(device: str) -> str:
    """'cuda' -> the GPU of this rank."""
    if device != "cuda" or torchrun.rank_and_world()[1] == 1:
        return device
    number = int(os.environ["LOCAL_RANK"])
    if number >= torch.cuda.device_count():
        raise UserError(
            f"{torchrun.ranks_on_this_host()} ranks, but {torch.cuda.device_count()} GPU(s): start as many or fewer"
        )
    return f"cuda:{number}"


class Ranks:
    """This process and how it communicates with the others."""

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def own(self, n: int, rank: int | None = None) -> range:
        """The part of 0 .. n - 1 that a rank (this one) has: contiguous, with sizes that differ by at most one."""
        rank = self.rank if rank is None else rank
        small, more = divmod(n, self.world)
        start = rank * small + min(rank, more)
        return range(start, start + small + (rank < more))

    def from_first(self, value: Any) -> Any:
        """The first rank's value, a picklable object."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def all(self, value: Any) -> list:
        """Every rank's value, a picklable object, in their order."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def first_of_host(self, make: Callable[[], T]) -> T:
        """`make()`, by one rank of each machine before the others."""
        alone = self.world == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
        found = make() if alone else None
        self.all(None)
        return found if alone else make()

    def largest(self, *values: int) -> list[int]:
        """The maximum over ranks of each number; nothing waits for an accelerator."""
        if self.world == 1:
            return list(values)
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def everywhere(self, flag: Tensor) -> Tensor:
        """Whether a boolean scalar on the device is true on all ranks; nothing waits for an accelerator."""
        if self.world == 1:
            return flag
        found = flag.int()
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return found.bool()

    def together(self, own: Tensor, sizes: list[int]) -> Tensor:
        """Tensors [sizes[r], ...] of all ranks one after the other, on every rank."""
        if self.world == 1:
            return own
        parts = [own if r == self.rank else own.new_empty(size, *own.shape[1:]) for r, size in enumerate(sizes)]
        for r, part in enumerate(parts):
            dist.broadcast(part.contiguous() if r == self.rank else part, src=r)
        return torch.cat(parts)


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Inside, torchrun's processes are connected: over NCCL on CUDA, gloo on a CPU."""
    rank, world = torchrun.rank_and_world()
    if world == 1:
        yield Ranks()
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(rank, world)
    finally:
        dist.destroy_process_group()
