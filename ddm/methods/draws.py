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
from ddm.device import select
from ddm.methods.distribution import Networks
from ddm.methods.optimizers import SCHEDULES
from ddm.methods.plan import Plan
from ddm.methods.sampling import Random
from ddm.rng import packed, unpacked

AHEAD = 8  # iterations that are drawn ahead on an accelerator
THREADS = 2  # more wait for Python's lock; benchmarks/gpu.py, part draws, compares them
# Bytes of the real images of an iteration, up to which they are read ahead if the data set does not fit the device.
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
        self.away = away

    def draw(self, experiment: int, iteration: int) -> dict[str, Tensor]:
        """The draws of an iteration for the classes of this rank, on the CPU, by name.

        real: indices of real images [classes, batch_real] or of candidates for `selected`, or images [classes,
            batch_real, C, H, W]
        network, finished: parameters of networks [P], see Networks.draw
        lr, done: scalars, the learning rate and the number of completed iterations
        others: parameters of the augmentation [classes, ...], see Siamese.drawn
        """
        settings, classes = self.plan.settings, self.plan.classes
        where = (settings.seed, experiment, iteration)
        rows = torch.stack(self.sampler.indices(classes, lambda c: rng.generator(*where, c, "real images")))
        if self.away:
            rows = self.sampler.selected(rows)
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

    def selected(self, real: Tensor) -> Tensor:
        """The indices of real images [classes, batch_real], or images, from the draw `real` on the device."""
        return real if self.away else self.sampler.selected(real)


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
        # Pinned memory belongs to the selected GPU, and each thread selects its own.
        self.pool = self.pool or ThreadPoolExecutor(THREADS, "draws", select, (str(self.device),))
        end = max(iteration, min(iteration + AHEAD, self.last)) + 1
        wanted = [(experiment, i) for i in range(iteration, end)]
        for key in self.pending.keys() - set(wanted):
            self.pending.pop(key).cancel()
        for key in wanted:
            if key not in self.pending:
                self.pending[key] = self.pool.submit(self._packed, *key)
        block, like = self.pending.pop(wanted[0]).result()
        if self.block is None:
            self.block = torch.empty(block.shape, dtype=block.dtype, device=self.device)
            self.views = unpacked(self.block, like)
        self.block.copy_(block, non_blocking=block.is_pinned())  # else the block could end before the copy
        return dict(self.views)

    def _packed(self, experiment: int, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The draws of an iteration in one block, and their names, dtypes and shapes, as tensors without memory."""
        drawn = self.draw(experiment, iteration)
        like = {name: x.to("meta") for name, x in drawn.items()}
        return packed(drawn, pinned=self.device.type == "cuda"), like

    def close(self) -> None:
        """Stop the threads; a later `next` starts new ones."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        self.pool, self.pending = None, {}
