"""One iteration: sample, augment, embed, match, step.

Classes go through the network in chunks (`--class_chunk`), with one backward per chunk. This is exact because the
objective is a sum over classes. The network is always the same module with other parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddm import rng
from ddm.augment import augment_classes
from ddm.data.images import ImageData
from ddm.data.partition import decoded, encoded
from ddm.methods.distribution import Networks
from ddm.methods.matching import Matcher
from ddm.methods.optimizers import OPTIMIZERS
from ddm.methods.plan import Plan
from ddm.methods.sampling import Random, initial_indices

# (completed iterations, total iterations) -> factor of lr_img in [0, 1]
SCHEDULES = {
    "constant": lambda done, total: 1.0,
    "cosine": lambda done, total: (1 + math.cos(math.pi * done / total)) / 2,
}


def real_images(data: ImageData, counts: Sequence[int], seed: int, experiment: int) -> Tensor:
    """counts[c] random real images of each class c, normalised: [N, C, H, W]."""
    return data.batch(initial_indices(data, counts, seed, experiment))


def noise_images(data: ImageData, counts: Sequence[int], seed: int, experiment: int) -> Tensor:
    """Standard normal pixels in the normalised space: [N, C, H, W]."""
    shape = (sum(counts), *data.shape)
    generator = rng.generator(seed, experiment, 0, -1, "initial images")
    return torch.randn(shape, generator=generator, device="cpu").to(data.device)


INITS = {"real": real_images, "noise": noise_images}


def first_images(init: str, data: ImageData, counts: Sequence[int], factor: int, seed: int, experiment: int) -> Tensor:
    """The stored images [N, C, H, W] of --init before the first step, counts[c] of each class c."""
    return encoded(INITS[init](data, [n * factor**2 for n in counts], seed, experiment), factor)


@dataclass
class Synthetic:
    """The set during condensation, or a rank's part of it; a step changes its tensors in place."""

    images: Tensor  # the stored images [N, C, H, W], normalised, in class order, requires grad
    optimizer: torch.optim.Optimizer
    velocity: Tensor  # the optimizer's buffers: [N, C, H, W] for one buffer, [N, buffers, C, H, W] for several
    finite: Tensor  # boolean scalar: whether the last step was finite
    bounds: Tensor | None = None  # [2, C, 1, 1]: the images are clipped to these after each step

    @classmethod
    def start(
        cls, images: Tensor, plan: Plan, velocity: Tensor | None = None, bounds: Tensor | None = None
    ) -> "Synthetic":
        """Start from images [N, C, H, W] and, when resuming, their momentum."""
        images.requires_grad_(True)
        rule = OPTIMIZERS[plan.settings.optimizer]
        velocity = rule.empty(images) if velocity is None else velocity
        optimizer = rule.make(images, plan.settings)
        optimizer.state[images] = rule.state(velocity)
        return cls(images, optimizer, velocity, torch.ones((), dtype=torch.bool, device=images.device), bounds)


class Step(NamedTuple):
    """The results of a step, on the device."""

    terms: dict[str, Tensor]  # name -> [chunks], each summed over the classes of the chunk
    gradient_finite: Tensor  # boolean [N], for each synthetic image
    finite: Tensor  # boolean scalar: terms, gradients and updated pixels are finite on all ranks
    chunks: list[range]  # the classes of each chunk


def condensation_step(
    matcher: Matcher,
    networks: Networks,
    syn_set: Synthetic,
    sampler: Random,
    experiment: int,
    iteration: int,
    plan: Plan,
) -> Step:
    """Take one step on a rank's synthetic pixels under the next network, without a host sync.

    If a term, gradient or updated pixel is not finite, images and momentum stay unchanged. They also stay unchanged in
    all later steps, unless --on_nonfinite is 'skip'. If a forward or backward pass runs out of memory, raises the
    device's error; images and momentum are unchanged.
    """
    settings, image_syn, velocity, finite = plan.settings, syn_set.images, syn_set.velocity, syn_set.finite
    where = (settings.seed, experiment, iteration)
    networks.next(matcher.net, matcher.finished, *where)
    schedule = SCHEDULES[settings.lr_schedule](iteration - 1, settings.Iteration)
    syn_set.optimizer.param_groups[0]["lr"] = settings.lr_img * schedule
    syn_set.optimizer.zero_grad(set_to_none=True)
    parts: dict[str, list[Tensor]] = {}
    first, done = 0, []
    for classes in plan.chunks():
        # The real and synthetic images of a class have the same augmentation.
        seeds = [rng.seed_of(*where, c, "augmentation") for c in classes]
        real = sampler.batch(classes, lambda c: rng.generator(*where, c, "real images"))
        last = first + len(classes) * plan.counts[classes.start]
        syn = decoded(image_syn[first:last], plan.factor).unflatten(0, (len(classes), -1))
        first, done = last, [*done, classes]
        real, syn = (augment_classes(x, settings.dsa_strategy, seeds) for x in (real, syn))
        terms = matcher.terms(plan.machine.laid_out(real), plan.machine.laid_out(syn), classes)
        sum(terms.values()).backward()
        for name, value in terms.items():
            parts.setdefault(name, []).append(value.detach())

    terms = {name: torch.stack(values) for name, values in parts.items()}
    gradient_finite = image_syn.grad.isfinite().flatten(1).all(1)
    before, velocity_before = image_syn.detach().clone(), velocity.clone()
    rule = OPTIMIZERS[settings.optimizer]
    if rule.normalised:
        image_syn.grad.div_(image_syn.grad.square().mean((1, 2, 3), keepdim=True).sqrt().add_(1e-12))
    syn_set.optimizer.state[image_syn]["step"].fill_(iteration - 1)  # Adam's; a function of the iteration on resume
    syn_set.optimizer.step()
    with torch.no_grad():
        good = torch.stack(list(terms.values())).isfinite().all() & gradient_finite.all() & image_syn.isfinite().all()
        good = plan.ranks.everywhere(good)
        finite.copy_(good if settings.on_nonfinite == "skip" else finite & good)
        image_syn.copy_(torch.where(finite, image_syn, before))
        if syn_set.bounds is not None:
            image_syn.clamp_(*syn_set.bounds)
        velocity.copy_(torch.where(finite, velocity, velocity_before))
    return Step(terms, gradient_finite, finite.clone(), done)
