"""A pool of networks that train on the synthetic set while it is condensed (--networks online)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddm import rng
from ddm.augment import DiffAugment
from ddm.data.images import ImageData
from ddm.errors import UserError
from ddm.evaluation.training import MOMENTUM, WEIGHT_DECAY
from ddm.methods.plan import Plan
from ddm.networks import Initial, assign, empty_network, untapped

ONLINE_STEPS = 100  # of a network on the synthetic set, before a fresh one takes its place


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
        self.check()
        ages = torch.tensor(self.ages, dtype=self.weights.dtype)[:, None]
        return torch.cat([self.weights.cpu(), self.momentum.cpu(), ages], dim=1)

    def check(self) -> None:
        """Raise UserError if a network diverged; waits for the device."""
        if not self.weights.isfinite().all():
            raise UserError(f"the online networks diverged: lower --lr_net {self.settings.lr_net:g}")
