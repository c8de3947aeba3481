"""What every command that makes sets does with them: experiments one after the other, evaluated, kept, gone on with.

`carry_out` is the frame of a command from its arguments to its last line; an `Experiments` is the state of its run.
"""

import copy
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor

from ddm.runs import checkpoint
from ddm.data import data as datasets
from ddm import memory
from ddm import ranks
from ddm.runs import resume
from ddm import rng
from ddm.evaluation import training
from ddm.data.data import ImageData, Normalised
from ddm.errors import UserError
from ddm.runs.files import NoFiles, RunFiles, hardware, plain, versions
from ddm.interrupt import Interrupts, Stopped
from ddm.networks import described
from ddm.ranks import Ranks

T = TypeVar("T")


def carry_out(
    args: Namespace, recipe: str, prepare: Callable[[ImageData], T], run: Callable[..., "Experiments"]
) -> None:
    """Run the experiments of a command, or the rest of them, and write everything into args.save_path.

    `prepare` refuses what can't work, before anything is written, and fits args to the data, still on the CPU; what it
    gives is the first argument of `run`. It must set args.counts. Raises UserError for what the user can mend, Stopped
    after a signal.
    """
    if args.device == "cpu":
        memory.keep_freed_memory()
    args.recipe = recipe
    requested = plain(args)
    first = ranks.from_environment()[0] == 0
    with RunFiles(args) if first else NoFiles() as files, Interrupts().installed() as interrupts, ExitStack() as stack:
        with interrupts.anywhere():  # the others may never come
            group = stack.enter_context(ranks.joined(args.device))
            state = resume.find(args, requested) if first else None
            state = group.from_first(state)
            chosen = {name: getattr(args, name) for name in checkpoint.CHOSEN if hasattr(args, name)}
            vars(args).update(group.from_first(chosen))
        finished = state is not None and state["concluded"] == [args.num_exp, args.num_eval]
        if group.from_first(finished and files.damaged(state["sets"]) is None):
            if first:
                print(f"{args.save_path} is finished; nothing is left to do")
                conclude(args, files, state["evaluations"], print)
            return
        with interrupts.anywhere():
            # One rank of each host before the others: it may download, or make a store.
            data = group.first_of_host(lambda: datasets.load(args.dataset, args.data_path, args.res))
            identity = {"requested": requested, "data": data.digest()}
            if args.eval_split == "val":
                data = data.with_validation(rng.seed_of(args.seed, 0, 0, -1, "validation split"))
            if args.zca:
                data = data.whitened()
            args.ranks = group
            prepared = prepare(data)
            resume.check_data(state, identity["data"], data, args.counts)
        try:
            run(prepared, args, data.to(args.device), files, interrupts, identity, state).all_experiments()
        except Stopped:
            files.wait()  # for the checkpoint to go on from
            raise


def images_per_class(data: ImageData, ipc: int | str) -> list[int]:
    """--ipc, a number or the path of a .json file, as one number a class.

    The file maps class names or numbers to how many images, "*" standing for all that are not named. Raises UserError
    where a class is missing, or has fewer training images than it shall have.
    """
    counts = [ipc] * data.num_classes if isinstance(ipc, int) else _read_counts(data, ipc)
    for c, (own, count) in enumerate(zip(data.indices, counts, strict=True)):
        if len(own) < count or not len(own):
            least = min(map(len, data.indices))
            advice = f"lower --ipc to {least} or less" if least else "every class needs training images"
            name = f"class {c} ({data.class_names[c]}) of {data.name}"
            raise UserError(f"{name} has {len(own)} training images, fewer than the {count} of --ipc {ipc}: {advice}")
    return counts


def _read_counts(data: ImageData, path: str) -> list[int]:
    try:
        with open(path) as file:
            found = json.load(file)
        named = {str(name): count for name, count in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--ipc {path}: not a readable .json of class to number ({type(error).__name__})") from None
    counts, known = [], {"*"}
    for c, name in enumerate(data.class_names):
        key = name if name in named or str(c) in data.class_names else str(c)  # a class may be called by a number
        count = named.get(key, named.get("*"))
        known.add(key)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            what = "names no number for it" if count is None else f"says {count!r}, a number from 1 is needed"
            raise UserError(f"--ipc {path}: class {c} is {name!r} in {data.name}, the file {what}")
        counts.append(count)
    unknown = named.keys() - known
    if unknown:
        raise UserError(f"--ipc {path}: {data.name} has no class {sorted(unknown)[0]!r}")
    return counts


def accuracies(evaluations: list[dict], kind: str, iteration: int) -> dict[str, list[float]]:
    """All experiments' accuracies at an iteration, by network."""
    accs: dict[str, list[float]] = {}
    for entry in evaluations:
        if (entry["images"], entry["iteration"]) == (kind, iteration):
            accs.setdefault(entry["model"], []).extend(entry.get("accuracies", []))
    return accs


def conclude(args: Namespace, files: RunFiles, evaluations: list[dict], say: Callable[[str], None]) -> None:
    """Say what a finished run came to and where it is."""
    ipc = f"images as {args.ipc} says" if isinstance(args.ipc, str) else f"{args.ipc} image(s) per class"
    if not args.ipc:  # coreset.py --method full
        ipc = f"{args.subset_size or 'all'} training images"
    of = f"{args.num_exp} experiment(s) of {ipc}"
    say(f"=== {of}, accuracy on the {args.eval_split} set ===")
    kinds = dict.fromkeys(entry["images"] for entry in reversed(evaluations))
    for kind in kinds:
        for model, accs in accuracies(evaluations, kind, 0 if kind == "random real" else args.Iteration).items():
            say(f"{kind + ',':<12} {model}: {training.describe(accs)}")
    last = args.first_exp + args.num_exp - 1
    grid = files.folder / f"vis_{files.stem}_exp{last}_iter{args.Iteration}.png"
    if grid.exists():
        say(f"images  {grid}")
    say(f"set     {files.set_path}")
    say(f"results {files.results_path}")


class Experiments:
    """The state of a run: its data and files, and what has been made and measured so far.

    A subclass makes the sets: `one_experiment`, and what `kind` of images they are.
    """

    kind = "condensed"

    def __init__(
        self,
        args: Namespace,
        data: ImageData,
        files: RunFiles,
        interrupts: Interrupts,
        identity: dict,
        state: dict | None,
    ):
        self.args, self.data, self.files, self.interrupts = args, data, files, interrupts
        self.identity, self.ranks = identity, getattr(args, "ranks", Ranks())
        self.evaluator = training.Evaluator(data, args)
        counts = torch.tensor(args.counts, device=args.device)
        self.labels = torch.arange(data.num_classes, device=args.device).repeat_interleave(counts)
        self.started = self.saved = time.perf_counter()
        self.log_bytes = state["log_bytes"] if state else None  # None: nothing to go on from
        state = state or {}
        self.sets: list[Tensor] = state.get("sets", [])  # of finished experiments: [N, C, H, W]
        self.evaluations: list[dict] = state.get("evaluations", [])
        self.skipped: list[list[int]] = state.get("skipped", [])  # [experiment, iteration]
        self.seconds_before, self.step_seconds = state.get("seconds", 0.0), state.get("step_seconds", 0.0)
        self.steps = state.get("steps", 0)
        self.concluded: list[int] | None = state.get("concluded")  # [num_exp, num_eval] of the last conclusion
        self.experiment, self.iteration = state.get("experiment", args.first_exp), state.get("iteration", 0)
        self.restored = state.get("images"), state.get("velocity")  # of the experiment in progress
        self.about = {
            "args": plain(args),
            "asked": getattr(args, "asked", plain(args)),
            "mean": data.mean,
            "std": data.std,
            "class_names": data.class_names,
            "seed": args.seed,
            "versions": versions(),
        }
        if data.whitening is not None:  # x @ inverse + mean gives pixels in [0, 1]
            self.about["zca"] = {name: x.cpu() for name, x in data.whitening._asdict().items()}

    # --- experiments ---------------------------------------------------------------------------------------------

    def all_experiments(self) -> None:
        args, files = self.args, self.files
        with self.interrupts.anywhere():  # before anything is written: it may refuse
            began = time.perf_counter()
            self.begin()
            self.step_seconds += time.perf_counter() - began
        files.open(self.log_bytes, (self.experiment, self.iteration))
        if self.concluded == [args.num_exp, args.num_eval] and self.ranks.first:
            damaged = files.damaged(self.sets)
            print(f"warning: {damaged} is damaged or gone: it is written again", file=sys.stderr)
        if self.log_bytes is None:
            files.log(f"command: {' '.join(sys.argv)}")
            files.log(f"arguments: {plain(args)}")
            files.say(
                f"{args.dataset}: {len(self.data.x_train)} training images, {self.data.num_classes} classes; "
                f"{described(args.model, self.data.im_size)} on {args.device}"
                f"{f', {self.ranks.world} ranks' if self.ranks.world > 1 else ''}; writing to {args.save_path}"
            )
            sizes = sorted(map(len, self.data.indices))
            if sizes[0] < sizes[-1]:
                files.say(
                    f"classes have {sizes[0]} to {sizes[-1]} training images; all weigh the same, and one smaller than "
                    "the batch is gone through again within it"
                )
            files.say(f"evaluation: {training.protocol(args, self.data)}")
            self.checkpoint()  # from here on, there is something to go on from
            files.wait()
        else:
            files.say(f"going on from the checkpoint of experiment {self.experiment}, iteration {self.iteration}")
        for number in range(args.num_exp):
            experiment = args.first_exp + number
            if number < len(self.sets):  # finished; there may be more networks to evaluate it with than before
                self.evaluate_finished(self.sets[number].to(args.device), experiment)
            else:
                self.sets.append(self.one_experiment(experiment).cpu())
                self.experiment, self.iteration = experiment + 1, 0
            self.save_results()
            self.checkpoint()
        if self.ranks.first:
            conclude(args, files, self.evaluations, files.say)
            files.hyper_parameters(plain(args), training.summary(next(iter(self.accuracies().values()))))
        self.concluded = [args.num_exp, args.num_eval]
        self.checkpoint()
        files.wait()

    def begin(self) -> None:
        """What is computed once, from the data alone."""

    def one_experiment(self, experiment: int) -> Tensor:
        """Make and evaluate a set; its images [N, C, H, W], normalised, classes one after the other."""
        raise NotImplementedError

    def evaluate_finished(self, images: Tensor, experiment: int) -> None:
        """On the networks that have not seen the set [N, C, H, W] of an experiment yet."""
        self.evaluate(images, self.kind, experiment, self.args.Iteration)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self, images: Tensor | Normalised, kind: str, experiment: int, iteration: int) -> None:
        """Score images [N, C, H, W] on the networks that have not done so; a checkpoint after each (of every rank)."""
        args = self.args
        for model in training.get_eval_pool(args.eval_mode, args.model):
            entry = self.entry(experiment, iteration, kind, model)
            accs = entry.get("accuracies", [])
            for it_first in range(len(accs), args.num_eval, self.ranks.world):
                it_eval, own = it_first + self.ranks.rank, []
                with self.interrupts.anywhere():
                    if it_eval < args.num_eval:
                        where = (experiment, iteration, it_eval)
                        own = [self.evaluator.accuracy(model, images, self.labels, *where, self.files.log)]
                    accs = [*accs, *(acc for accs in self.ranks.all(own) for acc in accs)]
                entry.update(training.summary(accs))
                if len(accs) == args.num_eval:
                    self.files.say(f"exp {experiment} iter {iteration} {kind}, {model}: {training.describe(accs)}")
                    values = {f"{model}, {kind}": training.summary(accs)["mean"]}
                    self.files.metrics("accuracy", experiment, iteration, values)
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

    # --- what is written -------------------------------------------------------------------------------------------

    def in_progress(self) -> tuple[Tensor | None, Tensor | None]:
        """Images and velocity of the experiment in progress, on the CPU."""
        return self.restored

    def checkpoint(self) -> None:
        """Hand the state to the writer, as a copy."""
        images, velocity = self.in_progress()
        self.saved = time.perf_counter()
        state = {
            "experiment": self.experiment,
            "iteration": self.iteration,
            "images": images,
            "velocity": velocity,
            "counts": self.args.counts,
            "sets": list(self.sets),
            "evaluations": copy.deepcopy(self.evaluations),
            "skipped": list(self.skipped),
            "seconds": self.seconds(),
            "step_seconds": self.step_seconds,
            "steps": self.steps,
            "concluded": self.concluded,
            "chosen": {name: getattr(self.args, name) for name in checkpoint.CHOSEN if hasattr(self.args, name)},
            "versions": versions(),
            **self.identity,
        }
        self.files.save_checkpoint(state)

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def accuracies(self) -> dict[str, list[float]]:
        """Of all finished experiments, by network."""
        return accuracies(self.evaluations, self.kind, self.args.Iteration)

    def save_results(self) -> None:
        """The sets of the finished experiments and results.json."""
        accs = self.accuracies()
        self.files.save_set([[x, self.labels.cpu()] for x in self.sets], accs, self.about)
        self.files.save_results(self.record(accs))

    def record(self, made: dict[str, list[float]]) -> dict:
        """What results.json holds. Accuracies are in [0, 1].

        mean, std, n, accuracies are of the model that condensed, or of the pool's first where it has not that model.
        """
        args = self.args
        random_real = accuracies(self.evaluations, "random real", 0)
        first = made.get(args.model, next(iter(made.values())))
        return {
            "command": sys.argv,
            "args": plain(args),
            "asked": getattr(args, "asked", plain(args)),
            "protocol": training.protocol(args, self.data),
            **training.summary(first),
            "models": {model: training.summary(accs) for model, accs in made.items()},
            "random_real": {model: training.summary(accs) for model, accs in random_real.items()},
            "evaluations": self.evaluations,
            "skipped": self.skipped,
            "images_per_class": self.args.counts,
            "ranks": self.ranks.world,
            "seconds": self.seconds(),
            "iterations_per_second": self.steps / self.step_seconds if self.steps else None,
            "peak_memory_bytes": memory.peak_memory(args.device),
            "hardware": hardware(args.device),
            "versions": versions(),
        }
