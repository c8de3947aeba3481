"""The processes of torchrun: each condenses some of the classes; they share only the seed.

They communicate to check that a step is finite, to log losses, to write checkpoints and to evaluate. Without torchrun
there is one rank, and nothing is communicated.
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
    """'cuda' -> the GPU of this rank; other devices are unchanged. Raises UserError for more ranks than GPUs."""
    if device != "cuda" or torchrun.rank_and_world()[1] == 1:
        return device
    number = int(os.environ["LOCAL_RANK"])
    if number >= torch.cuda.device_count():
        raise UserError(
            f"{torchrun.ranks_on_this_host()} ranks, but {torch.cuda.device_count()} GPU(s): start one rank per GPU"
        )
    return f"cuda:{number}"


class Ranks:
    """This process and its communication with the others."""

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def share(self, n: int, rank: int | None = None) -> range:
        """The indices among 0 .. n - 1 of a rank (default: this one): contiguous; sizes differ by at most one."""
        rank = self.rank if rank is None else rank
        small, more = divmod(n, self.world)
        start = rank * small + min(rank, more)
        return range(start, start + small + (rank < more))

    def from_first(self, value: Any) -> Any:
        """The value of the first rank, a picklable object."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: Any) -> list:
        """The values of all ranks, picklable objects, in rank order."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def first_of_host(self, make: Callable[[], T]) -> T:
        """`make()`, called by one rank of each machine before the others."""
        first = self.world == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
        value = make() if first else None
        self.gather(None)
        return value if first else make()

    def largest(self, *values: int) -> list[int]:
        """The maximum of each number over all ranks, without waiting for an accelerator."""
        if self.world == 1:
            return list(values)
        maxima = torch.tensor(values)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.tolist()

    def everywhere(self, flag: Tensor) -> Tensor:
        """Whether a boolean scalar on the device is true on all ranks, without waiting for an accelerator."""
        if self.world == 1:
            return flag
        minimum = flag.int()
        dist.all_reduce(minimum, dist.ReduceOp.MIN)
        return minimum.bool()

    def gathered(self, part: Tensor, sizes: list[int]) -> Tensor:
        """The tensors [sizes[r], ...] of all ranks, concatenated in rank order, on every rank.

        This rank's part keeps its gradient.
        """
        if self.world == 1:
            return part
        parts = [
            part.detach().contiguous() if r == self.rank else part.new_empty(size, *part.shape[1:])
            for r, size in enumerate(sizes)
        ]
        for r, x in enumerate(parts):
            dist.broadcast(x, src=r)
        return torch.cat([*parts[: self.rank], part, *parts[self.rank + 1 :]])


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Inside, the processes of torchrun are connected: NCCL on CUDA, gloo on a CPU."""
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
