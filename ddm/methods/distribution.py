"""The distribution of networks under which real and synthetic images are matched. A new one is a row of NETWORKS.

random: fresh networks, as in DM and DDM. trained: networks from a pool, each at a random point of its training on the
real images (not of the DDM paper; source: DANCE, Zhang et al., IJCAI 2024). mixed: either, at random.
online: networks that train on the synthetic set (FRePo, Zhou et al., NeurIPS 2022).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ddm import rng
from ddm.data.images import ImageData
from ddm.methods.matching import Needs
from ddm.methods.online import Online
from ddm.methods.plan import Plan, pooled
from ddm.methods.pool import SNAPSHOTS, trained_pool
from ddm.networks import Initial, Network


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

    def check(self) -> None:
        """Raise UserError if networks that train on the set diverged."""
        if self.online:
            self.online.check()

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
