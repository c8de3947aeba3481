"""A pool of networks that are trained on the real images, at several points of their training.

It serves --networks trained and mixed, and L_CE (--ce_ratio). Not of the DDM paper; source: DANCE (Zhang et al., IJCAI
2024).
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ddm import device, rng
from ddm.augment import DiffAugment
from ddm.bars import bar
from ddm.data.images import Batches, ImageData, Normalised
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation import stacked
from ddm.evaluation.training import MOMENTUM, WEIGHT_DECAY, epochs_together, step_together, train_step
from ddm.methods import cache
from ddm.methods.plan import Plan
from ddm.methods.settings import PoolSettings
from ddm.networks import Network, empty_network, flat, initialise, untapped

SNAPSHOTS = 8  # points of a network's training that are kept, in equal steps, besides its initialisation
BATCH = 128
WARM_UP = 0.2  # fraction of a training in which the learning rate rises; it then falls to 0


def trained_pool(data: ImageData, plan: Plan) -> Tensor:
    """The points of all networks of a pool, float16 on the CPU: [networks, 1 + SNAPSHOTS, parameters].

    Networks that the cache lacks are trained. Ranks, and other processes with the same pool, share this work.
    Raises UserError for a damaged cache, or if a network diverges.
    """
    group, model = plan.ranks, untapped(plan.settings.model)
    blank = empty_network(model, data.channel, data.num_classes, data.im_size, "meta")
    paths = pool_paths(blank, data, plan)
    mine = dict(list(enumerate(paths))[group.rank :: group.world])
    points: dict[int, Tensor] = {}
    for part in group.gather(completed(blank, data, plan, mine)):
        points |= part
    shape = (1 + SNAPSHOTS, sum(p.numel() for p in blank.parameters()))
    for number, path in enumerate(paths):
        check_points(points[number], shape, path, model)
    return torch.stack([points[number] for number in range(len(paths))])


def pool_paths(blank: Network, data: ImageData, plan: Plan) -> list[Path]:
    """The file of each network of a pool; all that determines a network is in their name."""
    s, machine, model = plan.settings, plan.machine, untapped(plan.settings.model)
    parts = (data.digest, model, s.pool_epochs, s.pool_lr, s.seed, s.eval_split, s.zca, s.dsa_strategy)
    parts += (machine.precision, machine.compile, data.class_names, data.mean, data.std, *cache.architecture(blank))
    name = f"pool_{data.name}_{model}_{s.pool_epochs}epochs_{cache.key(*parts)}"
    return [cache.cache_folder(s) / name / f"network_{number:03}.pt" for number in range(s.pool)]


def completed(blank: Network, data: ImageData, plan: Plan, paths: dict[int, Path]) -> dict[int, Tensor]:
    """The points of the networks with these numbers and files: each trained here, or by another process."""
    if not paths:
        return {}
    s, machine = plan.settings, plan.machine
    net = empty_network(untapped(s.model), data.channel, data.num_classes, data.im_size, machine.device)
    net = machine.laid_out_net(net)
    forward = machine.compiled(net.forward)

    def make(numbers: list[int]) -> list[Tensor] | None:
        if len(numbers) == 1:
            return [train(net, forward, data, s, machine, numbers[0], plan.ranks.first)]
        return device.if_memory_allows(partial(trained_together, blank, data, s, machine, numbers))

    made = cache.made_by_all(paths, make, at_once(blank, data, s, machine, len(paths)))
    options = {"desc": f"pool of {s.pool} trained networks", "unit": "network", "show": plan.ranks.first}
    with bar(made, total=len(paths), **options) as progress:
        return dict(progress)


def check_points(points: object, shape: Sequence[int], path: Path, model: str) -> None:
    """Raise UserError if the content of a file is not the finite points of a network."""
    usual = isinstance(points, Tensor) and (points.layout, points.dtype) == (torch.strided, torch.float16)
    if not usual or points.shape != shape or not points.isfinite().all():
        raise cache.damaged(path, f"it does not fit {model}")


def train(
    net: Network,
    forward: Callable[[Tensor], Tensor],
    data: ImageData,
    settings: PoolSettings,
    machine: Machine,
    number: int,
    show: bool,
) -> Tensor:
    """Train network `number` of a pool on the training images: its points, float16 [1 + SNAPSHOTS, parameters].

    `forward` is net.forward, compiled or not. SGD with the momentum, weight decay and augmentation of the evaluation;
    the learning rate rises to --pool_lr and falls to 0. If `show`, a bar counts the epochs. Raises UserError if the
    network diverges.
    """
    where = (settings.seed, 0, number, -1)
    initialise(net, rng.generator(*where, "pool network")).train()
    generator = rng.generator(*where, "pool training")
    batches = Batches(Normalised(data, data.x_train), data.y_train, BATCH, shuffle=True, generator=generator)
    criterion = nn.CrossEntropyLoss()

    def step(optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
        images = DiffAugment(images, settings.dsa_strategy, generator=generator)
        train_step(forward, optimizer, criterion, machine.laid_out(images), labels, machine)

    progress = {"desc": f"network {number} of the pool", "unit": "epoch", "leave": False, "show": show}
    epochs = (batches for _ in bar(range(settings.pool_epochs), **progress))
    points = points_of_training(net.parameters(), len(batches), epochs, settings, step, lambda: flat(net).half().cpu())
    check_finite(points, number, settings)
    return points


def points_of_training(
    weights: Iterable[Tensor],
    steps_of_epoch: int,
    epochs: Iterable[Iterable[tuple[Tensor, Tensor]]],
    settings: PoolSettings,
    step: Callable[[torch.optim.Optimizer, Tensor, Tensor], None],
    point: Callable[[], Tensor],
) -> Tensor:
    """Train `weights` by `step` on the batches of all epochs: 1 + SNAPSHOTS values of `point()`, stacked."""
    optimizer = torch.optim.SGD(weights, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    steps, done = settings.pool_epochs * steps_of_epoch, 0
    kept = {round(steps * k / SNAPSHOTS) for k in range(1, SNAPSHOTS + 1)}
    points = [point()]
    for batches in epochs:
        for images, labels in batches:
            rising, falling = (done + 1) / (WARM_UP * steps), (1 - done / steps) / (1 - WARM_UP)
            optimizer.param_groups[0]["lr"] = settings.pool_lr * min(1, rising, falling)
            step(optimizer, images, labels)
            done += 1
            if done in kept:
                points.append(point())
    points += [points[-1]] * (1 + SNAPSHOTS - len(points))  # fewer steps than points
    return torch.stack(points)


def check_finite(points: Tensor, number: int, settings: PoolSettings) -> None:
    """Raise UserError if a network has diverged."""
    if not points.isfinite().all():
        raise UserError(f"network {number} of the pool diverged: lower --pool_lr {settings.pool_lr:g}")


def at_once(blank: Network, data: ImageData, settings: PoolSettings, machine: Machine, number: int) -> int:
    """How many of `number` networks of a pool are trained together; `blank` is on the meta device."""
    if not stacked.stacks(machine.device):
        return 1
    batch = min(BATCH, len(data.x_train))
    return stacked.at_once(blank, data.shape, settings.dsa_strategy, batch, number, machine.device)


def trained_together(
    blank: Network, data: ImageData, settings: PoolSettings, machine: Machine, numbers: list[int]
) -> list[Tensor]:
    """`train` of several networks of a pool at once, with equal results up to rounding; `blank` is as in `at_once`."""
    fresh, training = (
        [rng.generator(settings.seed, 0, number, -1, f"pool {purpose}") for number in numbers]
        for purpose in ("network", "training")
    )
    stack = stacked.Stack(copy.deepcopy(blank).train(), len(numbers), machine.device, machine)
    stack.initialise(fresh)
    images, labels, s = Normalised(data, data.x_train), data.y_train, settings
    epochs = epochs_together(images, labels, BATCH, s.dsa_strategy, training, s.pool_epochs, machine.device)

    def step(optimizer: torch.optim.Optimizer, maps: Tensor, labels: Tensor) -> None:
        step_together(stack, optimizer, maps, labels, machine)

    points = points_of_training(
        [stack.flat], -(-len(labels) // BATCH), epochs, s, step, lambda: stack.vectors().half().cpu()
    )
    for k, number in enumerate(numbers):
        check_finite(points[:, k], number, settings)
    return list(points.unbind(1))
