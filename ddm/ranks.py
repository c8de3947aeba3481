"""The processes of torchrun: each condenses some of the classes.

They communicate to check that a step is finite, to log losses, to write checkpoints and to evaluate. Terms over all
classes, such as L_RR, and networks that train on the set do so in every step. Without torchrun there is one rank, and
nothing is communicated.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ddm import device, interrupt, torchrun
from ddm.errors import UserError, first_line

T = TypeVar("T")

# Within a step ranks differ by a compilation, a repeated step or a slow disk. A rank that hangs ends the others after
# this time, on NCCL and on gloo.
STEP_PATIENCE = timedelta(minutes=30)
# Between steps ranks may finish far apart: one prepares data or trains networks while the others wait. A rank that ends
# is noticed at once, as its connections close.
PATIENCE = timedelta(days=1)


def local_device(name: str) -> str:
    """'auto' or a torch device name -> the device of this rank, selected; 'cuda' is the GPU with the rank's number.

    Raises UserError for an unknown or missing device, and for more ranks than GPUs.
    """
    kind = device.find_device(name)
    if torch.device(kind).type == "cuda" and torchrun.rank_and_world()[1] > 1:
        number, local = int(os.environ["LOCAL_RANK"]), torchrun.ranks_on_this_host()
        if number >= torch.cuda.device_count():
            raise UserError(f"{local} ranks, but {torch.cuda.device_count()} GPU(s): start one rank per GPU")
        if kind != "cuda" and local > 1:
            raise UserError(f"--device {name} with {local} ranks on this machine: give --device cuda, one GPU per rank")
        kind = f"cuda:{number}" if kind == "cuda" else kind
    return device.select(kind)


@contextlib.contextmanager
def _together(rank: int) -> Iterator[None]:
    """Around a collective operation: raises UserError if another rank has ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"rank {rank} stops: another rank has ended or does not answer, see its message ({first_line(error, 100)})"
        ) from None


class Ranks:
    """This process and its communication with the others."""

    def __init__(self, rank: int = 0, world: int = 1, patient: dist.ProcessGroup | None = None):
        """`patient` is a group of all ranks that waits for PATIENCE; None: the default group."""
        self.rank, self.world, self._patient = rank, world, patient

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
        with _together(self.rank):
            dist.broadcast_object_list(values, src=0, group=self._patient, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: Any) -> list:
        """The values of all ranks, picklable objects, in rank order."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        with _together(self.rank):
            dist.all_gather_object(values, value, group=self._patient)
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
        with _together(self.rank):
            dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.tolist()

    def everywhere(self, flag: Tensor) -> Tensor:
        """Whether a boolean scalar on the device is true on all ranks, without waiting for an accelerator."""
        if self.world == 1:
            return flag
        minimum = flag.int()
        with _together(self.rank):
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
        with _together(self.rank):
            for r, x in enumerate(parts):
                dist.broadcast(x, src=r)
        return torch.cat([*parts[: self.rank], part, *parts[self.rank + 1 :]])


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Inside, the processes of torchrun are connected: NCCL on CUDA, gloo on a CPU. `device` is that of `local_device`.

    After an error NCCL is left to the end of the process: closing it would wait for ranks that wait for this one.
    """
    rank, world = torchrun.rank_and_world()
    if world == 1:
        yield Ranks()
        return
    cuda = torch.device(device).type == "cuda"
    try:
        with interrupt.handled_by(signal.SIG_DFL):  # ranks wait for others in C++, where Python's handlers do not run
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                timeout=STEP_PATIENCE,
                device_id=torch.device(device) if cuda else None,  # NCCL connects now, on this GPU
            )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the ranks can't connect ({first_line(error, 100)}): start them with torchrun") from None
    try:
        yield Ranks(rank, world, dist.new_group(backend="gloo", timeout=PATIENCE))
    except BaseException:
        if not cuda:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
