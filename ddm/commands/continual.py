"""`ddm continual`: class-incremental learning from a condensed memory."""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddm import device, drawing
from ddm.commands.condense import DDM, print_preset
from ddm.commands.settings import ContinualSettings
from ddm.data.checks import listed
from ddm.data.images import ImageData
from ddm.data.loading import classes_of, load_split, short_name
from ddm.device import Machine
from ddm.errors import UserError, lookup
from ddm.evaluation import protocol
from ddm.methods import coreset, objective, plan
from ddm.methods.condensation import Condensation, condensed
from ddm.methods.settings import DM, PLAIN
from ddm.networks import empty_network
from ddm.runs.folder import set_stem
from ddm.runs.session import Session, locked_session

SELECTED = ("random", "herding", "kmeans")
# Name of a condensed memory -> the settings that it changes; those of ddm are the flags.
CONDENSED = {"ddm": {}} | {
    name: PLAIN | values for name, values in ContinualSettings.PRESETS.items() if values.keys() >= DM.keys()
}


def class_steps(num_classes: int, steps: int, seed: int) -> list[list[int]]:
    """The classes of each step: numpy's seeded permutation in `steps` parts; sizes differ by at most one."""
    order = np.random.RandomState(seed).permutation(num_classes)
    return [part.tolist() for part in np.array_split(order, steps)]


def make_memory(
    data: ImageData,
    settings: ContinualSettings,
    machine: Machine,
    memory: str,
    seed: int,
    step: int,
    say: Callable[[str], None],
) -> Tensor:
    """Decoded images [N, C, H, W] for a step's classes; `data` has only these classes and is on the CPU."""
    settings = settings.but(seed=settings.seed + seed)
    if memory in SELECTED:
        counts, data = tuple(plan.images_per_class(data, settings.ipc)), data.to(machine.device)
        proxy = coreset.proxy(data, settings, machine, memory) if coreset.needs_proxy(memory) else None
        return data.batch(coreset.select(data, memory, counts, settings.seed, step, proxy))
    settings = condensing(settings, memory, data).but(precision=machine.precision, compile=machine.compile)
    maker = Condensation(data, settings, DDM.objective, DDM.needed(settings), say=say)
    maker.prepare()
    return maker.training_set(step, condensed(maker, step))[0]


def condensing(settings: ContinualSettings, memory: str, data: ImageData) -> ContinualSettings:
    """The settings of a condensed memory: those of its preset override the flags. Raises UserError."""
    settings = plan.settle(settings.but(**CONDENSED[memory]))
    return objective.settle(plan.with_factor(settings, data))


def run(requested: ContinualSettings) -> None:
    """Make and test the memories of all orders and steps. Raises UserError for invalid settings, data or files."""
    memories = list(dict.fromkeys(requested.memory.split(",")))
    for name in memories:
        lookup(dict.fromkeys((*SELECTED, *CONDENSED)), name, "memory")
    if requested.zca or requested.eval_mode != "SS":  # whitening would use later classes; only one network is tested
        raise UserError(f"continual does not support --{'zca' if requested.zca else 'eval_mode'}: leave it out")
    settings = plan.settle(requested)
    settings.but(seed=settings.seed + settings.seeds - 1)  # raises UserError if the last order's is too large
    print_preset(objective.settle(settings) if "ddm" in memories else settings)
    stem = set_stem("continual", short_name(settings.dataset), settings.model, settings.ipc)
    with locked_session(settings, stem) as session:
        s = settings
        data, digest = load_split(s)
        earlier = session.earlier(data=digest)
        if earlier is None and (session.files.folder / "memory").exists():
            raise UserError(
                f"{session.files.shown} has memories but no results.json that describes them: name another --save_path"
            )
        accs = earlier["accuracies"] if earlier else {}
        if not 1 <= s.steps <= data.num_classes // 2:
            raise UserError(f"--steps {s.steps}: {data.name} has {data.num_classes} classes, at least two per step")
        tested = set(data.y_test.tolist())
        for seed in range(s.seeds):
            for step, classes in enumerate(class_steps(data.num_classes, s.steps, seed)):
                if not tested.intersection(classes):
                    names = listed([data.class_names[c] for c in classes])
                    raise UserError(f"{data.name} has no test images of {names}: order {seed}, step {step}")
        plan.images_per_class(data, s.ipc)
        empty_network(s.model, data.channel, data.num_classes, data.im_size, "meta")
        described = dict(earlier.get("memories", {})) if earlier else {}
        for memory in (name for name in memories if name in CONDENSED):  # before hours of work
            made = condensing(s, memory, data)
            plan.images_per_class(data, s.ipc, made.factor**2)
            plan.tapped_network(made.but(device="meta"), data, DDM.needed(made))
            described[memory] = {name: x for name, x in made.values().items() if x != s.values()[name]}
            if memory != "ddm":
                print_preset(made.but(preset=memory))
        # Every step has new shapes and would be compiled again. So auto means off.
        chosen = s.but(compile="off") if s.compile == "auto" else s
        before = earlier["args"].get("precision") if earlier else None
        machine = device.choose(chosen.but(precision=s.precision or before), s.device, 0)
        if before and machine.precision != before:
            lacks = f"earlier memories were evaluated in {before}, which this device lacks"
            print(f"warning: {lacks}: now {machine.precision}", file=sys.stderr)
        line = f"{protocol.protocol(s, machine, data)}, of the classes seen"
        content = {"protocol": line, "num_classes": data.num_classes, "accuracies": accs, "memories": described}
        session.open(machine, requested, printed=data.warning_lines, **content)
        session.save()  # before any memory, as results.json describes the memories
        session.files.say(f"{data.name}: {data.num_classes} classes in {s.steps} steps; {s.seeds} order(s)")
        for memory in memories:
            for seed in range(s.seeds):
                one_order(session, data, settings, machine, memory, seed)
        conclude(session, settings, memories)


def one_order(
    session: Session, data: ImageData, settings: ContinualSettings, machine: Machine, memory: str, seed: int
) -> None:
    """Run the remaining steps of one class order."""
    files = session.files
    accs = session.record["accuracies"].setdefault(memory, {}).setdefault(str(seed), [])
    steps, images = class_steps(data.num_classes, settings.steps, seed), []
    if len(accs) == len(steps):
        return
    factor = condensing(settings, memory, data).factor if memory in CONDENSED else 1
    each = settings.ipc * factor**2  # images of each class
    for step, classes in enumerate(steps):
        path = files.folder / "memory" / f"{memory}_seed{seed}_step{step}.pt"
        labels = torch.tensor(classes).repeat_interleave(each)
        if path.exists():
            new = saved_memory(path, labels)
        elif step < len(accs):
            raise UserError(f"{path} is missing: name another --save_path")
        else:
            part = classes_of(data, data.name, classes)
            where = f"{memory}, order {seed}, step {step}"
            try:
                new = make_memory(part, settings, machine, memory, seed, step, files.say).cpu()
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            files.replace(path, lambda file, content=(new, labels): torch.save(list(content), file))
        images.append(new)
        if step < len(accs):
            continue
        torch.compiler.reset()  # graphs for the shapes of earlier steps are useless, and their number is limited
        seen = [c for part in steps[: step + 1] for c in part]
        now = classes_of(data, data.name, seen).to(machine.device)
        labels = torch.arange(len(seen), device=machine.device).repeat_interleave(each)
        evaluator = protocol.Evaluator(now, settings, machine)
        training_set = protocol.TrainingSet(torch.cat(images).to(machine.device), labels, seed, step)
        trained = evaluator.trained(settings.model, training_set, range(settings.num_eval), files.log)
        by_net = [one.accuracy for one in trained]
        accs.append(statistics.fmean(by_net))
        files.say(f"{memory}, order {seed}, {len(seen)} classes: {protocol.describe(by_net)}")
        session.save()


def saved_memory(path: Path, labels: Tensor) -> Tensor:
    """The images [N, C, H, W] of an earlier step; raises UserError if the file is damaged or has other classes."""
    try:
        images, saved_labels = torch.load(path, map_location="cpu", weights_only=True)
        if len(images) == len(labels) and torch.equal(saved_labels, labels):
            return images
    except Exception as error:  # damaged files raise many kinds of errors
        raise UserError(f"{path} is damaged ({type(error).__name__}): delete it, or name another --save_path") from None
    raise UserError(f"{path} has {len(images)} images of other classes: name another --save_path")


def conclude(session: Session, settings: ContinualSettings, memories: list[str]) -> None:
    """Print and write the table, and write the plot, of the requested memories."""
    files, record = session.files, session.record
    accuracies, orders = record["accuracies"], range(settings.seeds)
    percent = {name: 100 * np.array([accuracies[name][str(seed)] for seed in orders]) for name in memories}
    classes = np.cumsum([len(part) for part in class_steps(record["num_classes"], settings.steps, 0)]).tolist()
    first = memories[0]
    minus = [f"minus {first}", "95 % interval"] if len(memories) > 1 else []
    rows = [["memory", *(f"{n} classes" for n in classes), "mean over steps", "n", *minus]]
    for name, accs in percent.items():  # [orders, steps]
        cells = [drawing.mean_std(column.mean(), column.std(), len(column)) for column in (*accs.T, accs.mean(1))]
        cells.append(str(settings.seeds))
        if minus:
            differences = (accs - percent[first]).mean(1).tolist()  # pairs are orders
            half = protocol.interval(differences)
            pair = [f"{statistics.fmean(differences):+.2f}", "" if half is None else f"± {half:.2f}"]
            cells += ["", ""] if name == first else pair
        rows.append([name, *cells])
    session.save_tables(
        [rows], "Accuracy in % on the classes seen: mean ± population standard deviation over n class orders."
    )
    path = files.folder / "curves.png"
    with drawing.axes(7, 4.5) as (figure, axes):
        for name, accs in percent.items():
            drawing.banded(axes, classes, accs.T.tolist(), f"{name} (n {settings.seeds})")
        axes.set(xlabel="classes seen", ylabel="accuracy on the classes seen, %", xticks=classes)
        axes.legend()
        drawing.save_figure(figure, path, "--save_path")
    print(f"results {files.results_path}\nplot    {path}")
