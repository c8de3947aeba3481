"""What a GPU would be asked: calls and copies of a step and of an evaluation, of ddm and of the plain loop.

    python benchmarks/device_calls.py [--classes 10,100] [--cases MMD,MM,CM,ICD,best] [--batch_real 256] [--ipc 10]

Counted without a GPU, by dispatching to torch's meta device: CIFAR10's shape, float32, eager. `device calls` are ATen
calls with a tensor of the device that are no views; each is one or more kernels. `copies`
are those from the host. `host` are operations on CPU tensors and views in the step's own thread. `replayed` is a step
as a CUDA graph: what the host still does. A sync can't be counted: on the meta device it is an error. The passes are
those of a device with 80 GiB (`--memory`).
"""

import argparse
import contextlib
from collections import Counter
from unittest import mock

import step
import timing
import torch
from step import BEST, CASES, random_data
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddm.commands.condense import DDM
from ddm.commands.settings import DDMSettings
from ddm.data.images import ImageData
from ddm.device import Machine
from ddm.evaluation import protocol, stacked, training
from ddm.evaluation.settings import ProtocolSettings
from ddm.evaluation.stacked import Stack
from ddm.methods import matching
from ddm.methods.condensation import Condensation
from ddm.methods.graphs import WARM_UP, Graphed
from ddm.networks import empty_network

ALL = CASES | BEST


class Calls(TorchDispatchMode):
    """Counts the ATen calls of this thread."""

    def __init__(self, device: str = "meta"):
        super().__init__()
        self.kind, self.device, self.copies, self.host = device, Counter(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        kinds = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
        if function.is_view or self.kind not in kinds:
            self.host += 1
        else:
            self.device[str(function)] += 1
            self.copies += "cpu" in kinds
        return out


class Replayed(Graphed):
    """A graph that replays nothing: what remains is the host's part of a step."""

    def _capture(self, drawn: dict[str, Tensor], addresses: list[int]) -> None:
        self.result = self.step(drawn)
        self.graph, self.addresses = mock.Mock(), addresses


def started(case: str, data: ImageData, ipc: int, batch_real: int) -> Condensation:
    settings = DDM.settled(DDMSettings(**ALL[case] | {"device": "cpu", "ipc": ipc, "batch_real": batch_real}))
    settings = settings.but(device="meta", precision="fp32", compile="off")
    maker = Condensation(data, settings, DDM.objective, DDM.needed(settings))
    maker.prepare()
    maker.start(0, None)
    return maker


def ours(case: str, data: ImageData, ipc: int, batch_real: int) -> tuple[Calls, Calls, bool]:
    """The calls of a step, those of a replayed step, and whether consecutive steps have the same calls."""
    maker = started(case, data, ipc, batch_real)
    maker.step(1)
    counts = []
    for iteration in range(2, 8):
        with Calls() as calls:
            maker.step(iteration)
        counts.append(calls)
    maker._take = Replayed(maker._eager, print)
    for iteration in range(8, 8 + WARM_UP + 1):
        maker.step(iteration)
    with Calls() as replayed:
        maker.step(iteration + 1)
    maker.ahead.close()
    return counts[0], replayed, all(calls.device == counts[0].device for calls in counts)


def plain(case: str, data: ImageData, ipc: int, batch_real: int) -> Calls:
    """The calls of a step of the plain loop, with data and images on the device."""
    settings = DDM.settled(DDMSettings(**CASES[case] | {"device": "cpu", "ipc": ipc, "batch_real": batch_real}))
    data = data.to("meta")
    images = torch.empty(data.num_classes * ipc, *data.shape, device="meta", requires_grad=True)
    optimizer = torch.optim.SGD([images], lr=1.0, momentum=0.5)
    with mock.patch.object(Tensor, "item"):
        step.plain_step(case, images, optimizer, data, 1, settings)
        with Calls() as calls:
            step.plain_step(case, images, optimizer, data, 2, settings)
    return calls


def evaluation(K: int, epochs: int = 10) -> tuple[float, float, int, int]:
    """Counts for K stacked networks: device calls per network and training step, copies per training, calls of a test
    on 10,000 images, and the images in a batch of it.

    Counted as a difference, so that what a training does once is left out of the calls per step.
    """
    settings, machine, counts = ProtocolSettings(), Machine("meta"), []
    images, labels = torch.empty(100, 3, 32, 32, device="meta"), torch.empty(100, dtype=torch.long, device="meta")
    for more in (1, 1 + epochs):
        stack = Stack(empty_network("ConvNet", 3, 10, (32, 32), "meta"), K)
        generators = [torch.Generator().manual_seed(k) for k in range(K)]
        stack.initialise(generators)
        with Calls() as calls:
            short = settings.but(epoch_eval_train=more - 1)
            training.train_together(stack, images, labels, short, machine, generators)
        counts.append(calls)
    first, last = counts
    blank, usual, most = empty_network("ConvNet", 3, 10, (32, 32), "meta"), protocol.TEST_BATCH, protocol.MOST_TESTED
    size = stacked.test_batch(blank, (3, 32, 32), K, "meta", usual, most)
    sizes = [min(size, 10000 - begin) for begin in range(0, 10000, size)]
    batches = [(torch.empty(n, 3, 32, 32, device="meta"), torch.empty(n, device="meta").long()) for n in sizes]
    with Calls() as test, contextlib.suppress(NotImplementedError, RuntimeError):  # it reads its result at the end
        training.test_together(stack, batches, machine)
    return (last.device.total() - first.device.total()) / epochs / K, last.copies, test.device.total(), size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", default="10,100")
    parser.add_argument("--cases", default=",".join(ALL))
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--batch_real", type=int, default=256)
    parser.add_argument("--memory", type=float, default=80, help="GiB of the device, which decides the size of a pass")
    options = parser.parse_args()
    print(f"{timing.settings()}; ipc {options.ipc}, batch_real {options.batch_real}\n")
    three = "device calls | copies | host"
    print(f"| classes | terms | step: {three} | replayed: {three} | same steps | plain loop: {three} |")
    print("|" + "---|" * 12)
    budget = 2 ** (int(options.memory * 2**29).bit_length() - 1)  # see device.memory_budget
    with contextlib.ExitStack() as patches:
        for module in (matching, stacked.device):
            patches.enter_context(mock.patch.object(module, "memory_budget", lambda device: budget))
        for classes in map(int, options.classes.split(",")):
            data = random_data(classes, 32, options.batch_real)
            for case in options.cases.split(","):
                mine, replayed, same = ours(case, data, options.ipc, options.batch_real)
                cells = [classes, case]
                for calls in (mine, replayed):
                    cells += [calls.device.total(), calls.copies, calls.host]
                cells.append("yes" if same else "no")
                if case in CASES:
                    calls = plain(case, data, options.ipc, options.batch_real)
                    cells += [calls.device.total(), calls.copies, calls.host]
                else:
                    cells += ["", "", ""]
                texts = [f"{cell:,}" if isinstance(cell, int) else cell for cell in cells]
                print("| " + " | ".join(texts) + " |", flush=True)
        print(
            "\n| networks at once | device calls per network and step | copies per training | final test | its batch |"
        )
        print("|---|---|---|---|---|")
        for K in (1, 5, 10, 20):
            each, copies, tested, size = evaluation(K)
            print(f"| {K} | {each:.2f} | {copies} | {tested} | {size} |", flush=True)


if __name__ == "__main__":
    main()
