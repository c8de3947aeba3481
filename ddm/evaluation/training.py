"""Trains and tests one network, or several of one architecture at once; see protocol.py for the settings."""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddm.augment import applied
from ddm.data.images import Batches, Normalised
from ddm.device import Machine
from ddm.evaluation.settings import ProtocolSettings
from ddm.evaluation.stacked import Stack, drawn_epochs, maps_of

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4

# (images [n, C, H, W], generator or None) -> augmented images
Augmentation = Callable[[Tensor, torch.Generator | None], Tensor]
# wraps the epochs in a progress bar
Watch = Callable[[Iterable[int]], Iterable[int]]


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    criterion: Callable[[Tensor, Tensor], Tensor],
    img: Tensor,
    target: Tensor,
    machine: Machine,
) -> tuple[Tensor, Tensor]:
    """Train on one batch, or test it if optimizer is None; no host sync.

    Images [n, C, H, W] are normalised; `target` is labels [n], or shares of the classes [n, classes]. Returns the loss
    (a scalar) and the outputs, float32 [n, classes], on the device.
    """
    with torch.set_grad_enabled(optimizer is not None):
        with machine.autocast():
            output = net(img)
        output = output.float()
        loss = criterion(output, target)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return loss.detach(), output.detach()


def one_epoch(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer | None,
    criterion: nn.Module,
    machine: Machine,
    augmentation: Augmentation | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, int]:
    """Train for one epoch, or test if optimizer is None: [loss sum, number correct] on the device, number of images.

    Per-image augmentation is drawn from `generator` (on the CPU; None: torch's global generator, as published).
    """
    total, n = torch.zeros(2, device=machine.device), 0
    for img, lab in batches:
        img, lab = img.to(machine.device).float(), lab.to(machine.device).long()
        if augmentation is not None:
            img = augmentation(img, generator)
        loss, output = train_step(net, optimizer, criterion, machine.laid_out(img), lab, machine)
        total += torch.stack([loss * lab.shape[0], (output.argmax(1) == lab).sum()])
        n += lab.shape[0]
    return total, n


def schedule(
    weights: Iterable[Tensor],
    settings: ProtocolSettings,
    epoch: Callable[[torch.optim.Optimizer], Tensor],
    watch: Watch = iter,
) -> Tensor:
    """Train `weights` for epochs 0 .. E by `epoch(optimizer)`; the results of all epochs, stacked: [E + 1, ...].

    They stay on the device, so that the host never waits for it.
    """
    E, lr, weights = settings.epoch_eval_train, settings.lr_net, list(weights)

    def fresh_optimizer(lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    optimizer, totals = fresh_optimizer(lr), []
    for ep in watch(range(E + 1)):
        totals.append(epoch(optimizer))
        if ep == E // 2 + 1:
            optimizer = fresh_optimizer(lr / 10)  # with zero momentum
    return torch.stack(totals)


def train(
    net: nn.Module,
    images: Tensor | Normalised,
    labels: Tensor,
    settings: ProtocolSettings,
    machine: Machine,
    augmentation: Augmentation | None,
    generator: torch.Generator | None,
    watch: Watch = iter,
) -> list[list[float]]:
    """Train `net` on images [N, C, H, W] (normalised) and labels [N]; return each epoch's loss and training accuracy.

    Batch order and augmentation are drawn from `generator` (on the CPU; None: torch's global generator, as published).
    `watch` shows the progress over epochs. Waits for the device at the end.
    """
    images, labels = images.to(machine.device), labels.to(machine.device)
    batches = Batches(images, labels, settings.batch_train, shuffle=True, generator=generator)
    criterion = nn.CrossEntropyLoss().to(machine.device)
    net.train()

    def epoch(optimizer: torch.optim.Optimizer) -> Tensor:
        return one_epoch(net, batches, optimizer, criterion, machine, augmentation, generator)[0]

    return means(schedule(net.parameters(), settings, epoch, watch), len(labels))


def means(totals: Tensor, n: int) -> list:
    """Sums [..., 2] over n images on a device -> lists of [loss, accuracy]; waits for the device."""
    return (totals.cpu().double() / n).tolist()


def test(net: nn.Module, testloader: Iterable[tuple[Tensor, Tensor]], machine: Machine) -> float:
    """The accuracy in [0, 1] on the images of a loader."""
    net.eval()
    total, n = one_epoch(net, testloader, None, nn.CrossEntropyLoss(), machine)
    return total[1].item() / n


def train_together(
    stack: Stack,
    images: Tensor | Normalised,
    labels: Tensor,
    settings: ProtocolSettings,
    machine: Machine,
    generators: list[torch.Generator],
    watch: Watch = iter,
) -> Tensor:
    """Train each network of a stack as `train` trains it alone; sums of loss and correct images, [epochs, K, 2].

    They are on the device, and the host has not waited for it.
    """
    E, batch, strategy = settings.epoch_eval_train, settings.batch_train, settings.dsa_strategy
    epochs = epochs_together(images, labels, batch, strategy, generators, E + 1, machine.device)
    stack.train(True)

    def epoch(optimizer: torch.optim.Optimizer) -> Tensor:
        total = torch.zeros(stack.K, 2, device=machine.device)
        for maps, lab in next(epochs):
            total += step_together(stack, optimizer, maps, lab, machine)
        return total

    return schedule([stack.flat], settings, epoch, watch)


def epochs_together(
    images: Tensor | Normalised,
    labels: Tensor,
    batch: int,
    strategy: str,
    generators: list[torch.Generator],
    epochs: int,
    where: str,
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """For each epoch its augmented batches, one for every generator: maps [n, K * C, H, W] and labels [K, n]."""
    images, labels = images.to(where), labels.to(where)
    n, size = len(labels), tuple(images.shape[-2:])

    def batches(host_order: Tensor, order: Tensor, parameters: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, n, batch):
            part = (slice(None), slice(first, min(first + batch, n)))
            # images of a store are read at indices of the host
            keys = (host_order if images.device.type == "cpu" else order)[part]
            img = images[keys.flatten()].unflatten(0, keys.shape)
            yield maps_of(img if parameters is None else applied(img, parameters[part])), labels[order[part]]

    for drawn in drawn_epochs(generators, epochs, n, batch, strategy, size, where):
        yield batches(*drawn)


def step_together(
    stack: Stack,
    optimizer: torch.optim.Optimizer | None,
    maps: Tensor,
    lab: Tensor,
    machine: Machine,
) -> Tensor:
    """`train_step` of a stack on maps [n, K * C, H, W] and labels [K, n]: [K, 2], on the device, no host sync."""
    with torch.set_grad_enabled(optimizer is not None):
        with machine.autocast():
            output = stack.forward(machine.laid_out(maps))
        output = output.float()  # [K, n, classes]
        losses = F.cross_entropy(output.flatten(0, 1), lab.flatten(), reduction="none").view_as(lab).sum(1)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        (losses.sum() / lab.shape[1]).backward()  # sum over networks of their mean losses
        optimizer.step()
    return torch.stack([losses.detach(), (output.argmax(2) == lab).sum(1)], dim=1)


def test_together(stack: Stack, testloader: Iterable[tuple[Tensor, Tensor]], machine: Machine) -> list[float]:
    """The accuracies in [0, 1] of the networks of a stack on the images of a loader."""
    stack.train(False)
    total, n = torch.zeros(stack.K, 2, device=machine.device), 0
    for img, lab in testloader:
        maps = img.to(machine.device).float().repeat(1, stack.K, 1, 1)
        lab = lab.to(machine.device).expand(stack.K, -1)
        total += step_together(stack, None, maps, lab, machine)
        n += lab.shape[1]
    return [accuracy for _, accuracy in means(total, n)]
