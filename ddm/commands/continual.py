"""Class-incremental learning from a condensed memory: classes arrive in steps, and each leaves a few images behind.

    python continual.py --dataset CIFAR100 --steps 5 --ipc 20 --memory random,herding,dm,ddm --seeds 5 --save_path DIR

At each step the memory of the new classes is made from their training images alone: `random`, `herding` and `kmeans`
choose (see coreset.py), `dm` condenses with L_MMD, `ddm` with the weights that the flags of DM_DDM.py say (`--preset
best`, for instance). A fresh network is trained on all memory so far (GDumb, Prabhu et al., ECCV 2020) and tested on
the test images of all classes so far. Orders of the classes are numpy's `RandomState(seed).permutation`. Writes
results.json, curves.png and every memory into --save_path; stopped, the same command goes on.
"""

import argparse
import copy
import statistics
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddm.data import data as datasets
import DM_DDM
from ddm import flags
from ddm import rng
from ddm.methods import selection
from ddm import speed
from ddm.evaluation import training
from ddm.methods.condense import condensed, prepare
from ddm.data.data import ImageData, classes_of
from ddm.errors import UserError, lookup
from ddm.runs.experiments import images_per_class
from ddm.runs.files import RunFiles, hardware, plain, versions
from ddm.interrupt import Interrupts
from ddm.networks import empty_network

SELECTED, CONDENSED = ("random", "herding", "kmeans"), ("dm", "ddm")


def class_steps(num_classes: int, steps: int, seed: int) -> list[list[int]]:
    """The classes of each step: numpy's seeded permutation in `steps` equal parts."""
    order = np.random.RandomState(seed).permutation(num_classes)
    return [part.tolist() for part in np.array_split(order, steps)]


def make_memory(data: ImageData, args: Namespace, memory: str, seed: int, step: int) -> Tensor:
    """Images [classes * ipc, C, H, W] of a step's classes, from their training images alone."""
    own = copy.copy(args)
    own.seed, where = args.seed + seed, step
    if memory in SELECTED:
        own.method, own.counts = memory, images_per_class(data, args.ipc)
        found = None if memory == "random" else selection.proxy(data, own, data.digest())
        return data.batch(selection.select(data, own, where, found))
    if memory == "dm":
        vars(own).update(DM_DDM.DM)
    statistics_read = DM_DDM.settle(own)
    matcher = prepare(data, own, DM_DDM.objective, statistics_read)
    return condensed(matcher, data, own, where)


def run(args: Namespace) -> None:
    args.method = "continual"
    key = {name: value for name, value in plain(args).items() if name not in FREE}
    with RunFiles(args) as files, Interrupts().installed() as interrupts, interrupts.anywhere():
        record = files.earlier("key", key)
        if record is None and (files.folder / "memory").exists():
            raise UserError(
                f"{files.shown} has memories, and no results.json that says whose: name another --save_path"
            )
        record = record or {"key": key, "accuracies": {}}
        data = datasets.load(args.dataset, args.data_path, args.res)
        if args.eval_split == "val":
            data = data.with_validation(rng.seed_of(args.seed, 0, 0, -1, "validation split"))
        if not 1 <= args.steps <= data.num_classes // 2:
            raise UserError(f"--steps {args.steps}: {data.name} has {data.num_classes} classes, two a step at least")
        images_per_class(data, args.ipc)
        empty_network(args.model, data.channel, data.num_classes, data.im_size, "meta")
        if args.compile == "auto":
            args.compile = "off"  # every step has shapes of its own, which would be compiled again
        speed.choose(args, 0)
        files.open_beside_no_run(again=bool(record["accuracies"]))
        record["num_classes"] = data.num_classes
        record |= {"asked": getattr(args, "asked", plain(args))}
        record |= {"command": sys.argv, "args": plain(args), "hardware": hardware(args.device), "versions": versions()}
        files.save_results(record)  # before any memory, so that whose memories these are is known
        files.say(f"{data.name}: {data.num_classes} classes in {args.steps} steps; {args.seeds} order(s)")
        for memory in args.memories:
            for seed in range(args.seeds):
                one_order(args, data, memory, seed, record, files)
        conclude(args, record, files)


def one_order(args: Namespace, data: ImageData, memory: str, seed: int, record: dict, files: RunFiles) -> None:
    """All steps of one order of the classes, or those that are left."""
    accs = record["accuracies"].setdefault(memory, {}).setdefault(str(seed), [])
    steps, images = class_steps(data.num_classes, args.steps, seed), []
    for step, classes in enumerate(steps):
        path = files.folder / "memory" / f"{memory}_seed{seed}_step{step}.pt"
        labels = torch.tensor(classes).repeat_interleave(args.ipc)
        if path.exists():
            own = kept_memory(path, labels)
        elif step < len(accs):
            raise UserError(f"{path} is gone: name another --save_path")
        else:
            own = make_memory(classes_of(data, data.name, classes).to(args.device), args, memory, seed, step).cpu()
            files.save_tensors(path, [own, labels])
        images.append(own)
        if step < len(accs):
            continue
        torch.compiler.reset()  # what was compiled for the shapes of another step is of no use, and there is a limit
        seen = [c for part in steps[: step + 1] for c in part]
        now = classes_of(data, data.name, seen).to(args.device)
        labels = torch.arange(len(seen), device=args.device).repeat_interleave(args.ipc)
        evaluator = training.Evaluator(now, args)
        whole = torch.cat(images).to(args.device)
        nets = range(args.num_eval)
        found = [evaluator.accuracy(args.model, whole, labels, seed, step, k, files.log) for k in nets]
        accs.append(statistics.fmean(found))
        files.say(f"{memory}, order {seed}, {len(seen)} classes: {training.describe(found)}")
        files.save_results(record)


def kept_memory(path: Path, labels: Tensor) -> Tensor:
    """The images [N, C, H, W] of an earlier step; raises UserError where the file is damaged or of other classes."""
    try:
        images, found = torch.load(path, map_location="cpu", weights_only=True)
        if len(images) == len(labels) and torch.equal(found, labels):
            return images
    except Exception as error:  # garbage raises whatever its damage hits
        raise UserError(f"{path} is damaged ({type(error).__name__}): delete it, or name another --save_path") from None
    raise UserError(f"{path} has {len(images)} images of other classes: name another --save_path")


FREE = {"save_path", "device", "data_path", "resume", "proxy_cache", "memory", "seeds", "class_chunk", "preset", "like"}


def conclude(args: Namespace, record: dict, files: RunFiles) -> None:
    """The table and the plot of the memories asked for."""
    by_memory = {name: [record["accuracies"][name][str(s)] for s in range(args.seeds)] for name in args.memories}
    classes = np.cumsum([len(part) for part in class_steps(record["num_classes"], args.steps, 0)]).tolist()
    rows = [["memory", *(f"{n} classes" for n in classes), "mean over steps", "n"], ["---"] * (len(classes) + 3)]
    for name, orders in by_memory.items():
        own = [[100 * acc for acc in column] for column in zip(*orders, strict=True)]
        means = [100 * statistics.fmean(order) for order in orders]
        cells = [f"{statistics.fmean(c):.2f} ± {statistics.pstdev(c):.2f}" for c in [*own, means]]
        rows.append([name, *cells, str(args.seeds)])
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    files.save_results(record)
    plot(by_memory, classes, files.folder / "curves.png")
    print(f"results {files.results_path}\nplot    {files.folder / 'curves.png'}")


def plot(by_memory: dict[str, list[list[float]]], classes: list[int], path: Path) -> None:
    """Accuracy over classes seen, a line a memory, with a band of one standard deviation over orders."""
    import matplotlib  # imported here: only the end needs it

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, orders in by_memory.items():
        accs = 100 * np.array(orders)
        mean, std = accs.mean(0), accs.std(0)
        axes.plot(classes, mean, "o-", label=f"{name} (n {len(orders)})")
        axes.fill_between(classes, mean - std, mean + std, alpha=0.2)
    axes.set(xlabel="classes seen", ylabel="accuracy on them, %", xticks=classes)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def settle(args: Namespace) -> None:
    args.memories = list(dict.fromkeys(args.memory.split(",")))
    for name in args.memories:
        lookup(dict.fromkeys(SELECTED + CONDENSED), name, "memory")
    for name, default in UNUSED.items():
        if getattr(args, name) != default:
            raise UserError(f"continual.py has no use for --{name}: leave it out")
    if not isinstance(args.ipc, int):
        raise UserError("continual.py takes a number as --ipc")
    flags.resolve(args)


# Flags of the recipes that have no meaning here, and their defaults.
UNUSED = {"num_exp": 5, "first_exp": 0, "eval_mode": "SS", "eval_every": None, "checkpoint_every": 200}
UNUSED |= {"resume": "auto", "tensorboard": False, "zca": False}  # whitening would look at classes to come


def make_parser() -> flags.Parser:
    parser = DM_DDM.make_parser()
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    for action in parser._actions:
        if action.dest in UNUSED:
            action.help = argparse.SUPPRESS
    parser.set_defaults(save_path="result_continual", num_eval=1, ipc=20)
    add = parser.method.add_argument
    add("--steps", type=flags.at_least(1), default=5, help="parts that the classes arrive in")
    add("--memory", default="ddm", metavar="NAMES", help=f"of {', '.join(SELECTED + CONDENSED)}; join with commas")
    add("--seeds", type=flags.at_least(1), default=5, help="orders of the classes, from seed 0")
    add("--proxy_epochs", type=flags.at_least(1), default=20, help="of herding and k-means: training of their network")
    add("--proxy_cache", type=flags.a_path, default=None, help="folder that keeps these networks")
    return parser


if __name__ == "__main__":
    flags.main(make_parser(), run, settle)
