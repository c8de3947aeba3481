"""The evaluation: train fresh networks on a small set, and test them on the whole test set.

The protocol is exactly that of DC/DSA/DM. Networks are trained for epochs 0 .. E with SGD (momentum 0.9, weight decay
5e-4) on shuffled batches with DSA. After epoch E // 2 + 1 a new optimizer has a tenth of the learning rate. The
accuracy is that after the **last** epoch, never the best one; --eval_protocol peers is another evaluation (peers.py).
"""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from ddm import rng
from ddm.augment import DiffAugment
from ddm.bars import bar
from ddm.data.images import Batches, ImageData, Normalised
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation.peers import TEST_EVERY, best_epoch
from ddm.evaluation.settings import ProtocolSettings
from ddm.networks import empty_network, initialise

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
TEST_BATCH = 256

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

# (images [n, C, H, W], generator or None) -> augmented images
Augmentation = Callable[[Tensor, torch.Generator | None], Tensor]
# epochs -> the same epochs, shown as they pass
Watch = Callable[[Iterable[int]], Iterable[int]]


def unwatched(epochs: Iterable[int]) -> Iterable[int]:
    """A Watch that shows nothing."""
    return epochs


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


def check_networks(settings: ProtocolSettings, data: ImageData) -> None:
    """Raise UserError if an evaluation network does not accept the images of the data set."""
    for name in get_eval_pool(settings.eval_mode, settings.model):
        try:
            empty_network(name, data.channel, data.num_classes, data.im_size, "meta")
        except UserError as error:
            if name == settings.model:
                raise
            mode = f"--eval_mode {settings.eval_mode}"
            raise UserError(f"{mode} on {data.name}: {error}; choose another mode") from None


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    criterion: nn.Module,
    img: Tensor,
    lab: Tensor,
    machine: Machine | None = None,
) -> Tensor:
    """Train on one batch, or test it if optimizer is None: [loss sum, number correct], on the device, no host sync."""
    with torch.set_grad_enabled(optimizer is not None):
        with (machine or Machine()).autocast():
            output = net(img)
        output = output.float()
        loss = criterion(output, lab)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return torch.stack([loss.detach() * lab.shape[0], (output.argmax(1) == lab).sum()])


def one_epoch(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer | None,
    criterion: nn.Module,
    machine: Machine,
    augmentation: Augmentation | None = None,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Train for one epoch, or test if optimizer is None: mean loss and accuracy in [0, 1].

    Per-image augmentation is drawn from `generator` (on the CPU; None: torch's global generator, as published).
    """
    total, n = torch.zeros(2, device=machine.device), 0
    for img, lab in batches:
        img, lab = img.to(machine.device).float(), lab.to(machine.device).long()
        if augmentation is not None:
            img = augmentation(img, generator)
        total += train_step(net, optimizer, criterion, machine.laid_out(img), lab, machine)
        n += lab.shape[0]
    loss_sum, correct = total.tolist()
    return loss_sum / n, correct / n


def train(
    net: nn.Module,
    images: Tensor | Normalised,
    labels: Tensor,
    settings: ProtocolSettings,
    machine: Machine,
    augmentation: Augmentation | None,
    generator: torch.Generator | None,
    curve: list[list[float]] | None = None,
    watch: Watch = unwatched,
) -> tuple[float, float]:
    """Train `net` on images [N, C, H, W] (normalised) and labels [N]; return the last epoch's loss and accuracy.

    Batch order and augmentation are drawn from `generator` (on the CPU; None: torch's global generator, as published).
    Each epoch's training loss and accuracy are added to `curve`. `watch` shows the progress over epochs.
    """
    labels = labels.to(machine.device)
    if isinstance(images, Tensor):
        images = images.to(machine.device)
    batches = Batches(images, labels, settings.batch_train, shuffle=True, generator=generator)
    criterion = nn.CrossEntropyLoss().to(machine.device)
    E, lr = settings.epoch_eval_train, settings.lr_net

    def fresh_optimizer(lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    optimizer = fresh_optimizer(lr)
    net.train()
    for ep in watch(range(E + 1)):
        loss, accuracy = one_epoch(net, batches, optimizer, criterion, machine, augmentation, generator)
        if curve is not None:
            curve.append([loss, accuracy])
        if ep == E // 2 + 1:
            optimizer = fresh_optimizer(lr / 10)  # with zero momentum
    return loss, accuracy


def test(net: nn.Module, testloader: Iterable[tuple[Tensor, Tensor]], machine: Machine) -> float:
    """The accuracy in [0, 1] on the images of a loader."""
    net.eval()
    return one_epoch(net, testloader, None, nn.CrossEntropyLoss(), machine)[1]


def report_line(
    it_eval: int, E: int, seconds: float, loss_train: float, acc_train: float, acc_test: float, which: str = ""
) -> str:
    """The line in training.log for one evaluation network; `which` epoch was tested, if not the last."""
    return (
        f"Evaluate_{it_eval:02d}: last epoch {E}, {seconds:.0f} s, train loss {loss_train:.6f}, "
        f"train acc {acc_train:.4f}, {which + ' ' if which else ''}test acc {acc_test:.4f}"
    )


class Evaluator:
    """Evaluates sets on one data set with fresh networks of an evaluation mode.

    One network per architecture is built and compiled once; every evaluation initialises it again.
    """

    def __init__(self, data: ImageData, settings: ProtocolSettings, machine: Machine, peers: bool = False):
        """Prepare for one data set; `peers` selects the evaluation of peers.py."""
        self.data, self.settings, self.machine, self.peers = data, settings, machine, peers
        self.models = get_eval_pool(settings.eval_mode, settings.model)
        self.testloader = Batches(Normalised(data, data.x_test), data.y_test, TEST_BATCH)
        self.nets: dict[str, nn.Module] = {}

    def _net(self, model: str) -> nn.Module:
        if model not in self.nets:
            data, machine = self.data, self.machine
            net = empty_network(model, data.channel, data.num_classes, data.im_size, machine.device)
            self.nets[model] = machine.compiled(machine.laid_out_net(net))
        return self.nets[model]

    def augmentation(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return DiffAugment(images, self.settings.dsa_strategy, generator=generator)

    def __call__(
        self, images: Tensor | Normalised, labels: Tensor, experiment: int, iteration: int, log: Callable[[str], None]
    ) -> dict[str, list[float]]:
        """The test accuracies in [0, 1] of settings.num_eval fresh networks of each architecture.

        (seed, experiment, iteration, number) determine the weights, batches and augmentation of a network. So the
        results of different recipes are paired by network.
        """
        return {
            model: [
                self.accuracy(model, images, labels, experiment, iteration, it_eval, log)
                for it_eval in range(self.settings.num_eval)
            ]
            for model in self.models
        }

    def accuracy(
        self,
        model: str,
        images: Tensor | Normalised,
        labels: Tensor,
        experiment: int,
        iteration: int,
        it_eval: int,
        log: Callable[[str], None],
        curve: list[list[float]] | None = None,
        watch: Watch | None = None,
    ) -> float:
        """The test accuracy in [0, 1] of fresh network number it_eval of one architecture.

        Without `watch`, a progress bar shows the epochs.
        """
        settings, machine = self.settings, self.machine
        where = (settings.seed, experiment, iteration, -1)
        net = initialise(self._net(model), rng.generator(*where, f"evaluation network {it_eval}"))
        generator = rng.generator(*where, f"evaluation training {it_eval}")
        if watch is None:
            text = f"{model} {it_eval + 1}/{settings.num_eval}"
            watch = partial(bar, desc=text, unit="epoch", leave=False)
        start = time.perf_counter()
        if self.peers:
            tested = partial(test, net, self.testloader, machine)
            outcome = best_epoch(net, images, labels, settings, machine, generator, tested, curve, watch)
            log(report_line(it_eval, settings.epoch_eval_train, time.perf_counter() - start, *outcome, "best"))
            return outcome[-1]
        loss, acc_train = train(net, images, labels, settings, machine, self.augmentation, generator, curve, watch)
        seconds = time.perf_counter() - start
        accuracy = test(net, self.testloader, machine)
        log(report_line(it_eval, settings.epoch_eval_train, seconds, loss, acc_train, accuracy))
        return accuracy

    def network_seconds(self, model: str, images: Tensor | Normalised, labels: Tensor) -> float:
        """The expected seconds of one network, from two epochs of training; must not be called during a training."""
        settings, machine = self.settings, self.machine
        net = initialise(self._net(model), rng.generator(settings.seed, 0, 0, -1, "estimate"))
        passed: list[float] = []

        def watch(epochs: Iterable[int]) -> Iterable[int]:
            for epoch in (0, 1):  # the first may compile
                yield epoch
                passed.append(time.perf_counter())

        train(net, images, labels, settings, machine, self.augmentation, torch.Generator(), watch=watch)
        return self.from_epochs(passed[1] - passed[0], len(labels))

    def from_epochs(self, epoch_seconds: float, n: int) -> float:
        """The expected seconds of one network trained on n images, from those of one epoch.

        Testing an image costs a third of training on it, as a backward pass costs two forward passes.
        """
        return epoch_seconds * (self.settings.epoch_eval_train + 1 + len(self.testloader.labels) / (3 * n))


def summary(accs: list[float]) -> dict[str, float | int | list[float]]:
    """Mean and (population, as published) standard deviation, number, and the accuracies, all in [0, 1]."""
    return {"mean": statistics.fmean(accs), "std": statistics.pstdev(accs), "n": len(accs), "accuracies": accs}


def describe(accs: list[float]) -> str:
    """A text such as 'mean 48.90 %, std 0.60, n 5'."""
    s = summary(accs)
    return f"mean {100 * s['mean']:.2f} %, std {100 * s['std']:.2f}, n {s['n']}"


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
    augmentation = "no augmentation" if strategy in ("", "none", "None") else f"DSA {strategy}"
    return (
        f"fresh networks, {E + 1} epochs of SGD lr {settings.lr_net}{drop}, "
        f"momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, batch {settings.batch_train}, {machine.precision}, "
        f"{augmentation}, {pixels}hard labels; "
        f"accuracy after the last epoch on all {held}"
    )
