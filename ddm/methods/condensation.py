"""The maker that condenses: it optimises synthetic images so that their features match those of real images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddm import device
from ddm.augment import Siamese
from ddm.bars import bar
from ddm.data.images import ImageData
from ddm.data.partition import decoded
from ddm.errors import UserError
from ddm.maker import Diverged, Report
from ddm.methods.distribution import Networks
from ddm.methods.draws import Ahead, Draws
from ddm.methods.graphs import Graphed
from ddm.methods.matching import Matcher, Needs, Objective
from ddm.methods.optimizers import OPTIMIZERS
from ddm.methods.plan import Plan, cautions, condensing_plan
from ddm.methods.sampling import SAMPLERS
from ddm.methods.settings import CondensingSettings
from ddm.methods.step import Step, Synthetic, condensation_step, first_images
from ddm.ranks import Ranks


class Condensation:
    """A Maker (see maker.py) that condenses with an objective."""

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
        """Make the plan; `data` is on the CPU. Raises UserError if the settings do not fit the data."""
        self.plan, net = condensing_plan(settings, data, needs, group)
        self.matcher = Matcher(net, objective, needs, self.plan.settings, self.plan.machine, self.plan.ranks)
        self.iterations, self.say = settings.Iteration, say
        self.requested_chunk = settings.class_chunk
        self.data = data
        self.syn_set: Synthetic | None = None
        self.experiment, self.pending = 0, []
        self.logged: set[str] = set()

    def arguments(self) -> dict[str, Any]:
        return self.plan.settings.values()

    def cautions(self) -> list[str]:
        lines, chunk = cautions(self.plan.settings, self.plan.counts), self.requested_chunk
        if self.plan.whole and chunk not in (0, len(self.plan.counts)):
            lines.append(f"--class_chunk {chunk} has no effect: all classes go through the network in one pass")
        return lines

    def prepare(self, remaining: int = 1) -> None:
        plan = self.plan
        self.data = self.data.to(plan.machine.device)
        self.labels = plan.labels()
        if not remaining:  # only evaluations are left: no network of a pool is needed
            return
        settings = plan.settings
        sampler = SAMPLERS[settings.real_sampling](self.data, settings.batch_real, settings.seed, plan.classes)
        self.networks = Networks(self.data, plan, self.matcher.needs, self.matcher.net)
        augmentation = Siamese(settings.dsa_strategy, self.data.im_size, plan.machine.device)
        self.draws = Draws(self.data, plan, sampler, self.networks, augmentation)
        self.ahead = Ahead(self.draws.draw, plan.machine.device, last=self.iterations)

    def start(self, experiment: int, saved: tuple[Tensor, Tensor, Tensor | None] | None) -> None:
        plan = self.plan
        images, velocity, networks = saved or (self._first_images(plan.settings.init, experiment), None, None)
        rows = plan.rows(plan.classes)
        # Copies: the steps must not change `saved`, which a checkpoint may still be writing.
        images, velocity = (x if x is None else x[rows].to(plan.machine.device, copy=True) for x in (images, velocity))
        bounds = self.data.normalisation.bounds() if plan.settings.clip_pixels else None
        velocity = OPTIMIZERS[plan.settings.optimizer].empty(images) if velocity is None else velocity
        finite = torch.ones((), dtype=torch.bool, device=images.device)
        self.syn_set = Synthetic(images, velocity, finite, bounds)
        self.networks.start(experiment, networks)
        self.experiment, self.pending = experiment, []
        self._take = self._step_function()

    def _use_plan(self, plan: Plan) -> None:
        """Use `plan` for the next steps; if its chunk changed, they are captured again."""
        changed = plan.chunk != self.plan.chunk
        self.plan = plan
        if changed:
            self._take = self._step_function()

    def _step_function(self) -> Callable[[dict[str, Tensor]], Step]:
        """The function that takes a step: on CUDA a graph, where that is possible."""
        plan = self.plan
        if torch.device(plan.machine.device).type != "cuda" or plan.settings.graphs == "off":
            return self._eager
        reasons = {
            "there are several ranks": plan.ranks.world > 1,
            "the objective does not declare Needs(captured=True)": not self.matcher.needs.captured,
            "an augmentation is not built in": not self.draws.augmentation.captured,
            "each step reads its real images from the store": not self.draws.on_device,
        }
        reason = next((text for text, holds in reasons.items() if holds), None)
        if reason is None:
            return Graphed(self._eager, self._log_once)
        self._log_once(f"steps run eagerly, not as a CUDA graph: {reason}")
        return self._eager

    @property
    def replayed(self) -> bool:
        """Whether steps are now replayed as a CUDA graph."""
        return isinstance(self._take, Graphed) and self._take.graph is not None

    def _log_once(self, line: str) -> None:
        """Say a line, unless it was said in this run: every experiment has a graph of its own."""
        if line not in self.logged:
            self.logged.add(line)
            self.say(line)

    def _eager(self, drawn: dict[str, Tensor]) -> Step:
        return condensation_step(self.matcher, self.syn_set, self.draws, drawn, self.plan)

    def step(self, iteration: int) -> None:
        """Take one step. If memory runs out, repeat it with half as many classes at a time."""
        drawn = self.networks.completed(self.ahead.next(self.experiment, iteration), self.experiment, iteration)
        self._use_plan(self.plan.at(self.experiment, iteration))
        while (step := device.if_memory_allows(lambda: self._take(drawn))) is None:
            self._use_plan(self.plan.halved(self.experiment, iteration))
            self.say(f"out of memory: continuing with --class_chunk {self.plan.chunk}; results change only by rounding")
        self.pending.append((iteration, step))
        self.networks.learn(lambda: self.training_set(self.experiment, self.images()), self.experiment, iteration)
        if iteration == self.iterations:
            self.ahead.close()

    def check(self) -> list[Report]:
        pending, self.pending = self.pending, []
        if not pending:
            return []
        sums = torch.cat([step.terms.sum(1) for _, step in pending]).tolist()
        # Sums over all ranks, in rank order.
        sums = iter([sum(values) for values in zip(*self.plan.ranks.gather(sums), strict=True)])
        finite = torch.stack([step.finite for _, step in pending]).tolist()
        reports = []
        for (iteration, step), good in zip(pending, finite, strict=True):
            values = {name: next(sums) / self.data.num_classes for name in step.names}  # names can differ by step
            if good:
                reports.append(Report(iteration, values))
            else:
                reports.append(Report(iteration, {}, self._not_finite(step, iteration)))
        return reports

    def _not_finite(self, step: Step, iteration: int) -> str:
        """Describe the values that are not finite in a skipped step; raises Diverged unless --on_nonfinite is skip."""
        values = [text for text in self.plan.ranks.gather(self._nonfinite_values(step)) if text]
        message = f"{next(iter(values), 'an updated pixel or moment')} is not finite"
        message += " (a larger --rr_ridge can help)" if "L_RR" in message else ""
        if self.plan.settings.on_nonfinite == "skip":
            return message
        self.networks.check()  # report diverged networks first: they are the cause
        images, velocity = (self._whole(x).cpu() for x in (self.syn_set.images, self.syn_set.velocity))
        raise Diverged(message, iteration, images, velocity)

    def _nonfinite_values(self, step: Step) -> str:
        """The terms or gradients that are not finite, with this rank's classes; empty if all are finite."""
        pairs = zip(step.names, step.terms, strict=True)
        bad = {name: (~values.isfinite()).nonzero().flatten().tolist() for name, values in pairs}
        bad = {name: hit for name, hit in bad.items() if hit}
        if bad:
            classes = step.chunks[min(k for hit in bad.values() for k in hit)]
            return f"{', '.join(bad)} of classes {classes.start} to {classes.stop - 1}"
        rows = (~step.gradient_finite).nonzero().flatten()
        if len(rows):
            stored = rows + self.plan.rows(self.plan.classes).start
            classes = self.labels[stored * self.plan.factor**2].tolist()
            return f"the gradient of classes {classes[0]} to {classes[-1]}"
        return ""

    def _whole(self, part: Tensor) -> Tensor:
        """The images (or velocities) [N, C, H, W] of all classes, gathered from all ranks."""
        counts, group = self.plan.counts, self.plan.ranks
        sizes = [sum(counts[c] for c in group.share(len(counts), rank)) for rank in range(group.world)]
        return group.gathered(part.detach(), sizes)

    def images(self) -> Tensor:
        return self._whole(self.syn_set.images)

    def state(self) -> tuple[Tensor, Tensor, Tensor | None]:
        images, velocity = (self._whole(x) for x in (self.syn_set.images, self.syn_set.velocity))
        return images.to("cpu", copy=True), velocity.to("cpu", copy=True), self.networks.state()

    def training_set(self, experiment: int, images: Tensor) -> tuple[Tensor, Tensor]:
        return decoded(images.to(self.plan.machine.device), self.plan.factor), self.labels

    def baseline(self, experiment: int) -> Tensor:
        """The initial images of --init real."""
        return self._first_images("real", experiment)

    def _first_images(self, init: str, experiment: int) -> Tensor:
        plan = self.plan
        return first_images(init, self.data, plan.counts, plan.factor, plan.settings.seed, experiment)


def condensed(maker: Condensation, experiment: int) -> Tensor:
    """Condense one set without evaluations and checkpoints; return the stored images [N, C, H, W], normalised.

    A progress bar is on stderr. The maker says which steps were skipped. Raises UserError if a loss, gradient or pixel
    is not finite.
    """
    maker.start(experiment, None)
    for iteration in bar(range(1, maker.iterations + 1), desc="condensing", unit="it", leave=False):
        maker.step(iteration)
        if iteration % 10 == 0 or iteration == maker.iterations:  # each check waits for the device
            try:
                skipped = [report for report in maker.check() if report.skipped]
            except Diverged as diverged:
                where = f"iteration {diverged.iteration}"
                raise UserError(f"{where}: {diverged}: lower --lr_img or the weights") from None
            for report in skipped:
                maker.say(f"iteration {report.iteration}: {report.skipped}; the step is skipped")
    return maker.images()
