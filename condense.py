"""The one loop that the recipes share: sample, augment, embed, match, step, evaluate, save.

Classes go through the network several at a time (`--class_chunk`), each chunk with one backward, which is exact
because the objective is a sum over classes. Their real images go through it in parts, because all that matching
needs of them are embeddings and means over images. The network of an iteration is always the same module,
initialised afresh in place.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import data as datasets
import evaluate
import memory
import rng
import speed
from augment import augment_classes
from data import ImageData
from errors import UserError
from files import RunFiles, hardware, plain, versions
from networks import Network, empty_network, initialise
from sampling import SAMPLERS, Random
from schedules import SCHEDULES
from speed import autocast, compiled, laid_out, laid_out_net

CHECK_EVERY = 10  # iterations between looks at the losses: each look waits for the device


def pass_pixels(device: str | torch.device) -> int:
    """Pixels in one pass: of real images in a part, and of synthetic ones in a chunk when --class_chunk is 0.

    A CPU is fastest while feature maps are reused before they leave its caches; an accelerator wants large passes.
    """
    return 2**16 if torch.device(device).type == "cpu" else 2**20


class Features(NamedTuple):
    """What a network says of several classes' images."""

    embedding: Tensor  # phi(x): [classes, n, D]
    style: dict[str, list[Tensor]]  # by name, over tapped layers: a statistic of the feature maps, [classes, ...]


# A recipe: (real, syn, args) -> its weighted terms by name, each a scalar summed over the classes given.
Objective = Callable[[Features, Features, Namespace], dict[str, Tensor]]
# By name, what a recipe needs of feature maps [classes, n, C, H, W]: a mean over the n images, [classes, ...].
Statistics = dict[str, Callable[[Tensor], Tensor]]


def features(net: Network, images: Tensor, statistics: Statistics, precision: str) -> Features:
    """Embed images [classes, n, C, H, W] in one forward pass."""
    with autocast(images.device, precision):
        out = net.embed(images.flatten(0, 1))
    embedding, maps = out if isinstance(out, tuple) else (out, [])
    shape = images.shape[:2]
    style = {name: [mean(m.unflatten(0, shape)) for m in maps] for name, mean in statistics.items()}
    return Features(embedding.float().unflatten(0, shape), style)


def merged(parts: list[Features]) -> Features:
    """Features of the same classes' images, taken some images at a time, as if taken at once."""
    n = sum(part.embedding.shape[1] for part in parts)
    weights = [part.embedding.shape[1] / n for part in parts]
    style = {
        name: [
            sum(weight * mean for weight, mean in zip(weights, layer, strict=True))
            for layer in zip(*(part.style[name] for part in parts), strict=True)
        ]
        for name in parts[0].style
    }
    return Features(torch.cat([part.embedding for part in parts], dim=1), style)


def stacked(groups: list[Features]) -> Features:
    """Features of some classes after those of others."""
    style = {
        name: [torch.cat(layer) for layer in zip(*(group.style[name] for group in groups), strict=True)]
        for name in groups[0].style
    }
    return Features(torch.cat([group.embedding for group in groups]), style)


class Matcher:
    """An objective under a network; what `--compile` makes two graphs of: a part of the real images, and the rest."""

    def __init__(self, net: Network, objective: Objective, statistics: Statistics, args: Namespace):
        self.net, self.objective, self.statistics, self.args = net, objective, statistics, args
        self._features, self._syn_terms = compiled(features, args), compiled(self._eager_syn_terms, args)

    def _eager_syn_terms(self, net: Network, syn: Tensor, real: Features) -> dict[str, Tensor]:
        return self.objective(real, features(net, syn, self.statistics, self.args.precision), self.args)

    def terms(self, real: Tensor, syn: Tensor) -> dict[str, Tensor]:
        """The weighted terms on some classes' augmented images [classes, n, C, H, W]; real ones carry no gradient."""
        return self._syn_terms(self.net, syn, self.real_features(real))

    @torch.no_grad()
    def real_features(self, real: Tensor) -> Features:
        classes, part = part_shape(self.net, real)
        return stacked(
            [
                merged([self._features(self.net, x, self.statistics, self.args.precision) for x in own.split(part, 1)])
                for own in real.split(classes)
            ]
        )


def part_shape(net: Network, real: Tensor) -> tuple[int, int]:
    """(classes, images of each) of real images [classes, n, C, H, W] that go through the network in one pass."""
    classes, n, _, height, width = real.shape
    most = max(1, pass_pixels(real.device) // (height * width))
    if has_batch_norm(net):  # its statistics run over all classes of a pass, as published
        return classes, n
    if n > most:
        parts = -(-n // most)
        return 1, -(-n // parts)
    # A divisor of the classes, so that all parts have the same shape and are compiled once.
    return max(c for c in range(1, classes + 1) if classes % c == 0 and (c == 1 or c * n <= most)), n


def has_batch_norm(net: Network) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def chunks(num_classes: int, size: int) -> Iterator[range]:
    for first in range(0, num_classes, size):
        yield range(first, min(first + size, num_classes))


class Synthetic(NamedTuple):
    """The set being condensed."""

    images: Tensor  # [classes, ipc, C, H, W], normalised, requires grad
    optimizer: torch.optim.Optimizer
    finite: Tensor  # boolean scalar: false for good once a term or a stepped pixel was not finite

    @classmethod
    def start(cls, images: Tensor, args: Namespace) -> "Synthetic":
        images.requires_grad_(True)
        optimizer = torch.optim.SGD([images], lr=args.lr_img, momentum=args.momentum_img)
        return cls(images, optimizer, torch.ones((), dtype=torch.bool, device=images.device))


def condensation_step(
    matcher: Matcher, syn_set: Synthetic, sampler: Random, experiment: int, iteration: int, args: Namespace
) -> dict[str, Tensor]:
    """One SGD step on all synthetic pixels under one fresh network; nothing is read back from the device.

    Returns the terms, summed over classes. Where a term or a stepped pixel is not finite, the images stay as they
    were before this step, and all later steps leave them so.
    """
    image_syn, optimizer, finite = syn_set
    where = (args.seed, experiment, iteration)
    initialise(matcher.net, rng.generator(*where, -1, "network"))
    optimizer.param_groups[0]["lr"] = args.lr_img * SCHEDULES[args.lr_schedule](iteration - 1, args.Iteration)
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    for classes in chunks(len(image_syn), args.class_chunk):
        # A class has one augmentation for its real and its synthetic images.
        seeds = [rng.seed_of(*where, c, "augmentation") for c in classes]
        real = sampler.batch(classes, lambda c: rng.generator(*where, c, "real images"))
        syn = image_syn[classes.start : classes.stop]
        real, syn = (augment_classes(x, args.dsa_strategy, seeds, args.dsa_param) for x in (real, syn))
        terms = matcher.terms(laid_out(real, args), laid_out(syn, args))
        sum(terms.values()).backward()
        for name, value in terms.items():
            totals[name] = totals.get(name, 0) + value.detach()

    before = image_syn.detach().clone()
    optimizer.step()
    with torch.no_grad():
        finite &= torch.stack(list(totals.values())).isfinite().all() & image_syn.isfinite().all()
        image_syn.copy_(torch.where(finite, image_syn, before))
    return totals


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
    """Run the experiments of a recipe and write everything into args.save_path.

    `statistics` are those of the feature maps that the objective reads as `real.style` and `syn.style`.
    Raises UserError for what the user can mend, and when a loss stops being finite.
    """
    if args.device == "cpu":
        memory.keep_freed_memory()
    data = datasets.load(args.dataset, args.data_path)
    if args.eval_split == "val":
        data = data.with_validation(rng.seed_of(args.seed, 0, 0, -1, "validation split"))
    net = check_against(data, args, needs_taps)
    data = data.to(args.device)
    Run(args, data, Matcher(net, objective, statistics, args)).all_experiments()


class Run:
    """The state of a run: its data, networks and files, and what has been measured so far."""

    def __init__(self, args: Namespace, data: ImageData, matcher: Matcher):
        self.args, self.data, self.matcher = args, data, matcher
        self.files = RunFiles(args)
        self.evaluator = evaluate.Evaluator(data, args)
        self.labels = torch.arange(data.num_classes, device=args.device).repeat_interleave(args.ipc)
        self.started = time.perf_counter()
        self.sampler = SAMPLERS[args.real_sampling](data, args)
        self.step_seconds, self.steps = time.perf_counter() - self.started, 0
        self.evaluations: list[dict] = []
        self.about = {
            "args": plain(args),
            "mean": data.mean,
            "std": data.std,
            "class_names": data.class_names,
            "seed": args.seed,
            "versions": versions(),
        }

    def all_experiments(self) -> None:
        args, files = self.args, self.files
        files.log(f"command: {' '.join(sys.argv)}")
        files.log(f"arguments: {plain(args)}")
        files.say(
            f"{args.dataset}: {len(self.data.x_train)} training images, {self.data.num_classes} classes; {args.model} "
            f"on {args.device}; writing to {args.save_path}"
        )
        files.say(f"evaluation: {evaluate.protocol(args, self.data)}")
        sets = []
        for experiment in range(args.first_exp, args.first_exp + args.num_exp):
            image_syn = self.one_experiment(experiment)
            sets.append([image_syn.flatten(0, 1).cpu(), self.labels.cpu()])
            condensed = self.accuracies("condensed", args.Iteration)
            set_path = files.save_set(sets, condensed, self.about)
            results_path = files.save_results(self.record(condensed))
        self.conclude(condensed, set_path, results_path)

    def one_experiment(self, experiment: int) -> Tensor:
        """Condense once; the synthetic images [classes, ipc, C, H, W], normalised, after the last iteration."""
        args = self.args
        syn_set = Synthetic.start(INITS[args.init](self.data, args, experiment), args)
        image_syn = syn_set.images
        self.files.save_grid(self.data.denormalise(image_syn.detach()), experiment, 0)
        if args.eval_every:  # the baseline, on the same number of real images: those that --init real starts from
            self.evaluate(real_images(self.data, args, experiment), "random real", experiment, 0)
        pending: list[dict[str, Tensor]] = []
        with tqdm(range(1, args.Iteration + 1), desc=f"exp {experiment}", unit="it", dynamic_ncols=True) as bar:
            began = time.perf_counter()
            for iteration in bar:
                terms = condensation_step(self.matcher, syn_set, self.sampler, experiment, iteration, args)
                pending.append(terms | {"finite": syn_set.finite.clone()})
                last = iteration == args.Iteration
                evaluate_now = last or (args.eval_every and iteration % args.eval_every == 0)
                if evaluate_now or iteration % CHECK_EVERY == 0:
                    bar.set_postfix_str(self.look_at(pending, image_syn, experiment, iteration))
                    self.steps += len(pending)
                    pending.clear()
                if evaluate_now:
                    self.step_seconds += time.perf_counter() - began
                    self.files.save_grid(self.data.denormalise(image_syn.detach()), experiment, iteration)
                    self.evaluate(image_syn.detach(), "condensed", experiment, iteration)
                    began = time.perf_counter()
        return image_syn.detach()

    def look_at(self, pending: list[dict[str, Tensor]], image_syn: Tensor, experiment: int, iteration: int) -> str:
        """Fetch the losses of the last iterations, log them, stop the run if one is not finite.

        Returns the last iteration's terms, each the mean over classes, as the published logs show them.
        """
        names = list(pending[0])
        values = torch.stack([torch.stack([row[name].float() for name in names]) for row in pending]).tolist()
        for it, row in enumerate(values, start=iteration - len(pending) + 1):
            terms = dict(zip(names, row, strict=True))
            if not terms.pop("finite"):
                self.stop_non_finite(terms, image_syn, experiment, it)
        terms = {name: value / self.data.num_classes for name, value in terms.items()}
        text = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        self.files.log(f"exp {experiment} iter {iteration}: loss {sum(terms.values()):.6g} ({text})")
        return text

    def stop_non_finite(self, terms: dict[str, float], image_syn: Tensor, experiment: int, iteration: int) -> None:
        bad = [name for name, value in terms.items() if not abs(value) < float("inf")]
        kept = [image_syn.detach().flatten(0, 1).cpu(), self.labels.cpu()]
        name = f"last_finite_{{}}_exp{experiment}_iter{iteration - 1}"
        path = self.files.save_set([kept], {}, self.about, name)
        what = f"{', '.join(bad)} is not finite" if bad else "the gradient is not finite"
        message = (
            f"experiment {experiment}, iteration {iteration}: {what}; the last finite images are in {path}; "
            "lower --lr_img or the weight of the term"
        )
        self.files.log(f"error: {message}")
        raise UserError(message)

    def evaluate(self, images: Tensor, kind: str, experiment: int, iteration: int) -> None:
        """Score images [classes, ipc, C, H, W] and say the result."""
        accs = self.evaluator(images.flatten(0, 1), self.labels, experiment, iteration, self.files.log)
        for model, values in accs.items():
            entry = {"experiment": experiment, "iteration": iteration, "images": kind, "model": model}
            entry["condensing_seconds"] = self.step_seconds  # of all experiments so far, evaluations not counted
            self.evaluations.append(entry | evaluate.summary(values))
            self.files.say(f"exp {experiment} iter {iteration} {kind}, {model}: {evaluate.describe(values)}")

    def accuracies(self, kind: str, iteration: int) -> dict[str, list[float]]:
        """All experiments' accuracies at an iteration, by network."""
        accs: dict[str, list[float]] = {}
        for entry in self.evaluations:
            if (entry["images"], entry["iteration"]) == (kind, iteration):
                accs.setdefault(entry["model"], []).extend(entry["accuracies"])
        return accs

    def record(self, condensed: dict[str, list[float]]) -> dict:
        """What results.json holds. Accuracies are in [0, 1].

        mean, std, n, accuracies are of the model that condensed, or of the pool's first where it has not that model.
        """
        args = self.args
        first = condensed.get(args.model, next(iter(condensed.values())))
        return {
            "command": sys.argv,
            "args": plain(args),
            "protocol": evaluate.protocol(args, self.data),
            **evaluate.summary(first),
            "models": {model: evaluate.summary(accs) for model, accs in condensed.items()},
            "random_real": {m: evaluate.summary(accs) for m, accs in self.accuracies("random real", 0).items()},
            "evaluations": self.evaluations,
            "seconds": time.perf_counter() - self.started,
            "iterations_per_second": self.steps / self.step_seconds,
            "peak_memory_bytes": memory.peak_memory(args.device),
            "hardware": hardware(args.device),
            "versions": versions(),
        }

    def conclude(self, condensed: dict[str, list[float]], set_path: Path, results_path: Path) -> None:
        args, say = self.args, self.files.say
        of = f"{args.num_exp} experiment(s) of {args.ipc} image(s) per class"
        say(f"=== {of}, accuracy on the {args.eval_split} set ===")
        for model, accs in condensed.items():
            say(f"condensed,   {model}: {evaluate.describe(accs)}")
        for model, accs in self.accuracies("random real", 0).items():
            say(f"random real, {model}: {evaluate.describe(accs)}")
        last = args.first_exp + args.num_exp - 1
        say(f"images  {self.files.folder / f'vis_{self.files.stem}_exp{last}_iter{args.Iteration}.png'}")
        say(f"set     {set_path}")
        say(f"results {results_path}")
