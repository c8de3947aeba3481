"""All that an iteration draws at random, made on the CPU ahead of its step.

Every draw is a function of (seed, experiment, iteration, class, purpose), so when and by which thread it is made does
not matter. On an accelerator, threads draw for the next iterations, and a step begins with one copy to the device.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ddm import rng
from ddm.augment import Siamese
from ddm.data.images import ImageData
from ddm.methods.distribution import Networks
from ddm.methods.optimizers import SCHEDULES
from ddm.methods.plan import Plan
from ddm.methods.sampling import Random

AHEAD = 8  # iterations that are drawn ahead on an accelerator
THREADS = 4
# Real images of an iteration that are read ahead, if they do not fit the device: at most so many bytes.
READ_AHEAD = 2**28


class Draws:
    """The draws of each iteration, by name; see `draw`."""

    def __init__(self, data: ImageData, plan: Plan, sampler: Random, networks: Networks, augmentation: Siamese):
        self.data, self.plan, self.sampler, self.networks = data, plan, sampler, networks
        self.augmentation = augmentation
        size = len(plan.classes) * plan.settings.batch_real * math.prod(data.shape) * data.x_train.dtype.itemsize
        away = data.x_train.device != data.device
        # Whether real images, not only their indices, are drawn.
        self.reads = away and size <= READ_AHEAD
        self.on_device = not away or self.reads

    def draw(self, experiment: int, iteration: int) -> dict[str, Tensor]:
        """The draws of an iteration for the classes of this rank, on the CPU, by name.

        real: indices of real images [classes, batch_real], or the images themselves [classes, batch_real, C, H, W]
        network, finished: parameters of networks [P], see Networks.draw
        lr, done: scalars, the learning rate and the number of completed iterations
        others: parameters of the augmentation [classes, ...], see Siamese.drawn
        """
        settings, classes = self.plan.settings, self.plan.classes
        where = (settings.seed, experiment, iteration)
        rows = torch.stack(self.sampler.indices(classes, lambda c: rng.generator(*where, c, "real images")))
        done = iteration - 1
        lr = settings.lr_img * SCHEDULES[settings.lr_schedule](done, settings.Iteration)
        return {
            **self.networks.draw(experiment, iteration),
            "real": self.data.x_train[rows] if self.reads else rows,
            "lr": torch.tensor(lr),
            "done": torch.tensor(float(done)),
            # The real and synthetic images of a class have the same augmentation.
            **self.augmentation.drawn([rng.seed_of(*where, c, "augmentation") for c in classes]),
        }


class Ahead:
    """The draws of one iteration after the other, on the device, at the same addresses in every iteration.

    On the CPU they are made when they are needed, and are not copied.
    """

    def __init__(self, draw: Callable[[int, int], dict[str, Tensor]], device: str | torch.device, last: int):
        """`draw(experiment, iteration)` is called for iterations up to `last`, on an accelerator by threads."""
        self.draw, self.device, self.last = draw, torch.device(device), last
        self.accelerator = self.device.type != "cpu"
        self.pool: ThreadPoolExecutor | None = None
        self.pending: dict[tuple[int, int], Future[tuple[Tensor, dict[str, Tensor]]]] = {}
        self.block: Tensor | None = None  # the device's memory of all draws; every iteration has the same shapes
        self.views: dict[str, Tensor] = {}

    def next(self, experiment: int, iteration: int) -> dict[str, Tensor]:
        """The draws of an iteration; those of the following ones are made in the background."""
        if not self.accelerator:
            return self.draw(experiment, iteration)
        self.pool = self.pool or ThreadPoolExecutor(THREADS, "draws")
        end = max(iteration, min(iteration + AHEAD, self.last)) + 1
        wanted = [(experiment, i) for i in range(iteration, end)]
        for key in self.pending.keys() - set(wanted):
            self.pending.pop(key).cancel()
        for key in wanted:
            if key not in self.pending:
                self.pending[key] = self.pool.submit(self._packed, *key)
        block, drawn = self.pending.pop(wanted[0]).result()
        if self.block is None:
            self.block = torch.empty(block.shape, dtype=block.dtype, device=self.device)
            self.views = unpacked(self.block, drawn)
        self.block.copy_(block, non_blocking=True)
        return dict(self.views)

    def _packed(self, experiment: int, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = self.draw(experiment, iteration)
        return packed(drawn, pinned=self.device.type == "cuda"), drawn

    def close(self) -> None:
        """Stop the threads; a later `next` starts new ones."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        self.pool, self.pending = None, {}


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
