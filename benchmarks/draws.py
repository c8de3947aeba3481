"""Milliseconds of the draws of an iteration on the host: real images, a network, the augmentation.

    python benchmarks/draws.py [--device meta|cuda] [--threads 1,2,4]

CIFAR10's shape, ipc 10, 256 real images per class. On an accelerator, threads draw ahead of the steps, and no step
can be faster than these draws. The meta device needs no GPU: the threads work as on one, without the copy to it.
The last column is the selection of balanced images from the drawn candidates, which is part of the step. With meta it
is timed on the CPU.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from unittest import mock

import step
import timing
import torch
from torch import Tensor

from ddm.evaluation.protocol import wait_for
from ddm.methods import draws
from ddm.methods.sampling import SAMPLERS

WARM_UP, ITERATIONS = 20, 100


def select(made: draws.Draws, drawn: Tensor, device: str) -> None:
    """Select the real images of an iteration, from candidates on the device."""
    made.selected(drawn)
    wait_for(device)


def table(device: str, threads: Sequence[int] = (1, 2, 4)) -> Iterator[str]:
    """The lines of a table: wall-clock milliseconds of an iteration's draws, by sampling and number of threads."""
    yield "| real_sampling | threads | ms per iteration | ms of the selection |"
    yield "|---|---|---|---|"
    data = step.random_data(10, 32, 5000)
    where = "cpu" if device == "meta" else device  # samplers prepare on the device of the run, which meta can't
    for sampling in SAMPLERS:
        maker = step.started("CM", data, ipc=10, compile="off", real_sampling=sampling, device=where)
        drawn = maker.draws.draw(0, 1)["real"].to(where)
        selecting = timing.medians({"selected": partial(select, maker.draws, drawn, where)}, 9)["selected"]
        maker.draws.augmentation = draws.Siamese(maker.plan.settings.dsa_strategy, data.im_size, device)
        for number in threads:
            with mock.patch.object(draws, "THREADS", number):
                ahead = draws.Ahead(maker.draws.draw, device, last=WARM_UP + ITERATIONS)
                for iteration in range(1, WARM_UP + 1):
                    ahead.next(0, iteration)
                wait_for(device)
                began = time.perf_counter()
                for iteration in range(WARM_UP + 1, WARM_UP + ITERATIONS + 1):
                    ahead.next(0, iteration)
                wait_for(device)
                drawing = (time.perf_counter() - began) / ITERATIONS
                yield f"| {sampling} | {number} | {1000 * drawing:.2f} | {1000 * selecting:.2f} |"
                ahead.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="meta")
    parser.add_argument("--threads", default="1,2,4", help="numbers of threads that draw")
    args = parser.parse_args()
    print(f"{timing.settings()}, {torch.get_num_threads()} threads of torch")
    for line in table(args.device, [int(number) for number in args.threads.split(",")]):
        print(line, flush=True)


if __name__ == "__main__":
    main()
