"""The distribution of networks under which real and synthetic images are matched. A new one is a row of NETWORKS.

random: fresh networks, as in DM and DDM. trained: networks from a pool, each at a random point of its training on the
real images (not of the DDM paper; source: DANCE, Zhang et al., IJCAI 2024). mixed: either, at random.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddm import rng
from ddm.augment import DiffAugment
from ddm.bars import bar
from ddm.data.images import Batches, ImageData, Normalised
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation.protocol import MOMENTUM, WEIGHT_DECAY
from ddm.methods import cache
from ddm.methods.plan import Plan
from ddm.methods.settings import PoolSettings
from ddm.networks import Network, empty_network, initialise, untapped

SNAPSHOTS = 8  # points of a network's training that are kept, in equal steps, besides its initialisation
BATCH = 128
WARM_UP = 0.2  # fraction of a training in which the learning rate rises; it then falls to 0


class Networks:
    """Sets the parameters of the networks of each iteration."""

    def __init__(self, data: ImageData, plan: Plan, finished: bool):
        """Train the networks of the pool that the cache lacks, if they are used; `data` is on the device.

        `finished`: whether the objective reads the outputs of networks that have finished their training. Raises
        UserError for a damaged cache, or if a network diverges.
        """
        self.settings, self.draw = plan.settings, NETWORKS[plan.settings.networks]
        needed = finished or self.draw is not random
        # [networks, 1 + SNAPSHOTS, parameters]
        self.points = trained_pool(data, plan) if needed else torch.empty(0)

    def next(self, net: Network, finished: Network | None, seed: int, experiment: int, iteration: int) -> None:
        """Set the networks of an iteration, a function of (seed, experiment, iteration).

        `net` embeds the images; `finished`, if there is one, classifies them after the end of its training.
        """
        where = (seed, experiment, iteration, -1)
        self.draw(net, self.points, self.settings, rng.generator(*where, "network"))
        if finished is not None:
            number = torch.randint(len(self.points), (1,), generator=rng.generator(*where, "finished network"))
            assign(finished, self.points[int(number), -1])


def random(net: Network, points: Tensor, settings: PoolSettings, generator: torch.Generator) -> None:
    """A fresh network."""
    initialise(net, generator)


def trained(net: Network, points: Tensor, settings: PoolSettings, generator: torch.Generator) -> None:
    """A network of the pool at a random point of its training."""
    number = int(torch.randint(len(points), (1,), generator=generator))
    at = float(torch.rand(1, generator=generator)) * SNAPSHOTS
    before = min(int(at), SNAPSHOTS - 1)
    point = points[number, before]
    if settings.interpolate:
        point = point.float().lerp(points[number, before + 1].float(), at - before)
    assign(net, point)


def mixed(net: Network, points: Tensor, settings: PoolSettings, generator: torch.Generator) -> None:
    """A fresh network with probability 1/2, else a network of the pool."""
    draw = random if torch.rand(1, generator=generator) < 0.5 else trained
    draw(net, points, settings, generator)


NETWORKS: dict[str, Callable[[Network, Tensor, PoolSettings, torch.Generator], None]] = {
    "random": random,
    "trained": trained,
    "mixed": mixed,
}


# --- a pool ----------------------------------------------------------------------------------------------------


def trained_pool(data: ImageData, plan: Plan) -> Tensor:
    """The points of all networks of a pool, float16 on the device: [networks, 1 + SNAPSHOTS, parameters].

    Networks that the cache lacks are trained. Ranks, and other processes with the same pool, share this work.
    """
    s, machine, group = plan.settings, plan.machine, plan.ranks
    model = untapped(s.model)
    parts = (data.digest(), model, s.pool_epochs, s.pool_lr, s.seed, s.eval_split, s.zca, s.dsa_strategy)
    parts += (machine.precision, machine.compile, data.class_names)
    name = f"pool_{data.name}_{model}_{s.pool_epochs}epochs_{cache.key(*parts)}"
    paths = [cache.cache_folder(s) / name / f"network_{number:03}.pt" for number in range(s.pool)]
    found = {number: cache.read(path) for number, path in enumerate(paths)}
    missing = [number for number, points in found.items() if points is None][group.rank :: group.world]
    if missing:
        net = machine.laid_out_net(empty_network(model, data.channel, data.num_classes, data.im_size, machine.device))
        forward = machine.compiled(net.forward)
        options = {"desc": f"pool of {s.pool} trained networks", "unit": "network", "show": group.first}
        with bar(total=len(missing), **options) as progress:
            while missing:
                for number in list(missing):
                    with cache.claimed(paths[number]) as mine:
                        points = cache.read(paths[number])
                        if points is None and mine:
                            points = train(net, forward, data, s, machine, number)
                            cache.store(paths[number], points)
                    if points is not None:
                        found[number] = points
                        missing.remove(number)
                        progress.update()
                if missing:
                    time.sleep(1)  # other processes train the rest
    for part in group.gather({number: points for number, points in found.items() if points is not None}):
        found |= part
    try:
        return torch.stack([found[number] for number in range(s.pool)]).to(machine.device)
    except (RuntimeError, TypeError) as error:
        raise cache.damaged(paths[0].parent, error) from None


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
    optimizer = torch.optim.SGD(net.parameters(), momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    steps, done = settings.pool_epochs * len(batches), 0
    kept = {round(steps * k / SNAPSHOTS) for k in range(1, SNAPSHOTS + 1)}
    points = [flat(net)]
    for _ in range(settings.pool_epochs):
        for images, labels in batches:
            rising, falling = (done + 1) / (WARM_UP * steps), (1 - done / steps) / (1 - WARM_UP)
            optimizer.param_groups[0]["lr"] = settings.pool_lr * min(1, rising, falling)
            images = DiffAugment(images, settings.dsa_strategy, generator=generator)
            with machine.autocast():
                out = forward(machine.laid_out(images))
            loss = F.cross_entropy(out.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
            if done in kept:
                points.append(flat(net))
    points += [points[-1]] * (1 + SNAPSHOTS - len(points))  # fewer steps than points
    points = torch.stack(points)
    if not points.isfinite().all():
        raise UserError(f"network {number} of the pool diverged: lower --pool_lr {settings.pool_lr:g}")
    return points


@torch.no_grad()
def flat(net: Network) -> Tensor:
    """All parameters as one vector, float16 on the CPU; running statistics of BatchNorm are left out."""
    return torch.cat([p.flatten() for p in net.parameters()]).half().cpu()


@torch.no_grad()
def assign(net: Network, vector: Tensor) -> None:
    """Set all parameters from one vector."""
    parameters = list(net.parameters())
    pieces = vector.split([p.numel() for p in parameters])
    torch._foreach_copy_(parameters, [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)])
