"""The distribution of networks under which real and synthetic images are matched. A new one is a row of NETWORKS.

random: fresh networks, as in DM and DDM. trained: networks from a pool, each at a random point of its training on the
real images (not of the DDM paper; source: DANCE, Zhang et al., IJCAI 2024). mixed: either, at random.
online: networks that train on the synthetic set (FRePo, Zhou et al., NeurIPS 2022).
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddm import device, rng
from ddm.augment import DiffAugment
from ddm.bars import bar
from ddm.data.images import Batches, ImageData, Normalised
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation import stacked
from ddm.evaluation.protocol import MOMENTUM, WEIGHT_DECAY, epochs_together, step_together, train_step
from ddm.methods import cache
from ddm.methods.matching import Needs
from ddm.methods.plan import Plan, pooled
from ddm.methods.settings import PoolSettings
from ddm.networks import Initial, Network, assign, empty_network, flat, initialise, untapped

SNAPSHOTS = 8  # points of a network's training that are kept, in equal steps, besides its initialisation
BATCH = 128
ONLINE_STEPS = 100  # of a network on the synthetic set, before a fresh one takes its place
WARM_UP = 0.2  # fraction of a training in which the learning rate rises; it then falls to 0


class Networks:
    """Draws and sets the parameters of the networks of each iteration."""

    def __init__(self, data: ImageData, plan: Plan, needs: Needs, net: Network):
        """Train the networks of the pool that the cache lacks, if the run has one; `data` is on the device.

        `net` has the architecture of the networks. Raises UserError for a damaged cache, or if a network diverges.
        """
        self.settings, self.sample = plan.settings, NETWORKS[plan.settings.networks]
        self.initial, self.finished = Initial(net), needs.logits
        # On the CPU: [networks, 1 + SNAPSHOTS, parameters]
        self.points = trained_pool(data, plan) if pooled(plan.settings, needs) else torch.empty(0)
        self.online = Online(data, plan, self.initial) if plan.settings.networks == "online" else None

    def start(self, experiment: int, saved: Tensor | None) -> None:
        """Start an experiment, or resume it from an earlier `state()`."""
        if self.online:
            self.online.start(experiment, saved)

    def draw(self, experiment: int, iteration: int) -> dict[str, Tensor]:
        """The random parameters [P] of an iteration, on the CPU: a function of (seed, experiment, iteration).

        "network" embeds the images; online networks are left to `completed`. "finished", if the objective needs it,
        classifies them after the end of its training. Safe to call from several threads.
        """
        where = (self.settings.seed, experiment, iteration, -1)
        drawn = {} if self.online else {"network": self.sample(self, rng.generator(*where, "network"))}
        if self.finished:
            number = torch.randint(len(self.points), (1,), generator=rng.generator(*where, "finished network"))
            drawn["finished"] = self.points[int(number), -1].float()
        return drawn

    def completed(self, drawn: dict[str, Tensor], experiment: int, iteration: int) -> dict[str, Tensor]:
        """The result of `draw` on the device, with the network of this iteration if it depends on earlier steps."""
        if not self.online:
            return drawn
        generator = rng.generator(self.settings.seed, experiment, iteration, -1, "network")
        return drawn | {"network": self.sample(self, generator)}

    def learn(self, synthetic: Callable[[], tuple[Tensor, Tensor]], experiment: int, iteration: int) -> None:
        """After a step: train the network of the step on the decoded images and labels of `synthetic()`, if online."""
        if self.online:
            self.online.learn(*synthetic(), experiment, iteration)

    def state(self) -> Tensor | None:
        """All that `start` needs to resume, on the CPU; None if there is nothing."""
        return self.online.state() if self.online else None


def random(networks: Networks, generator: torch.Generator) -> Tensor:
    """A fresh network."""
    return networks.initial(generator)


def trained(networks: Networks, generator: torch.Generator) -> Tensor:
    """A network of the pool at a random point of its training."""
    points = networks.points
    number = int(torch.randint(len(points), (1,), generator=generator))
    at = float(torch.rand(1, generator=generator)) * SNAPSHOTS
    if not networks.settings.interpolate:
        return points[number, round(at)].float()
    before = min(int(at), SNAPSHOTS - 1)
    return points[number, before].float().lerp(points[number, before + 1].float(), at - before)


def mixed(networks: Networks, generator: torch.Generator) -> Tensor:
    """A fresh network with probability 1/2, else a network of the pool."""
    sample = random if torch.rand(1, generator=generator) < 0.5 else trained
    return sample(networks, generator)


def online(networks: Networks, generator: torch.Generator) -> Tensor:
    """A network that trains on the synthetic set, on the device."""
    return networks.online.pick(generator)


NETWORKS: dict[str, Callable[[Networks, torch.Generator], Tensor]] = {
    "random": random,
    "trained": trained,
    "mixed": mixed,
    "online": online,
}


# --- a pool that trains on the synthetic set -------------------------------------------------------------------


class Online:
    """A pool of networks that train on the synthetic set while it is condensed.

    In each iteration one of them is used, and then takes one step on the set. After ONLINE_STEPS steps a fresh one
    takes its place. Not of the DDM paper; source: FRePo (Zhou et al., NeurIPS 2022).
    """

    def __init__(self, data: ImageData, plan: Plan, initial: Initial):
        self.settings, self.machine, self.initial = plan.settings, plan.machine, initial
        net = empty_network(untapped(self.settings.model), data.channel, data.num_classes, data.im_size, data.device)
        self.net = self.machine.laid_out_net(net).train()
        self.forward = self.machine.compiled(self.net.forward)

    def start(self, experiment: int, saved: Tensor | None) -> None:
        self.number = 0
        if saved is None:
            self.weights = torch.stack([self.fresh(experiment, 0, number) for number in range(self.settings.pool)])
            self.momentum, self.ages = torch.zeros_like(self.weights), [0] * self.settings.pool
        else:
            values = saved[:, :-1].to(self.machine.device, copy=True)
            self.weights, self.momentum = (x.contiguous() for x in values.chunk(2, dim=1))
            self.ages = saved[:, -1].int().tolist()
        self.picked = torch.empty_like(self.weights[0])

    def fresh(self, experiment: int, iteration: int, number: int) -> Tensor:
        """The parameters [P] of an untrained network."""
        generator = rng.generator(self.settings.seed, experiment, iteration, number, "online network")
        return rng.to_device(self.initial(generator), self.machine.device)

    def pick(self, generator: torch.Generator) -> Tensor:
        """Choose the network of this iteration; return its parameters [P], always in the same memory."""
        self.number = int(torch.randint(len(self.weights), (1,), generator=generator))
        return self.picked.copy_(self.weights[self.number])

    def learn(self, images: Tensor, labels: Tensor, experiment: int, iteration: int) -> None:
        """One step of SGD on a random batch of the set, with the settings and augmentation of the evaluation."""
        s, number = self.settings, self.number
        generator = rng.generator(s.seed, experiment, iteration, -1, "online training")
        rows = rng.to_device(torch.randperm(len(labels), generator=generator)[: s.batch_train], labels.device)
        assign(self.net, self.weights[number])
        batch = DiffAugment(images.detach()[rows], s.dsa_strategy, generator=generator)
        with self.machine.autocast():
            out = self.forward(self.machine.laid_out(batch))
        gradients = torch.autograd.grad(F.cross_entropy(out.float(), labels[rows]), list(self.net.parameters()))
        gradient = torch.cat([g.flatten() for g in gradients]) + WEIGHT_DECAY * self.weights[number]
        self.momentum[number].mul_(MOMENTUM).add_(gradient)
        self.weights[number].sub_(self.momentum[number], alpha=s.lr_net)
        self.ages[number] += 1
        if self.ages[number] == ONLINE_STEPS:
            self.weights[number] = self.fresh(experiment, iteration, number)
            self.momentum[number], self.ages[number] = 0, 0

    def state(self) -> Tensor:
        """[networks, 2 * parameters + 1]: weights, momentum, steps taken. Raises UserError if a network diverged."""
        if not self.weights.isfinite().all():
            raise UserError(f"the online networks diverged: lower --lr_net {self.settings.lr_net:g}")
        ages = torch.tensor(self.ages, dtype=self.weights.dtype)[:, None]
        return torch.cat([self.weights.cpu(), self.momentum.cpu(), ages], dim=1)


# --- a pool ----------------------------------------------------------------------------------------------------


def trained_pool(data: ImageData, plan: Plan) -> Tensor:
    """The points of all networks of a pool, float16 on the CPU: [networks, 1 + SNAPSHOTS, parameters].

    Networks that the cache lacks are trained. Ranks, and other processes with the same pool, share this work.
    """
    s, machine, group = plan.settings, plan.machine, plan.ranks
    model = untapped(s.model)
    blank = empty_network(model, data.channel, data.num_classes, data.im_size, "meta")
    sizes = [tuple(p.shape) for p in blank.parameters()]
    parts = (data.digest(), model, s.pool_epochs, s.pool_lr, s.seed, s.eval_split, s.zca, s.dsa_strategy)
    # A network of the user can change under its name.
    parts += (machine.precision, machine.compile, data.class_names, str(blank), sizes)
    name = f"pool_{data.name}_{model}_{s.pool_epochs}epochs_{cache.key(*parts)}"
    paths = [cache.cache_folder(s) / name / f"network_{number:03}.pt" for number in range(s.pool)]
    found = {number: cache.read(path) for number, path in enumerate(paths)}
    # One list for all ranks: the first may have trained a network before another looks.
    missing = group.from_first([number for number, points in found.items() if points is None])[
        group.rank :: group.world
    ]
    if missing:
        net = machine.laid_out_net(empty_network(model, data.channel, data.num_classes, data.im_size, machine.device))
        forward = machine.compiled(net.forward)
        options = {"desc": f"pool of {s.pool} trained networks", "unit": "network", "show": group.first}
        with bar(total=len(missing), **options) as progress:
            most = at_once(blank, data, s, machine, len(missing))
            while missing:
                before = len(missing)
                with contextlib.ExitStack() as claims:
                    claimed = []
                    for number in list(missing):
                        mine = claims.enter_context(cache.claimed(paths[number]))
                        points = cache.read(paths[number])
                        if points is not None:
                            found[number] = points
                            missing.remove(number)
                            progress.update()
                        elif mine:
                            claimed.append(number)
                        if len(claimed) == most:
                            break
                    if len(claimed) > 1:
                        made = device.if_memory_allows(partial(trained_together, blank, data, s, machine, claimed))
                    else:
                        made = [train(net, forward, data, s, machine, number) for number in claimed]
                    if made is None:
                        most = len(claimed) // 2
                        continue
                    for number, points in zip(claimed, made, strict=True):
                        cache.store(paths[number], points)
                        found[number] = points
                        missing.remove(number)
                        progress.update()
                if len(missing) == before:
                    time.sleep(1)  # other processes train the rest
    for part in group.gather({number: points for number, points in found.items() if points is not None}):
        found |= part
    shape = (1 + SNAPSHOTS, sum(p.numel() for p in blank.parameters()))
    for number, path in enumerate(paths):
        points = found[number]
        usual = isinstance(points, Tensor) and (points.layout, points.dtype) == (torch.strided, torch.float16)
        if not usual or points.shape != shape or not points.isfinite().all():
            raise cache.damaged(path, f"it does not fit {model}")
    return torch.stack([found[number] for number in range(s.pool)])


def train(
    net: Network,
    forward: Callable[[Tensor], Tensor],
    data: ImageData,
    settings: PoolSettings,
    machine: Machine,
    number: int,
) -> Tensor:
    """Train network `number` of a pool on the training images: its points, float16 [1 + SNAPSHOTS, parameters].

    `forward` is net.forward, compiled or not. SGD with the momentum, weight decay and augmentation of the evaluation;
    the learning rate rises to --pool_lr and falls to 0. Raises UserError if the network diverges.
    """
    where = (settings.seed, 0, number, -1)
    initialise(net, rng.generator(*where, "pool network")).train()
    generator = rng.generator(*where, "pool training")
    batches = Batches(Normalised(data, data.x_train), data.y_train, BATCH, shuffle=True, generator=generator)
    criterion = nn.CrossEntropyLoss()

    def step(optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
        images = DiffAugment(images, settings.dsa_strategy, generator=generator)
        train_step(forward, optimizer, criterion, machine.laid_out(images), labels, machine)

    epochs = (batches for _ in range(settings.pool_epochs))
    points = points_of_training(net.parameters(), len(batches), epochs, settings, step, lambda: stored(net))
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


def stored(net: Network) -> Tensor:
    """All parameters as the pool keeps them: float16, on the CPU."""
    return flat(net).half().cpu()
