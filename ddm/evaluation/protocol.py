"""The evaluation: train fresh networks on a small set, and test them on the whole test set.

The protocol is exactly that of DC/DSA/DM. Networks are trained for epochs 0 .. E with SGD (momentum 0.9, weight decay
5e-4) on shuffled batches with DSA. After epoch E // 2 + 1 a new optimizer has a tenth of the learning rate. The
accuracy is that after the **last** epoch, never the best one; --eval_protocol peers is another evaluation (peers.py).
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ddm import rng
from ddm.augment import DiffAugment, operations_of
from ddm.bars import bar
from ddm.data.images import Batches, ImageData, Normalised
from ddm.device import Machine, if_memory_allows
from ddm.errors import UserError
from ddm.evaluation import stacked
from ddm.evaluation.peers import TEST_EVERY, best_epoch
from ddm.evaluation.settings import ProtocolSettings
from ddm.evaluation.stacked import Stack
from ddm.evaluation.training import (
    MOMENTUM,
    WEIGHT_DECAY,
    Watch,
    means,
    test,
    test_together,
    train,
    train_together,
)
from ddm.networks import Network, empty_network, initialise, untapped

TEST_BATCH = 256
MOST_TESTED = 2048  # images per test batch of an accelerator

POOLS = {  # evaluation mode -> networks; S and SS follow the model, see get_eval_pool
    "M": ["MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"],
    "B": ["ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"],
    "W": ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"],
    "D": ["ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"],
    "A": ["ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"],
    "P": ["ConvNetNP", "ConvNetMP", "ConvNetAP"],
    "N": ["ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"],
}
EVAL_MODES = ("S", "SS", *POOLS)

T = TypeVar("T")


def get_eval_pool(eval_mode: str, model: str, model_eval: str | None = None) -> list[str]:
    """The names of the networks of an evaluation mode.

    SS: the model itself. S: the model without BatchNorm, as few images give poor statistics. M, B, W, D, A, P, N:
    architectures, BatchNorm networks, widths, depths, activations, poolings, norms. Any other mode: [model_eval], as
    published.
    """
    if eval_mode == "SS":
        return [model]
    if eval_mode == "S":
        return [model.split("BN")[0]]
    return list(POOLS.get(eval_mode, [model_eval]))


def headline_model(model: str, evaluated: Iterable[str]) -> str:
    """The network of a run's headline accuracy: its own model, else the first of the pool `evaluated`."""
    evaluated = list(evaluated) or [model]
    return next((name for name in evaluated if untapped(name) == untapped(model)), evaluated[0])


def check_networks(settings: ProtocolSettings, data: ImageData) -> None:
    """Raise UserError if an evaluation network does not accept the images of the data set."""
    for name in get_eval_pool(settings.eval_mode, settings.model):
        try:
            empty_network(name, data.channel, data.num_classes, data.im_size, "meta")
        except UserError as error:
            if name == settings.model:
                raise
            mode = f"--eval_mode {settings.eval_mode}"
            raise UserError(f"{mode} on {data.name}: {error}, or another mode") from None


def report_line(
    it_eval: int, E: int, seconds: float, loss_train: float, acc_train: float, acc_test: float, which: str = ""
) -> str:
    """The line in training.log for one evaluation network; `which` epoch was tested, if not the last."""
    return (
        f"Evaluate_{it_eval:02d}: last epoch {E}, {seconds:.0f} s, train loss {loss_train:.6f}, "
        f"train acc {acc_train:.4f}, {which + ' ' if which else ''}test acc {acc_test:.4f}"
    )


@dataclass(frozen=True)
class TrainingSet:
    """A set to evaluate.

    (seed, experiment, iteration, number) determine the weights, batches and augmentation of a network. So the results
    of different recipes are paired by network.
    """

    images: Tensor | Normalised  # [N, C, H, W], normalised
    labels: Tensor  # [N]
    experiment: int
    iteration: int


class Trained(NamedTuple):
    """The results of one evaluation network."""

    accuracy: float  # on the test images, in [0, 1]
    curve: list[list[float]]  # training loss and accuracy of each epoch
    together: int = 1  # how many networks were trained at once


class Evaluator:
    """Evaluates sets on one data set with fresh networks of an evaluation mode.

    Networks are built and compiled once per architecture; every evaluation initialises them again. On an accelerator,
    networks of one architecture are trained and tested together, as many as fit its memory, with equal results up to
    rounding.
    """

    def __init__(
        self,
        data: ImageData,
        settings: ProtocolSettings,
        machine: Machine,
        peers: bool = False,
        together: bool | None = None,
    ):
        """Prepare for one data set; `peers` selects the evaluation of peers.py.

        `together` trains networks together or one by one; by default the device decides.
        """
        self.data, self.settings, self.machine, self.peers = data, settings, machine, peers
        self.together = stacked.stacks(machine.device) if together is None else together
        self.models = get_eval_pool(settings.eval_mode, settings.model)
        self.nets: dict[str, nn.Module] = {}
        self.stacks: dict[tuple[str, int], Stack] = {}
        # Networks at once, and images of a test batch, after a larger number was out of memory.
        self.limit: dict[str, int] = {}
        self.most_tested = MOST_TESTED

    def _empty(self, model: str, device: str) -> Network:
        return empty_network(model, self.data.channel, self.data.num_classes, self.data.im_size, device)

    def _net(self, model: str) -> nn.Module:
        if model not in self.nets:
            machine = self.machine
            self.nets[model] = machine.compiled(machine.laid_out_net(self._empty(model, machine.device)))
        return self.nets[model]

    def augmentation(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return DiffAugment(images, self.settings.dsa_strategy, generator=generator)

    def __call__(
        self, images: Tensor | Normalised, labels: Tensor, experiment: int, iteration: int, log: Callable[[str], None]
    ) -> dict[str, list[float]]:
        """The test accuracies in [0, 1] of settings.num_eval fresh networks of each architecture; see TrainingSet."""
        training_set, numbers = TrainingSet(images, labels, experiment, iteration), range(self.settings.num_eval)
        return {
            model: [trained.accuracy for trained in self.trained(model, training_set, numbers, log)]
            for model in self.models
        }

    def at_once(self, model: str, n: int, number: int) -> int:
        """How many of `number` networks of an architecture are trained together on n images; 1: one by one."""
        if not self.together or self.peers:
            return 1
        blank, image, settings = self._empty(model, "meta"), self.data.shape, self.settings
        batch, most = min(n, settings.batch_train), self.limit.get(model, number)
        return min(most, stacked.at_once(blank, image, settings.dsa_strategy, batch, number, self.machine.device))

    def trained(
        self,
        model: str,
        training_set: TrainingSet,
        numbers: Sequence[int],
        log: Callable[[str], None],
        watch: Callable[[Sequence[int]], Watch] | None = None,
    ) -> list[Trained]:
        """Train and test fresh networks of one architecture, together or one by one; see `at_once`.

        `watch` of some numbers shows the progress of their training; by default a progress bar.
        """
        done: list[Trained] = []
        most = self.at_once(model, len(training_set.labels), len(numbers))
        while len(done) < len(numbers):
            part = numbers[len(done) : len(done) + most]
            shown = watch(part) if watch else partial(bar, desc=self.title(model, part), unit="epoch", leave=False)
            if len(part) == 1:
                done.append(self._single(model, training_set, part[0], log, shown))
                continue
            new = if_memory_allows(partial(self._together, model, training_set, part, log, shown))
            if new is None:
                most = self._halved(model, len(part))
                log(f"out of memory: {model}: continuing with {most} networks at once; equal up to rounding")
            else:
                done += new
        return done

    def _halved(self, model: str, number: int) -> int:
        """How many networks are trained together from now on, after `number` were out of memory."""
        self.stacks.pop((model, number), None)
        self.limit[model] = number // 2
        return number // 2

    def title(self, model: str, numbers: Sequence[int]) -> str:
        """A text such as 'ConvNet 3/20' or 'ConvNet 1-10/20'."""
        first, last = numbers[0] + 1, numbers[-1] + 1
        return f"{model} {first if first == last else f'{first}-{last}'}/{self.settings.num_eval}"

    def _stack(self, model: str, generators: list[torch.Generator]) -> Stack:
        key, where = (model, len(generators)), self.machine.device
        if key not in self.stacks:
            self.stacks[key] = Stack(self._empty(model, "meta"), len(generators), where, self.machine)
        self.stacks[key].initialise(generators)
        return self.stacks[key]

    def _generators(self, training_set: TrainingSet, numbers: Sequence[int], purpose: str) -> list[torch.Generator]:
        where = (self.settings.seed, training_set.experiment, training_set.iteration, -1)
        return [rng.generator(*where, f"evaluation {purpose} {k}") for k in numbers]

    def _together(
        self, model: str, training_set: TrainingSet, numbers: Sequence[int], log: Callable[[str], None], watch: Watch
    ) -> list[Trained]:
        """`trained` of several networks at once."""
        settings, machine, K = self.settings, self.machine, len(numbers)
        stack = self._stack(model, self._generators(training_set, numbers, "network"))
        generators = self._generators(training_set, numbers, "training")
        start = time.perf_counter()
        totals = train_together(stack, training_set.images, training_set.labels, settings, machine, generators, watch)
        curves = means(totals.transpose(0, 1), len(training_set.labels))  # waits for the device
        seconds = time.perf_counter() - start
        accs = self._tested(model, K, partial(test_together, stack, machine=machine))
        log(f"{self.title(model, numbers)}: {K} networks trained together in {seconds:.0f} s")
        for k, curve, accuracy in zip(numbers, curves, accs, strict=True):
            log(report_line(k, settings.epoch_eval_train, seconds / K, *curve[-1], accuracy))
        stack.flat.grad = None  # memory of the next training
        return [Trained(accuracy, curve, K) for accuracy, curve in zip(accs, curves, strict=True)]

    def _single(
        self, model: str, training_set: TrainingSet, number: int, log: Callable[[str], None], watch: Watch
    ) -> Trained:
        """`trained` of one network."""
        settings, machine = self.settings, self.machine
        net = initialise(self._net(model), *self._generators(training_set, [number], "network"))
        (generator,) = self._generators(training_set, [number], "training")
        tested = partial(self._tested, model, 1, partial(test, net, machine=machine))
        start = time.perf_counter()
        arguments = (net, training_set.images, training_set.labels, settings, machine)
        if self.peers:
            totals, accuracy = best_epoch(*arguments, generator, tested, watch)
            curve = means(totals, len(training_set.labels))
            seconds, which = time.perf_counter() - start, "best"
        else:
            curve = train(*arguments, self.augmentation, generator, watch)
            seconds, which = time.perf_counter() - start, ""  # `train` has waited for the device
            accuracy = tested()
        log(report_line(number, settings.epoch_eval_train, seconds, *curve[-1], accuracy, which))
        return Trained(accuracy, curve)

    def _tested(self, model: str, networks: int, test: Callable[[Batches], T]) -> T:
        """Test on the whole test set, in smaller batches if an accelerator has too little memory."""
        data, where = self.data, self.machine.device
        while True:
            size = stacked.test_batch(
                self._empty(model, "meta"), data.shape, networks, where, TEST_BATCH, self.most_tested
            )
            testloader = Batches(Normalised(data, data.x_test), data.y_test, size)
            if size == 1 or not stacked.stacks(where):
                return test(testloader)
            found = if_memory_allows(partial(test, testloader))
            if found is not None:
                return found
            self.most_tested = size // 2

    def network_seconds(self, model: str, images: Tensor | Normalised, labels: Tensor) -> float:
        """The expected seconds of one network, from two epochs of training; must not be called during a training."""
        settings, machine = self.settings, self.machine
        number = self.at_once(model, len(labels), settings.num_eval)
        passed: list[float] = []

        def watch(epochs: Iterable[int]) -> Iterable[int]:
            for epoch in (0, 1):  # the first may compile
                yield epoch
                wait_for(machine.device)
                passed.append(time.perf_counter())

        def trial() -> bool:
            passed.clear()
            fresh = [rng.generator(settings.seed, 0, 0, -1, "estimate") for _ in range(number)]
            generators = [torch.Generator() for _ in fresh]
            if number > 1:
                stack, short = self._stack(model, fresh), settings.but(epoch_eval_train=1)
                train_together(stack, images, labels, short, machine, generators, watch)
                stack.flat.grad = None
            else:
                net = initialise(self._net(model), *fresh)
                train(net, images, labels, settings, machine, self.augmentation, *generators, watch=watch)
            return True

        while number > 1 and not if_memory_allows(trial):
            number = self._halved(model, number)
        if number == 1:
            trial()
        return self.from_epochs((passed[1] - passed[0]) / number, len(labels))

    def from_epochs(self, epoch_seconds: float, n: int) -> float:
        """The expected seconds of one network trained on n images, from those of one epoch.

        Testing an image costs a third of training on it, as a backward pass costs two forward passes.
        """
        return epoch_seconds * (self.settings.epoch_eval_train + 1 + len(self.data.y_test) / (3 * n))


def wait_for(device: str) -> None:
    """Wait until a device has finished, for timing."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def summary(accs: list[float]) -> dict[str, float | int | list[float]]:
    """Mean and (population, as published) standard deviation, number, and the accuracies, all in [0, 1]."""
    return {"mean": statistics.fmean(accs), "std": statistics.pstdev(accs), "n": len(accs), "accuracies": accs}


def interval(differences: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of the mean, by Student's t; None for fewer than two values."""
    from scipy import stats  # imported here: it takes a second

    n = len(differences)
    return float(stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5) if n > 1 else None


def record(entry: dict, trained: Sequence[Trained]) -> None:
    """Add networks to an entry of results.json: their accuracies, and the numbers of networks that trained at once."""
    before = entry.get("accuracies", [])
    together = [*entry.get("together", [1] * len(before)), *(one.together for one in trained)]
    entry.update(summary([*before, *(one.accuracy for one in trained)]))
    if max(together) > 1:  # on a CPU they train one by one
        entry["together"] = together


def describe(accs: list[float]) -> str:
    """A text such as 'mean 48.90 %, std 0.60, n 5'; one network has no deviation."""
    s = summary(accs)
    std = f"std {100 * s['std']:.2f}, " if len(accs) > 1 else ""
    return f"mean {100 * s['mean']:.2f} %, {std}n {s['n']}"


def protocol(settings: ProtocolSettings, machine: Machine, data: ImageData, peers: bool = False) -> str:
    """A one-line description of the evaluation, printed with its results."""
    E, held = settings.epoch_eval_train, f"{len(data.x_test)} {settings.eval_split} images"
    if peers:
        return (
            f"the peers', not comparable with the last epoch: fresh networks, {E} epochs of AdamW lr {settings.lr_net} "
            f"(halved after each fifth), batch {settings.batch_train}, {machine.precision}, CutMix, DSA "
            f"{settings.dsa_strategy}, hard labels; the best of every {TEST_EVERY}th epoch on all {held}"
        )
    drop = f" (a tenth after epoch {E // 2 + 1})" if E // 2 + 1 < E else ""
    pixels = "ZCA-whitened pixels, " if data.normalisation.whitened else ""
    strategy = settings.dsa_strategy
    augmentation = f"DSA {strategy}" if operations_of(strategy) else "no augmentation"
    return (
        f"fresh networks, {E + 1} epochs of SGD lr {settings.lr_net}{drop}, "
        f"momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, batch {settings.batch_train}, {machine.precision}, "
        f"{augmentation}, {pixels}hard labels; "
        f"accuracy after the last epoch on all {held}"
    )
