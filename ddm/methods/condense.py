"""The one loop that the recipes share: sample, augment, embed, match, step, evaluate, save.

Classes go through the network several at a time (`--class_chunk`), each chunk with one backward, which is exact
because the objective is a sum over classes; under torchrun, each rank has classes of its own. The network of an
iteration is always the same module, initialised afresh in place. As all randomness follows from the iteration, a run
goes on from images, momentum and results alone.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ddm import memory
from ddm import rng
from ddm import speed
from ddm.evaluation import training
from ddm.augment import augment_classes
from ddm.data.data import ImageData
from ddm.errors import UserError
from ddm.runs.experiments import Experiments, carry_out, images_per_class
from ddm.methods.matching import Matcher, Objective, Statistics, has_batch_norm, pass_pixels
from ddm.networks import Network, empty_network, initialise
from ddm.ranks import Ranks, on_this_host
from ddm.methods.sampling import SAMPLERS, Random, initial_indices
from ddm.methods.schedules import SCHEDULES, lr_of
from ddm.speed import laid_out, laid_out_net

CHECK_EVERY = 10  # iterations between looks at the losses: each look waits for the device
CHECKPOINT_SECONDS = 300  # at most, between two checkpoints while it condenses


def chunks(classes: range, size: int, counts: list[int]) -> Iterator[range]:
    """Classes in parts of at most `size` neighbours that have the same number of images."""
    first = classes.start
    while first < classes.stop:
        last = first + 1
        while last < min(first + size, classes.stop) and counts[last] == counts[first]:
            last += 1
        yield range(first, last)
        first = last


class Synthetic(NamedTuple):
    """The set being condensed, or a rank's part of it."""

    images: Tensor  # [N, C, H, W], normalised, classes one after the other, requires grad
    optimizer: torch.optim.Optimizer
    velocity: Tensor  # the optimizer's momentum buffer, of the images' shape
    finite: Tensor  # boolean scalar: whether the last step was finite; the images then are, too
    bounds: Tensor | None = None  # [2, C, 1, 1]: what the images are clipped to after each step

    @classmethod
    def start(
        cls, images: Tensor, args: Namespace, velocity: Tensor | None = None, bounds: Tensor | None = None
    ) -> "Synthetic":
        images.requires_grad_(True)
        velocity = torch.zeros_like(images) if velocity is None else velocity
        optimizer = torch.optim.SGD([images], lr=args.lr_img, momentum=args.momentum_img)
        if args.momentum_img:
            optimizer.state[images]["momentum_buffer"] = velocity
        return cls(images, optimizer, velocity, torch.ones((), dtype=torch.bool, device=images.device), bounds)


class Step(NamedTuple):
    """What a step gives, on the device."""

    terms: dict[str, Tensor]  # by name: [chunks], each summed over the classes of the chunk
    gradient_finite: Tensor  # boolean [N], for each synthetic image
    finite: Tensor  # boolean scalar: terms, gradient and stepped pixels, on all ranks
    chunks: list[range]  # of classes


def condensation_step(
    matcher: Matcher, syn_set: Synthetic, sampler: Random, experiment: int, iteration: int, args: Namespace
) -> Step:
    """One SGD step on a rank's synthetic pixels under one fresh network; nothing is read back from the device.

    Where a term, a gradient or a stepped pixel is not finite, images and momentum stay as they were before the step.
    After it all later steps leave them so too, unless args.on_nonfinite is 'skip'. Raises whatever the device raises
    where memory is out, before anything has changed.
    """
    image_syn, optimizer, velocity, finite, bounds = syn_set
    where = (args.seed, experiment, iteration)
    initialise(matcher.net, rng.generator(*where, -1, "network"))
    optimizer.param_groups[0]["lr"] = args.lr_img * SCHEDULES[args.lr_schedule](iteration - 1, args.Iteration)
    optimizer.zero_grad(set_to_none=True)
    parts: dict[str, list[Tensor]] = {}
    first, done = 0, []
    for classes in chunks(own_classes(args), args.class_chunk, args.counts):
        # A class has one augmentation for its real and its synthetic images.
        seeds = [rng.seed_of(*where, c, "augmentation") for c in classes]
        real = sampler.batch(classes, lambda c: rng.generator(*where, c, "real images"))
        last = first + len(classes) * args.counts[classes.start]
        syn = image_syn[first:last].unflatten(0, (len(classes), -1))
        first, done = last, [*done, classes]
        real, syn = (augment_classes(x, args.dsa_strategy, seeds, args.dsa_param) for x in (real, syn))
        terms = matcher.terms(laid_out(real, args), laid_out(syn, args), classes)
        sum(terms.values()).backward()
        for name, value in terms.items():
            parts.setdefault(name, []).append(value.detach())

    terms = {name: torch.stack(values) for name, values in parts.items()}
    gradient_finite = image_syn.grad.isfinite().flatten(1).all(1)
    before, velocity_before = image_syn.detach().clone(), velocity.clone()
    optimizer.step()
    with torch.no_grad():
        good = torch.stack(list(terms.values())).isfinite().all() & gradient_finite.all() & image_syn.isfinite().all()
        good = ranks_of(args).everywhere(good)
        finite.copy_(good if args.on_nonfinite == "skip" else finite & good)
        image_syn.copy_(torch.where(finite, image_syn, before))
        if bounds is not None:
            image_syn.clamp_(*bounds)
        velocity.copy_(torch.where(finite, velocity, velocity_before))
    return Step(terms, gradient_finite, finite.clone(), done)


def ranks_of(args: Namespace) -> Ranks:
    """The processes of a run; of a step that is taken by itself, this one."""
    return getattr(args, "ranks", None) or Ranks()


def own_classes(args: Namespace) -> range:
    """Those that this rank condenses."""
    return ranks_of(args).own(len(args.counts))


def rows_of(classes: range, args: Namespace) -> slice:
    """Where the images of some classes are in a whole set."""
    return slice(sum(args.counts[: classes.start]), sum(args.counts[: classes.stop]))


def real_images(data: ImageData, args: Namespace, experiment: int) -> Tensor:
    """Random real images, as many of each class as the set has, normalised: [N, C, H, W]."""
    return data.batch(initial_indices(data, args, experiment))


def noise_images(data: ImageData, args: Namespace, experiment: int) -> Tensor:
    """Standard normal pixels in the normalised space: [N, C, H, W]."""
    shape = (sum(args.counts), data.channel, *data.im_size)
    generator = rng.generator(args.seed, experiment, 0, -1, "initial images")
    return torch.randn(shape, generator=generator, device="cpu").to(args.device)


INITS = {"real": real_images, "noise": noise_images}


def pixel_bounds(data: ImageData, args: Namespace) -> Tensor | None:
    """What --clip_pixels clips to, [2, C, 1, 1]; None without it."""
    return data.bounds() if args.clip_pixels else None


def prepare(data: ImageData, args: Namespace, objective: Objective, statistics: Statistics) -> Matcher:
    """Refuse what can't work, before anything is written; give what matches under a network.

    Fits args to the data: counts to --ipc, batch_real to the largest class, class_chunk 0 to a number, and class_chunk
    to all classes under BatchNorm, whose statistics run over the classes of a pass, as published.
    """
    if ranks_of(args).world > data.num_classes:
        raise UserError(f"{ranks_of(args).world} ranks for {data.num_classes} classes: start as many or fewer")
    if args.clip_pixels and data.whitening is not None:
        raise UserError("--clip_pixels: whitened images have no [0, 1] to stay in: leave it or --zca out")
    args.counts = images_per_class(data, args.ipc)
    if args.lr_img is None:
        args.lr_img = lr_of(sum(args.counts) / len(args.counts))
    args.batch_real = min(args.batch_real, max(len(own) for own in data.indices))
    net = empty_network(args.model, data.channel, data.num_classes, data.im_size, args.device)
    for model in training.get_eval_pool(args.eval_mode, args.model):
        try:
            empty_network(model, data.channel, data.num_classes, data.im_size, "meta")
        except UserError as error:
            raise UserError(f"--eval_mode {args.eval_mode} on {data.name}: {error}; choose another mode") from None
    try:
        if statistics:
            # A recipe of one's own may do without the flags.
            layers, tap = getattr(args, "style_layers", "all"), getattr(args, "style_tap", "published")
            net.tap(tap, None if layers == "all" else [int(number) for number in layers.split(",")])
        else:
            net.tap("none")
    except UserError as error:
        raise UserError(f"--model {args.model} {error}") from None
    if whole_passes(net, args):
        if ranks_of(args).world > 1:
            what = "BatchNorm" if has_batch_norm(net) else "L_RR (--rr_ratio)"
            raise UserError(f"{what} runs over all classes at once and can't be split over ranks: start one process")
        if len(set(args.counts)) > 1:
            raise UserError(f"--ipc {args.ipc}: BatchNorm and L_RR need as many images of each class")
        args.class_chunk = data.num_classes
    elif args.class_chunk == 0:
        args.class_chunk = choose_chunk(data, args)
    args.class_chunk = min(args.class_chunk, len(own_classes(args)))
    speed.choose(args, condensing_pixels(data, args))
    return Matcher(laid_out_net(net, args).requires_grad_(False).train(), objective, statistics, args)


def whole_passes(net: Network, args: Namespace) -> bool:
    """Whether all classes must go through the network at once, as BatchNorm or the objective runs over them."""
    return has_batch_norm(net) or getattr(args, "needs_all_classes", False)


def choose_chunk(data: ImageData, args: Namespace) -> int:
    """Classes per backward: as many as the device is fast with and half of its free memory holds.

    A divisor of the number of classes, so that every chunk has the same shape and is compiled once.
    """
    height, width = data.im_size
    ipc, classes = max(args.counts), len(own_classes(args))
    most = pass_pixels(args.device) // (ipc * height * width)
    net = empty_network(args.model, data.channel, data.num_classes, data.im_size, "meta")
    needed = memory.class_bytes(net, (data.channel, height, width), args.batch_real, ipc)
    free = memory.free_memory(args.device)
    if free is not None:  # the other half is for a part of the real images, and whoever else is there
        sharing = on_this_host() if args.device == "cpu" else 1
        most = min(most, free // 2 // needed // sharing)
    return max(n for n in range(1, classes + 1) if classes % n == 0 and n <= max(1, most))


def condensing_pixels(data: ImageData, args: Namespace) -> int:
    """Pixels that go through networks to condense one experiment; a backward counts as two forwards.

    Evaluations and the number of experiments stay out of it: they must not change how an experiment is computed.
    """
    images = args.Iteration * (data.num_classes * args.batch_real + 3 * sum(args.counts))
    return images * data.im_size[0] * data.im_size[1]


def condensed(matcher: Matcher, data: ImageData, args: Namespace, experiment: int) -> Tensor:
    """A set condensed in one go, without evaluations and checkpoints: images [N, C, H, W], normalised.

    Raises UserError where a loss stops being finite.
    """
    syn_set = Synthetic.start(INITS[args.init](data, args, experiment), args, bounds=pixel_bounds(data, args))
    sampler = SAMPLERS[args.real_sampling](data, args)
    for iteration in tqdm(range(1, args.Iteration + 1), desc="condensing", unit="it", dynamic_ncols=True, leave=False):
        step = condensation_step(matcher, syn_set, sampler, experiment, iteration, args)
    if args.on_nonfinite == "stop" and not step.finite:
        raise UserError("a loss or gradient stopped being finite: lower --lr_img or the weights")
    return syn_set.images.detach()


def condense(args: Namespace, objective: Objective, statistics: Statistics) -> None:
    """Run the experiments of a recipe, or the rest of them, and write everything into args.save_path.

    `statistics` are those of the feature maps that the objective reads as `real.style` and `syn.style`.
    Raises UserError for what the user can mend and when a loss stops being finite, Stopped after a signal.
    """
    recipe = Path(objective.__code__.co_filename).stem
    carry_out(args, recipe, lambda data: prepare(data, args, objective, statistics), Run)


class Run(Experiments):
    """Experiments that condense."""

    def __init__(self, matcher: Matcher, *common: Any):
        super().__init__(*common)
        self.matcher = matcher
        self.syn_set: Synthetic | None = None

    def begin(self) -> None:
        self.sampler = SAMPLERS[self.args.real_sampling](self.data, self.args, own_classes(self.args))

    def one_experiment(self, experiment: int) -> Tensor:
        """Condense once; the synthetic images [N, C, H, W], normalised, after the last iteration."""
        args = self.args
        images, velocity = self.restored
        self.restored = None, None
        if images is None:
            images = INITS[args.init](self.data, args, experiment)
            self.files.save_grid(self.data.denormalise(images), args.counts, experiment, 0)
        own = rows_of(own_classes(args), args)
        images, velocity = (None if x is None else x[own].to(args.device) for x in (images, velocity))
        self.syn_set = Synthetic.start(images, args, velocity, pixel_bounds(self.data, args))
        self.evaluate_baseline(experiment)
        self.evaluate_if_due()
        pending: list[Step] = []
        first = self.iteration + 1
        with tqdm(
            range(first, args.Iteration + 1),
            desc=f"exp {experiment}",
            unit="it",
            dynamic_ncols=True,
            initial=self.iteration,
            total=args.Iteration,
            disable=not self.ranks.first,
        ) as bar:
            began = time.perf_counter()
            for iteration in bar:
                pending.append(self.step(iteration))
                self.iteration, self.steps = iteration, self.steps + 1
                stop, save = self.ranks.largest(self.interrupts.received or 0, self.checkpoint_is_due())
                self.interrupts.received, due = stop or None, self.evaluation_is_due()
                if due or save or iteration % CHECK_EVERY == 0 or self.interrupts.received:
                    text = self.look_at(pending)
                    pending.clear()
                    if due or iteration % CHECK_EVERY == 0:
                        bar.set_postfix_str(text)
                if due or save or self.interrupts.received:
                    self.step_seconds += time.perf_counter() - began
                    self.checkpoint()
                    if self.interrupts.received:
                        self.files.wait()
                        self.interrupts.check()
                    self.evaluate_if_due()
                    began = time.perf_counter()
        images, self.syn_set = self.whole(self.syn_set.images), None
        return images

    def whole(self, own: Tensor) -> Tensor:
        """All classes' images (or velocities) [N, C, H, W], of what this rank and the others have."""
        counts = self.args.counts
        sizes = [sum(counts[c] for c in self.ranks.own(len(counts), rank)) for rank in range(self.ranks.world)]
        return self.ranks.together(own.detach(), sizes)

    def step(self, iteration: int) -> Step:
        """One step; where memory is out, again with half as many classes at a time."""
        args = self.args
        while True:
            try:
                return condensation_step(self.matcher, self.syn_set, self.sampler, self.experiment, iteration, args)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
            if args.class_chunk == 1 or whole_passes(self.matcher.net, args):
                raise UserError(
                    f"out of memory with {args.class_chunk} class(es) at a time: lower --batch_real or --ipc, or "
                    "choose a smaller --model"
                )
            args.class_chunk = args.class_chunk // 2
            self.files.say(f"out of memory: going on with --class_chunk {args.class_chunk}, to the same result")
            memory.release()

    # --- what is looked at while it runs -------------------------------------------------------------------------

    def look_at(self, pending: list[Step]) -> str:
        """Fetch the last steps' losses, log those of every CHECK_EVERY-th; stop the run if one is not finite.

        Returns the last step's terms, each the mean over classes, as the published logs show them.
        """
        names = list(pending[0].terms)
        rows = torch.stack([torch.stack([step.terms[name].sum() for name in names]) for step in pending]).tolist()
        # Of all ranks, in their order.
        rows = [[sum(values) for values in zip(*row, strict=True)] for row in zip(*self.ranks.all(rows), strict=True)]
        finite = torch.stack([step.finite for step in pending]).tolist()
        text = ""
        for k, (row, good) in enumerate(zip(rows, finite, strict=True)):
            iteration = self.iteration - len(pending) + 1 + k
            if not good:
                self.not_finite(pending[k], iteration)
                continue
            terms = {name: value / self.data.num_classes for name, value in zip(names, row, strict=True)}
            text = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            if iteration % CHECK_EVERY == 0 or iteration == self.args.Iteration:
                loss = sum(terms.values())
                self.files.log(f"exp {self.experiment} iter {iteration}: loss {loss:.6g} ({text})")
                self.files.metrics("loss", self.experiment, iteration, {"total": loss, **terms})
        return text

    def not_finite(self, step: Step, iteration: int) -> None:
        """Count a skipped step, or stop the run and keep the images that the step began with."""
        args, where = self.args, f"experiment {self.experiment}, iteration {iteration}"
        found = [what for what in self.ranks.all(self.what_is_not_finite(step)) if what]
        what = f"{next(iter(found), 'a stepped pixel')} is not finite"
        if args.on_nonfinite == "skip":
            self.skipped.append([self.experiment, iteration])
            self.files.say(f"{where}: {what}; the step is skipped")
            return
        images, velocity = (self.whole(x).cpu() for x in (self.syn_set.images, self.syn_set.velocity))
        name = f"last_finite_{{}}_exp{self.experiment}_iter{iteration - 1}"
        state = {"velocity": velocity, "experiment": self.experiment, "iteration": iteration - 1}
        path = self.files.save_set([[images, self.labels.cpu()]], {}, self.about | state, name) or args.save_path
        message = (
            f"{where}: {what}; the images before it are in {path}; lower --lr_img or the weight of the term, or "
            "--on_nonfinite skip"
        )
        self.files.log(f"error: {message}")
        raise UserError(message)

    def what_is_not_finite(self, step: Step) -> str:
        """Which terms or gradients of which of this rank's classes; empty where all are finite."""
        bad = {name: (~values.isfinite()).nonzero().flatten().tolist() for name, values in step.terms.items()}
        bad = {name: hit for name, hit in bad.items() if hit}
        if bad:
            classes = step.chunks[min(k for hit in bad.values() for k in hit)]
            return f"{', '.join(bad)} of classes {classes.start} to {classes.stop - 1}"
        rows = (~step.gradient_finite).nonzero().flatten()
        if len(rows):
            classes = self.labels[rows + rows_of(own_classes(self.args), self.args).start].tolist()
            return f"the gradient of classes {classes[0]} to {classes[-1]}"
        return ""

    # --- evaluation and checkpoints ----------------------------------------------------------------------------------

    def evaluation_is_due(self) -> bool:
        every = self.args.eval_every
        return self.iteration == self.args.Iteration or bool(every and self.iteration and self.iteration % every == 0)

    def evaluate_if_due(self) -> None:
        if self.evaluation_is_due():
            images = self.whole(self.syn_set.images)
            self.files.save_grid(self.data.denormalise(images), self.args.counts, self.experiment, self.iteration)
            self.evaluate(images, self.kind, self.experiment, self.iteration)

    def evaluate_finished(self, images: Tensor, experiment: int) -> None:
        self.evaluate_baseline(experiment)
        super().evaluate_finished(images, experiment)

    def evaluate_baseline(self, experiment: int) -> None:
        """On the same number of real images: those that --init real starts from."""
        if self.args.eval_every:
            self.evaluate(real_images(self.data, self.args, experiment), "random real", experiment, 0)

    def checkpoint_is_due(self) -> bool:
        due = self.iteration % self.args.checkpoint_every == 0
        return due or time.perf_counter() - self.saved > CHECKPOINT_SECONDS

    def in_progress(self) -> tuple[Tensor | None, Tensor | None]:
        if self.syn_set is None:
            return self.restored
        images, velocity = (self.whole(x).to("cpu", copy=True) for x in (self.syn_set.images, self.syn_set.velocity))
        return images, velocity
