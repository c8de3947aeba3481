"""The one loop that the recipes share: sample, augment, embed, match, step, evaluate, save.

Classes go through the network several at a time (`--class_chunk`), each chunk with one backward, which is exact
because the objective is a sum over classes. The network of an iteration is always the same module, initialised
afresh in place. As all randomness follows from the iteration, a run goes on from images, momentum and results alone.
"""

import copy
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
import data as datasets
import evaluate
import memory
import resume
import rng
import speed
from augment import augment_classes
from data import ImageData
from errors import UserError
from files import RunFiles, hardware, plain, versions
from interrupt import Interrupts, Stopped
from matching import Matcher, Objective, Statistics, has_batch_norm, pass_pixels
from networks import Network, empty_network, initialise
from sampling import SAMPLERS, Random
from schedules import SCHEDULES
from speed import laid_out, laid_out_net

CHECK_EVERY = 10  # iterations between looks at the losses: each look waits for the device
CHECKPOINT_SECONDS = 300  # at most, between two checkpoints while it condenses


def chunks(num_classes: int, size: int) -> Iterator[range]:
    for first in range(0, num_classes, size):
        yield range(first, min(first + size, num_classes))


class Synthetic(NamedTuple):
    """The set being condensed."""

    images: Tensor  # [classes, ipc, C, H, W], normalised, requires grad
    optimizer: torch.optim.Optimizer
    velocity: Tensor  # the optimizer's momentum buffer, of the images' shape
    finite: Tensor  # boolean scalar: whether the last step was finite; the images then are, too

    @classmethod
    def start(cls, images: Tensor, args: Namespace, velocity: Tensor | None = None) -> "Synthetic":
        images.requires_grad_(True)
        velocity = torch.zeros_like(images) if velocity is None else velocity
        optimizer = torch.optim.SGD([images], lr=args.lr_img, momentum=args.momentum_img)
        if args.momentum_img:
            optimizer.state[images]["momentum_buffer"] = velocity
        return cls(images, optimizer, velocity, torch.ones((), dtype=torch.bool, device=images.device))


class Step(NamedTuple):
    """What a step gives, on the device."""

    terms: dict[str, Tensor]  # by name: [chunks], each summed over the classes of the chunk
    gradient_finite: Tensor  # boolean [classes]
    finite: Tensor  # boolean scalar: terms, gradient and stepped pixels
    class_chunk: int  # classes in a chunk


def condensation_step(
    matcher: Matcher, syn_set: Synthetic, sampler: Random, experiment: int, iteration: int, args: Namespace
) -> Step:
    """One SGD step on all synthetic pixels under one fresh network; nothing is read back from the device.

    Where a term, a gradient or a stepped pixel is not finite, images and momentum stay as they were before the step.
    After it all later steps leave them so too, unless args.on_nonfinite is 'skip'. Raises whatever the device raises
    where memory is out, before anything has changed.
    """
    image_syn, optimizer, velocity, finite = syn_set
    where = (args.seed, experiment, iteration)
    initialise(matcher.net, rng.generator(*where, -1, "network"))
    optimizer.param_groups[0]["lr"] = args.lr_img * SCHEDULES[args.lr_schedule](iteration - 1, args.Iteration)
    optimizer.zero_grad(set_to_none=True)
    parts: dict[str, list[Tensor]] = {}
    for classes in chunks(len(image_syn), args.class_chunk):
        # A class has one augmentation for its real and its synthetic images.
        seeds = [rng.seed_of(*where, c, "augmentation") for c in classes]
        real = sampler.batch(classes, lambda c: rng.generator(*where, c, "real images"))
        syn = image_syn[classes.start : classes.stop]
        real, syn = (augment_classes(x, args.dsa_strategy, seeds, args.dsa_param) for x in (real, syn))
        terms = matcher.terms(laid_out(real, args), laid_out(syn, args))
        sum(terms.values()).backward()
        for name, value in terms.items():
            parts.setdefault(name, []).append(value.detach())

    terms = {name: torch.stack(values) for name, values in parts.items()}
    gradient_finite = image_syn.grad.isfinite().flatten(1).all(1)
    before, velocity_before = image_syn.detach().clone(), velocity.clone()
    optimizer.step()
    with torch.no_grad():
        good = torch.stack(list(terms.values())).isfinite().all() & gradient_finite.all() & image_syn.isfinite().all()
        finite.copy_(good if args.on_nonfinite == "skip" else finite & good)
        image_syn.copy_(torch.where(finite, image_syn, before))
        velocity.copy_(torch.where(finite, velocity, velocity_before))
    return Step(terms, gradient_finite, finite.clone(), args.class_chunk)


def real_images(data: ImageData, args: Namespace, experiment: int) -> Tensor:
    """Random real images of every class, normalised: [classes, ipc, C, H, W]."""
    indices = [
        data.draw(c, args.ipc, rng.generator(args.seed, experiment, 0, c, "initial images"))
        for c in range(data.num_classes)
    ]
    return data.batch(torch.stack(indices))


def noise_images(data: ImageData, args: Namespace, experiment: int) -> Tensor:
    """Standard normal pixels in the normalised space: [classes, ipc, C, H, W]."""
    shape = (data.num_classes, args.ipc, data.channel, *data.im_size)
    generator = rng.generator(args.seed, experiment, 0, -1, "initial images")
    return torch.randn(shape, generator=generator, device="cpu").to(args.device)


INITS = {"real": real_images, "noise": noise_images}


def check_against(data: ImageData, args: Namespace, needs_taps: bool) -> Network:
    """Refuse what can't work, before anything is written; give the network to match under.

    Fits args to the data: batch_real to the largest class, class_chunk 0 to a number, and class_chunk to all
    classes under BatchNorm, whose statistics run over the classes of a pass, as published.
    """
    sizes = [len(own) for own in data.indices]
    least = min(sizes)
    if least < args.ipc:
        advice = f"lower --ipc to {least} or less" if least else "every class needs training images"
        name = data.class_names[sizes.index(least)]
        raise UserError(
            f"class {sizes.index(least)} ({name}) of {data.name} has {least} training images, fewer than --ipc "
            f"{args.ipc}: {advice}"
        )
    args.batch_real = min(args.batch_real, max(sizes))
    net = empty_network(args.model, data.channel, data.num_classes, data.im_size, args.device)
    for model in evaluate.get_eval_pool(args.eval_mode, args.model):
        try:
            empty_network(model, data.channel, data.num_classes, data.im_size, "meta")
        except UserError as error:
            raise UserError(f"--eval_mode {args.eval_mode} on {data.name}: {error}; choose another mode") from None
    if needs_taps and not net.taps:
        raise UserError(
            f"--model {args.model} has no feature-map taps, which style matching needs: use --model ConvNet_gram or "
            "another _gram form of a ConvNet, AlexNet, VGG11 or ResNet18"
        )
    if has_batch_norm(net):
        args.class_chunk = data.num_classes
    elif args.class_chunk == 0:
        args.class_chunk = choose_chunk(data, args)
    args.class_chunk = min(args.class_chunk, data.num_classes)
    speed.choose(args, condensing_pixels(data, args))
    return laid_out_net(net, args).requires_grad_(False).train()


def choose_chunk(data: ImageData, args: Namespace) -> int:
    """Classes per backward: as many as the device is fast with and half of its free memory holds.

    A divisor of the number of classes, so that every chunk has the same shape and is compiled once.
    """
    height, width = data.im_size
    most = pass_pixels(args.device) // (args.ipc * height * width)
    net = empty_network(args.model, data.channel, data.num_classes, data.im_size, "meta")
    needed = memory.class_bytes(net, (data.channel, height, width), args.batch_real, args.ipc)
    free = memory.free_memory(args.device)
    if free is not None:  # the other half is for a part of the real images, and whoever else is there
        most = min(most, free // 2 // needed)
    return max(n for n in range(1, data.num_classes + 1) if data.num_classes % n == 0 and n <= max(1, most))


def condensing_pixels(data: ImageData, args: Namespace) -> int:
    """Pixels that go through networks to condense one experiment; a backward counts as two forwards.

    Evaluations and the number of experiments stay out of it: they must not change how an experiment is computed.
    """
    images = args.Iteration * data.num_classes * (args.batch_real + 3 * args.ipc)
    return images * data.im_size[0] * data.im_size[1]


def condense(args: Namespace, objective: Objective, statistics: Statistics, needs_taps: bool = False) -> None:
    """Run the experiments of a recipe, or the rest of them, and write everything into args.save_path.

    `statistics` are those of the feature maps that the objective reads as `real.style` and `syn.style`.
    Raises UserError for what the user can mend and when a loss stops being finite, Stopped after a signal.
    """
    if args.device == "cpu":
        memory.keep_freed_memory()
    args.recipe = Path(objective.__code__.co_filename).stem
    requested = plain(args)
    with RunFiles(args) as files, Interrupts().installed() as interrupts:
        state = resume.find(args, requested)
        finished = state is not None and state["concluded"] == [args.num_exp, args.num_eval]
        if finished and files.damaged(state["sets"]) is None:
            print(f"{args.save_path} is finished; nothing is left to do")
            conclude(args, files, state["evaluations"], print)
            return
        with interrupts.anywhere():
            data = datasets.load(args.dataset, args.data_path)
            identity = {"requested": requested, "data": data.digest()}
            if args.eval_split == "val":
                data = data.with_validation(rng.seed_of(args.seed, 0, 0, -1, "validation split"))
            resume.check_data(state, identity["data"], data, args.ipc)
            matcher = Matcher(check_against(data, args, needs_taps), objective, statistics, args)
        try:
            Run(args, data.to(args.device), matcher, files, interrupts, identity, state).all_experiments()
        except Stopped:
            files.wait()  # for the checkpoint to go on from
            raise


def accuracies(evaluations: list[dict], kind: str, iteration: int) -> dict[str, list[float]]:
    """All experiments' accuracies at an iteration, by network."""
    accs: dict[str, list[float]] = {}
    for entry in evaluations:
        if (entry["images"], entry["iteration"]) == (kind, iteration):
            accs.setdefault(entry["model"], []).extend(entry.get("accuracies", []))
    return accs


def conclude(args: Namespace, files: RunFiles, evaluations: list[dict], say: Callable[[str], None]) -> None:
    """Say what a finished run came to and where it is."""
    of = f"{args.num_exp} experiment(s) of {args.ipc} image(s) per class"
    say(f"=== {of}, accuracy on the {args.eval_split} set ===")
    for model, accs in accuracies(evaluations, "condensed", args.Iteration).items():
        say(f"condensed,   {model}: {evaluate.describe(accs)}")
    for model, accs in accuracies(evaluations, "random real", 0).items():
        say(f"random real, {model}: {evaluate.describe(accs)}")
    last = args.first_exp + args.num_exp - 1
    say(f"images  {files.folder / f'vis_{files.stem}_exp{last}_iter{args.Iteration}.png'}")
    say(f"set     {files.set_path}")
    say(f"results {files.results_path}")


class Run:
    """The state of a run: its data, networks and files, and what has been condensed and measured so far."""

    def __init__(
        self,
        args: Namespace,
        data: ImageData,
        matcher: Matcher,
        files: RunFiles,
        interrupts: Interrupts,
        identity: dict,
        state: dict | None,
    ):
        self.args, self.data, self.matcher, self.files, self.interrupts = args, data, matcher, files, interrupts
        self.identity = identity
        self.evaluator = evaluate.Evaluator(data, args)
        self.labels = torch.arange(data.num_classes, device=args.device).repeat_interleave(args.ipc)
        self.started = self.saved = time.perf_counter()
        self.log_bytes = state["log_bytes"] if state else None  # None: nothing to go on from
        state = state or {}
        self.sets: list[Tensor] = state.get("sets", [])  # of finished experiments: [classes, ipc, C, H, W]
        self.evaluations: list[dict] = state.get("evaluations", [])
        self.skipped: list[list[int]] = state.get("skipped", [])  # [experiment, iteration]
        self.seconds_before, self.step_seconds = state.get("seconds", 0.0), state.get("step_seconds", 0.0)
        self.steps = state.get("steps", 0)
        self.concluded: list[int] | None = state.get("concluded")  # [num_exp, num_eval] of the last conclusion
        self.experiment, self.iteration = state.get("experiment", args.first_exp), state.get("iteration", 0)
        self.restored = state.get("images"), state.get("velocity")  # of the experiment in progress
        self.syn_set: Synthetic | None = None
        self.about = {
            "args": plain(args),
            "mean": data.mean,
            "std": data.std,
            "class_names": data.class_names,
            "seed": args.seed,
            "versions": versions(),
        }

    # --- experiments ---------------------------------------------------------------------------------------------

    def all_experiments(self) -> None:
        args, files = self.args, self.files
        files.open(self.log_bytes)
        if self.concluded == [args.num_exp, args.num_eval]:
            damaged = files.damaged(self.sets)
            print(f"warning: {damaged} is damaged or gone: it is written again", file=sys.stderr)
        if self.log_bytes is None:
            files.log(f"command: {' '.join(sys.argv)}")
            files.log(f"arguments: {plain(args)}")
            files.say(
                f"{args.dataset}: {len(self.data.x_train)} training images, {self.data.num_classes} classes; "
                f"{args.model} on {args.device}; writing to {args.save_path}"
            )
            files.say(f"evaluation: {evaluate.protocol(args, self.data)}")
            self.checkpoint()  # from here on, there is something to go on from
            files.wait()
        else:
            files.say(f"going on from the checkpoint of experiment {self.experiment}, iteration {self.iteration}")
        with self.interrupts.anywhere():
            began = time.perf_counter()
            sampler = SAMPLERS[args.real_sampling](self.data, args)
            self.step_seconds += time.perf_counter() - began
        for number in range(args.num_exp):
            experiment = args.first_exp + number
            if number < len(self.sets):  # finished; there may be more networks to evaluate it with than before
                images = self.sets[number].to(args.device)
                self.evaluate_baseline(experiment)
                self.evaluate(images, "condensed", experiment, args.Iteration)
            else:
                self.sets.append(self.one_experiment(experiment, sampler).cpu())
                self.experiment, self.iteration, self.syn_set = experiment + 1, 0, None
            self.save_results()
            self.checkpoint()
        conclude(args, files, self.evaluations, files.say)
        self.concluded = [args.num_exp, args.num_eval]
        self.checkpoint()
        files.wait()

    def one_experiment(self, experiment: int, sampler: Random) -> Tensor:
        """Condense once; the synthetic images [classes, ipc, C, H, W], normalised, after the last iteration."""
        args = self.args
        images, velocity = (None if x is None else x.to(args.device) for x in self.restored)
        self.restored = None, None
        if images is None:
            images = INITS[args.init](self.data, args, experiment)
            self.files.save_grid(self.data.denormalise(images), experiment, 0)
        self.syn_set = Synthetic.start(images, args, velocity)
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
        ) as bar:
            began = time.perf_counter()
            for iteration in bar:
                pending.append(self.step(sampler, iteration))
                self.iteration, self.steps = iteration, self.steps + 1
                save, due = self.checkpoint_is_due(), self.evaluation_is_due()
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
        return self.syn_set.images.detach()

    def step(self, sampler: Random, iteration: int) -> Step:
        """One step; where memory is out, again with half as many classes at a time."""
        args = self.args
        while True:
            try:
                return condensation_step(self.matcher, self.syn_set, sampler, self.experiment, iteration, args)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
            if args.class_chunk == 1 or has_batch_norm(self.matcher.net):
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
        return text

    def not_finite(self, step: Step, iteration: int) -> None:
        """Count a skipped step, or stop the run and keep the images that the step began with."""
        args, where = self.args, f"experiment {self.experiment}, iteration {iteration}"
        bad = {name: (~values.isfinite()).nonzero().flatten().tolist() for name, values in step.terms.items()}
        bad = {name: hit for name, hit in bad.items() if hit}
        if bad:
            first = min(k for hit in bad.values() for k in hit) * step.class_chunk
            last = min(first + step.class_chunk, self.data.num_classes) - 1
            what = f"{', '.join(bad)} of classes {first} to {last} is not finite"
        else:
            classes = (~step.gradient_finite).nonzero().flatten().tolist()
            what = f"the gradient of classes {classes[0]} to {classes[-1]}" if classes else "a stepped pixel"
            what += " is not finite"
        if args.on_nonfinite == "skip":
            self.skipped.append([self.experiment, iteration])
            self.files.say(f"{where}: {what}; the step is skipped")
            return
        kept = [self.syn_set.images.detach().flatten(0, 1).cpu(), self.labels.cpu()]
        name = f"last_finite_{{}}_exp{self.experiment}_iter{iteration - 1}"
        state = {"velocity": self.syn_set.velocity.cpu(), "experiment": self.experiment, "iteration": iteration - 1}
        path = self.files.save_set([kept], {}, self.about | state, name)
        message = (
            f"{where}: {what}; the images before it are in {path}; lower --lr_img or the weight of the term, or "
            "--on_nonfinite skip"
        )
        self.files.log(f"error: {message}")
        raise UserError(message)

    # --- evaluation ----------------------------------------------------------------------------------------------

    def evaluation_is_due(self) -> bool:
        every = self.args.eval_every
        return self.iteration == self.args.Iteration or bool(every and self.iteration and self.iteration % every == 0)

    def evaluate_if_due(self) -> None:
        if self.evaluation_is_due():
            images = self.syn_set.images.detach()
            self.files.save_grid(self.data.denormalise(images), self.experiment, self.iteration)
            self.evaluate(images, "condensed", self.experiment, self.iteration)

    def evaluate_baseline(self, experiment: int) -> None:
        """On the same number of real images: those that --init real starts from."""
        if self.args.eval_every:
            self.evaluate(real_images(self.data, self.args, experiment), "random real", experiment, 0)

    def evaluate(self, images: Tensor, kind: str, experiment: int, iteration: int) -> None:
        """Score images [classes, ipc, C, H, W] on the networks that have not done so; a checkpoint after each."""
        args, images = self.args, images.flatten(0, 1)
        for model in evaluate.get_eval_pool(args.eval_mode, args.model):
            entry = self.entry(experiment, iteration, kind, model)
            accs = entry.get("accuracies", [])
            for it_eval in range(len(accs), args.num_eval):
                with self.interrupts.anywhere():
                    where = (experiment, iteration, it_eval)
                    acc = self.evaluator.accuracy(model, images, self.labels, *where, self.files.log)
                accs = [*accs, acc]
                entry.update(evaluate.summary(accs))
                if len(accs) == args.num_eval:
                    self.files.say(f"exp {experiment} iter {iteration} {kind}, {model}: {evaluate.describe(accs)}")
                self.checkpoint()

    def entry(self, experiment: int, iteration: int, kind: str, model: str) -> dict:
        """The record of an evaluation, a new one if there is none yet."""
        key = {"experiment": experiment, "iteration": iteration, "images": kind, "model": model}
        for entry in self.evaluations:
            if key.items() <= entry.items():
                return entry
        # condensing_seconds: of all experiments so far, evaluations not counted
        self.evaluations.append(key | {"condensing_seconds": self.step_seconds})
        return self.evaluations[-1]

    # --- what is written -----------------------------------------------------------------------------------------

    def checkpoint_is_due(self) -> bool:
        due = self.iteration % self.args.checkpoint_every == 0
        return due or time.perf_counter() - self.saved > CHECKPOINT_SECONDS

    def checkpoint(self) -> None:
        """Hand the state to the writer, as a copy."""
        images, velocity = self.restored
        if self.syn_set is not None:
            images, velocity = (x.detach().to("cpu", copy=True) for x in (self.syn_set.images, self.syn_set.velocity))
        self.saved = time.perf_counter()
        state = {
            "experiment": self.experiment,
            "iteration": self.iteration,
            "images": images,
            "velocity": velocity,
            "sets": list(self.sets),
            "evaluations": copy.deepcopy(self.evaluations),
            "skipped": list(self.skipped),
            "seconds": self.seconds(),
            "step_seconds": self.step_seconds,
            "steps": self.steps,
            "concluded": self.concluded,
            "chosen": {name: getattr(self.args, name) for name in checkpoint.CHOSEN},
            "versions": versions(),
            **self.identity,
        }
        self.files.save_checkpoint(state)

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def save_results(self) -> None:
        """The sets of the finished experiments and results.json."""
        accs = accuracies(self.evaluations, "condensed", self.args.Iteration)
        self.files.save_set([[x.flatten(0, 1), self.labels.cpu()] for x in self.sets], accs, self.about)
        self.files.save_results(self.record(accs))

    def record(self, condensed: dict[str, list[float]]) -> dict:
        """What results.json holds. Accuracies are in [0, 1].

        mean, std, n, accuracies are of the model that condensed, or of the pool's first where it has not that model.
        """
        args = self.args
        random_real = accuracies(self.evaluations, "random real", 0)
        first = condensed.get(args.model, next(iter(condensed.values())))
        return {
            "command": sys.argv,
            "args": plain(args),
            "protocol": evaluate.protocol(args, self.data),
            **evaluate.summary(first),
            "models": {model: evaluate.summary(accs) for model, accs in condensed.items()},
            "random_real": {model: evaluate.summary(accs) for model, accs in random_real.items()},
            "evaluations": self.evaluations,
            "skipped": self.skipped,
            "seconds": self.seconds(),
            "iterations_per_second": self.steps / self.step_seconds,
            "peak_memory_bytes": memory.peak_memory(args.device),
            "hardware": hardware(args.device),
            "versions": versions(),
        }
