"""The maker that condenses: its sets are optimised so that networks see them as they see the real images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddm import device
from ddm.data.images import ImageData
from ddm.errors import UserError
from ddm.maker import Diverged, Report
from ddm.methods.matching import Matcher, Needs, Objective
from ddm.methods.plan import condensing_plan
from ddm.methods.sampling import SAMPLERS
from ddm.methods.settings import CondensingSettings
from ddm.methods.step import INITS, Step, Synthetic, condensation_step
from ddm.ranks import Ranks


class Condensation:
    """A Maker (see maker.py) that condenses under an objective."""

    kind = "condensed"

    def __init__(
        self,
        data: ImageData,
        settings: CondensingSettings,
        objective: Objective,
        needs: Needs,
        group: Ranks | None = None,
        say: Callable[[str], None] = print,
    ):
        """Plan on the CPU's copy of the data. Raises UserError for what can't work, before anything is written."""
        self.plan, net = condensing_plan(settings, data, needs, group)
        self.matcher = Matcher(net, objective, needs, self.plan.settings, self.plan.machine)
        self.iterations, self.say = settings.Iteration, say
        self.data = data
        self.syn_set: Synthetic | None = None
        self.experiment, self.pending = 0, []

    def arguments(self) -> dict[str, Any]:
        return self.plan.settings.values()

    def prepare(self, remaining: int = 1) -> None:
        plan = self.plan
        self.data = self.data.to(plan.machine.device)
        self.labels = plan.labels()
        sampler, settings = SAMPLERS[plan.settings.real_sampling], plan.settings
        self.sampler = sampler(self.data, settings.batch_real, settings.seed, plan.classes)

    def start(self, experiment: int, saved: tuple[Tensor, Tensor] | None) -> None:
        plan = self.plan
        images, velocity = saved or (self._first_images(plan.settings.init, experiment), None)
        rows = plan.rows(plan.classes)
        # Copies: the steps must not change `saved`, which a checkpoint may still be writing.
        images, velocity = (x if x is None else x[rows].to(plan.machine.device, copy=True) for x in (images, velocity))
        bounds = self.data.normalisation.bounds() if plan.settings.clip_pixels else None
        self.syn_set = Synthetic.start(images, plan, velocity, bounds)
        self.experiment, self.pending = experiment, []

    def step(self, iteration: int) -> None:
        """One step; where memory is out, again with half as many classes at a time."""
        while True:
            try:
                step = condensation_step(
                    self.matcher, self.syn_set, self.sampler, self.experiment, iteration, self.plan
                )
                self.pending.append((iteration, step))
                return
            except (RuntimeError, MemoryError) as error:
                if not device.is_out_of_memory(error):
                    raise
            self.plan = self.plan.halved()
            chunk = self.plan.settings.class_chunk
            self.say(f"out of memory: continuing with --class_chunk {chunk}; results change only by rounding")
            device.release()

    def check(self) -> list[Report]:
        pending, self.pending = self.pending, []
        if not pending:
            return []
        names = list(pending[0][1].terms)
        rows = torch.stack([torch.stack([step.terms[name].sum() for name in names]) for _, step in pending]).tolist()
        # Summed over all ranks, in their order.
        rows = [
            [sum(values) for values in zip(*row, strict=True)] for row in zip(*self.plan.ranks.all(rows), strict=True)
        ]
        finite = torch.stack([step.finite for _, step in pending]).tolist()
        reports = []
        for (iteration, step), row, good in zip(pending, rows, finite, strict=True):
            if good:
                values = (value / self.data.num_classes for value in row)
                reports.append(Report(iteration, dict(zip(names, values, strict=True))))
            else:
                reports.append(Report(iteration, {}, self._not_finite(step, iteration)))
        return reports

    def _not_finite(self, step: Step, iteration: int) -> str:
        """What is not finite in a skipped step; raises Diverged unless steps are skipped."""
        found = [what for what in self.plan.ranks.all(self._what_is_not_finite(step)) if what]
        what = f"{next(iter(found), 'a stepped pixel')} is not finite"
        if self.plan.settings.on_nonfinite == "skip":
            return what
        images, velocity = (self._whole(x).cpu() for x in (self.syn_set.images, self.syn_set.velocity))
        raise Diverged(what, iteration, images, velocity)

    def _what_is_not_finite(self, step: Step) -> str:
        """Which terms or gradients of which of this rank's classes; empty where all are finite."""
        bad = {name: (~values.isfinite()).nonzero().flatten().tolist() for name, values in step.terms.items()}
        bad = {name: hit for name, hit in bad.items() if hit}
        if bad:
            classes = step.chunks[min(k for hit in bad.values() for k in hit)]
            return f"{', '.join(bad)} of classes {classes.start} to {classes.stop - 1}"
        rows = (~step.gradient_finite).nonzero().flatten()
        if len(rows):
            classes = self.labels[rows + self.plan.rows(self.plan.classes).start].tolist()
            return f"the gradient of classes {classes[0]} to {classes[-1]}"
        return ""

    def _whole(self, own: Tensor) -> Tensor:
        """All classes' images (or velocities) [N, C, H, W], from this rank's and the others'."""
        counts, group = self.plan.counts, self.plan.ranks
        sizes = [sum(counts[c] for c in group.own(len(counts), rank)) for rank in range(group.world)]
        return group.together(own.detach(), sizes)

    def images(self) -> Tensor:
        return self._whole(self.syn_set.images)

    def state(self) -> tuple[Tensor, Tensor]:
        images, velocity = (self._whole(x) for x in (self.syn_set.images, self.syn_set.velocity))
        return images.to("cpu", copy=True), velocity.to("cpu", copy=True)

    def scored(self, experiment: int, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.to(self.plan.machine.device), self.labels

    def baseline(self, experiment: int) -> Tensor:
        """The images that --init real starts from."""
        return self._first_images("real", experiment)

    def _first_images(self, init: str, experiment: int) -> Tensor:
        return INITS[init](self.data, self.plan.counts, self.plan.settings.seed, experiment)


def condensed(maker: Condensation, experiment: int, show: str = "condensing") -> Tensor:
    """Condense one set without evaluations and checkpoints: images [N, C, H, W], normalised.

    Raises UserError where a loss stops being finite.
    """
    maker.start(experiment, None)
    for iteration in tqdm(range(1, maker.iterations + 1), desc=show, unit="it", dynamic_ncols=True, leave=False):
        maker.step(iteration)
        if iteration % 10 == 0 or iteration == maker.iterations:  # each check waits for the device
            try:
                maker.check()
            except Diverged as diverged:
                where = f"iteration {diverged.iteration}"
                raise UserError(f"{where}: {diverged}: lower --lr_img or the weights") from None
    return maker.images()
