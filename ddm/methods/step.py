"""One iteration: sample, augment, embed, match, step.

Classes go through the network in chunks (`--class_chunk`), with one backward per chunk. This is exact because the
objective is a sum over classes. The network is always the same module with other parameters.

A step draws nothing (see draws.py), and has the same operations and shapes in every iteration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddm import rng
from ddm.augment import Siamese
from ddm.data.images import ImageData
from ddm.data.partition import decoded, encoded
from ddm.methods.draws import Draws
from ddm.methods.matching import Matcher
from ddm.methods.optimizers import OPTIMIZERS
from ddm.methods.plan import Plan
from ddm.methods.sampling import real_images
from ddm.networks import assign


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

    images: Tensor  # the stored images [N, C, H, W], normalised, in class order
    velocity: Tensor  # the optimizer's buffers: [N, C, H, W] for one buffer, [N, buffers, C, H, W] for several
    finite: Tensor  # boolean scalar: whether the last step was finite
    bounds: Tensor | None = None  # [2, C, 1, 1]: the images are clipped to these after each step


class Step(NamedTuple):
    """The results of a step, on the device."""

    terms: Tensor  # [names, chunks], each summed over the classes of the chunk
    gradient_finite: Tensor  # boolean [N], for each synthetic image
    finite: Tensor  # boolean scalar: terms, gradients, updated pixels and moments are finite on all ranks
    names: tuple[str, ...]  # of the terms
    chunks: list[range]  # the classes of each chunk


def condensation_step(
    matcher: Matcher,
    syn_set: Synthetic,
    draws: Draws,
    drawn: dict[str, Tensor],
    plan: Plan,
) -> Step:
    """Take one step on a rank's synthetic pixels, without a host sync, with what `draws` has drawn, on the device.

    If a term, gradient, updated pixel or Adam's moment is not finite, images and momentum stay unchanged. They also
    stay unchanged in all later steps, unless --on_nonfinite is 'skip'. If memory runs out, raises the device's error;
    images and momentum are unchanged.
    """
    terms, gradient, chunks = gradients(matcher, syn_set.images, draws, drawn, plan)
    names = tuple(terms[0])
    terms = torch.stack([torch.stack([part[name] for part in terms]) for name in names])
    with torch.no_grad():
        images, velocity = OPTIMIZERS[plan.settings.optimizer].update(
            syn_set.images, gradient, syn_set.velocity, drawn["lr"], drawn["done"], plan.settings
        )
        # 0 * x is NaN, and so is a sum with it, if x is not finite. Fewer calls than isfinite.
        gradient_zeros = (gradient * 0).flatten(1).sum(1)
        gradient_finite = gradient_zeros == 0
        zeros = gradient_zeros.sum() + (terms * 0).sum() + (images * 0).sum()
        if velocity.ndim > images.ndim:  # Adam's squares overflow before the pixels, which they divide
            zeros = zeros + (velocity * 0).sum()
        good = zeros == 0
        good = plan.ranks.everywhere(good)
        finite = syn_set.finite
        finite.copy_(good if plan.settings.on_nonfinite == "skip" else finite & good)
        if syn_set.bounds is not None:
            images.clamp_(*syn_set.bounds)
        # Both before the first copy: if memory runs out here, the step is taken again from the old images.
        images, velocity = (
            torch.where(finite, new, old) for new, old in ((images, syn_set.images), (velocity, syn_set.velocity))
        )
        syn_set.images.copy_(images)
        syn_set.velocity.copy_(velocity)
    return Step(terms, gradient_finite, finite.clone(), names, chunks)


def gradients(
    matcher: Matcher,
    images: Tensor,
    draws: Draws,
    drawn: dict[str, Tensor],
    plan: Plan,
) -> tuple[list[dict[str, Tensor]], Tensor, list[range]]:
    """The terms of each chunk, their gradient [N, C, H, W] in the stored images, and the chunks."""
    assign(matcher.net, drawn["network"])
    if matcher.finished is not None:
        assign(matcher.finished, drawn["finished"])
    selected = draws.selected(drawn["real"])
    terms, parts, chunks, first = [], [], list(plan.chunks()), 0
    for classes in chunks:
        here = slice(classes.start - plan.classes.start, classes.stop - plan.classes.start)
        of_chunk = {name: x[here] for name, x in drawn.items() if name.startswith(Siamese.PREFIX)}
        last = first + len(classes) * plan.counts[classes.start]
        stored = images[first:last].detach().requires_grad_()
        first = last
        syn = decoded(stored, plan.factor).unflatten(0, (len(classes), -1))
        real = draws.data.drawn(selected[here])
        real, syn = (draws.augmentation.applied(x, of_chunk) for x in (real, syn))
        values = matcher.terms(plan.machine.laid_out(real), plan.machine.laid_out(syn), classes)
        parts += torch.autograd.grad(sum(values.values()), [stored])
        terms.append({name: value.detach() for name, value in values.items()})
    return terms, parts[0] if len(parts) == 1 else torch.cat(parts), chunks
