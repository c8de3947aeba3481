"""`ddm evaluate`: scores saved sets on any networks."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ddm import device, drawing, ranks
from ddm.augment import operations_of
from ddm.commands.settings import DDMSettings, EvaluateSettings
from ddm.data.images import ImageData, Normalised
from ddm.data.loading import check_name, load_split, short_name
from ddm.device import Machine
from ddm.errors import UserError, lookup
from ddm.evaluation import protocol, sets
from ddm.evaluation.sets import Synset
from ddm.evaluation.settings import ProtocolSettings
from ddm.methods.sampling import initial_indices
from ddm.networks import ARCHITECTURES, empty_network, untapped
from ddm.runs.folder import set_stem
from ddm.runs.session import Session, session
from ddm.settings import at_least, declarations, non_negative

BASELINES = {"random": "random real images", "whole": "whole training set"}  # flag -> name in tables

# What determines the networks that scored a set in its run. A file that does not say follows those beside it that do,
# so that an export is scored by the networks that score the set itself.
ORIGIN = ("first_exp", "Iteration")


class Row(NamedTuple):
    """What is scored: a set, and which run's networks score it."""

    set: Synset
    experiment: int
    iteration: int
    whole: bool = False


class Choice(NamedTuple):
    """Which networks are trained, and how."""

    settings: EvaluateSettings  # with every value filled in
    models: list[str]
    baselines: list[str]
    lr_by: dict[str | None, float]  # by network; None: all others
    epochs_by: dict[str | None, int]
    origin: dict[str, int]  # of files that do not say

    def protocol(self, model: str, whole: bool = False) -> ProtocolSettings:
        """How one network is trained."""
        s = self.settings
        epochs = s.whole_epochs if whole else self.epochs_by.get(model, self.epochs_by[None])
        return ProtocolSettings(
            model=model,
            epoch_eval_train=epochs,
            lr_net=self.lr_by.get(model, self.lr_by[None]),
            num_eval=s.num_eval,
            batch_train=s.batch_train,
            dsa_strategy=s.dsa_strategy,
            eval_split=s.eval_split,
            seed=s.seed,
        )


def by_network(text: str, flag: str, check: Callable[[str], Any], default: Any) -> dict[str | None, Any]:
    """'0.01' or 'ConvNet=0.01,0.02' as network -> number; None stands for all others."""
    found = {None: default}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            found[name or None] = check(number)
        except UserError as error:
            raise UserError(f"--{flag} {text!r}: {error}") from None
        if name:
            lookup(ARCHITECTURES, name, f"model in --{flag}")
    return found


def settle(asked: EvaluateSettings) -> Choice:
    """Fill in what the sets say, and the networks to score on. Raises UserError."""
    told = [sets.metadata(file).get("args", {}) for file in asked.files]
    values = asked.values()
    if asked.dataset is None:
        names = {a["dataset"] for a in told if "dataset" in a}
        if len(names) != 1:
            raise UserError("the files do not say which data set they are of, or name different ones: give --dataset")
        values["dataset"] = names.pop()
        values["res"] = asked.res or next((a["res"] for a in told if a.get("res")), None)
        values["zca"] = asked.zca or any(a.get("zca") for a in told)
    check_name(values["dataset"])
    followed = {}
    defaults = DDMSettings().values()
    for name, theirs in followed_by(EvaluateSettings).items():
        default, found = defaults[theirs], {a[theirs] for a in told if theirs in a}
        if len(found) > 1 and values[name] is None:
            shown = ", ".join(map(str, sorted(found, key=str)))
            print(f"note: the files were made with different --{name} ({shown}): {default} is used", file=sys.stderr)
        followed[name] = found.pop() if len(found) == 1 else default
        if values[name] is None:
            values[name] = followed[name]
    origin = {}
    for name in ORIGIN:
        found = {a[name] for a in told if name in a}
        origin[name] = found.pop() if len(found) == 1 else 0
    values["epochs"], values["lr_net"] = str(values["epochs"]), str(values["lr_net"])
    values["device"] = ranks.local_device(device.find_device(asked.device))
    settings = dataclasses.replace(asked, **values)
    operations_of(settings.dsa_strategy)
    if settings.eval_split == "val":
        check_held_out(settings, told)
    models = networks_of(asked, told)
    baselines = [name for name in asked.baselines.split(",") if name]
    for name in baselines:
        lookup(BASELINES, name, "baseline")
    lr_by = by_network(settings.lr_net, "lr_net", non_negative, followed["lr_net"])
    epochs_by = by_network(settings.epochs, "epochs", at_least(0), followed["epochs"])
    for flag, by in (("lr_net", lr_by), ("epochs", epochs_by)):
        unused = by.keys() - {None, *models}
        if unused:
            raise UserError(f"--{flag} names {sorted(unused)[0]}, which is none of the networks {', '.join(models)}")
    return Choice(settings, models, baselines, lr_by, epochs_by, origin)


def followed_by(cls: type[EvaluateSettings]) -> dict[str, str]:
    """Setting -> the argument of a run that it follows, if all sets that have one agree."""
    return {name: own.follows for name, own in declarations(cls).items() if own.follows}


def networks_of(asked: EvaluateSettings, told: list[dict]) -> list[str]:
    """The networks to score on: --model, --eval_mode, or the one that a set was made with."""
    own = untapped(next((a["model"] for a in told if "model" in a), "ConvNet"))
    models = [own]
    if asked.model is not None:
        models = asked.model.split(",")
    elif asked.eval_mode is not None:
        lookup(dict.fromkeys(protocol.EVAL_MODES), asked.eval_mode, "eval_mode")
        models = protocol.get_eval_pool(asked.eval_mode, own)
    for model in models:
        lookup(ARCHITECTURES, model, "model")
    return list(dict.fromkeys(models))


def check_held_out(settings: EvaluateSettings, told: list[dict]) -> None:
    """Raise UserError where a set was made from images that would score it; a note where a file does not say."""
    for file, own in zip(settings.files, told, strict=True):
        if not {"eval_split", "seed"} <= own.keys():
            print(
                f"note: --eval_split val: {file} does not say whether it was made without that tenth", file=sys.stderr
            )
        elif own["eval_split"] != "val":
            raise UserError(f"--eval_split val: {file} was made from all training images, those held out here too")
        elif own["seed"] != settings.seed:
            raise UserError(
                f"--eval_split val: {file} was made with --seed {own['seed']}, which holds out another tenth than "
                f"--seed {settings.seed}: score files of one seed, with that seed"
            )


def rows_of(choice: Choice, data: ImageData) -> list[Row]:
    """Every set to score, then the baselines."""
    s, rows = choice.settings, []
    for file in s.files:
        own = sets.metadata(file).get("args", {})
        found, notes = sets.read(file, data, s.space, s.experiments)
        for note in notes:
            print(note if note.startswith("warning") else f"note: {file}: {note}", file=sys.stderr)
        first, iteration = (own.get(name, choice.origin[name]) for name in ORIGIN)
        number = 0 if s.experiments == "all" else int(s.experiments)
        rows += [Row(one, first + number + k, iteration) for k, one in enumerate(found)]
    if "random" in choice.baselines:
        counts = torch.bincount(rows[0].set.labels, minlength=data.num_classes).tolist()
        own = initial_indices(data, counts, s.seed, 0)
        rows.append(Row(Synset(BASELINES["random"], data.batch(own).cpu(), data.y_train.cpu()[own]), 0, 0))
    if "whole" in choice.baselines:
        rows.append(Row(Synset(BASELINES["whole"], Normalised(data, data.x_train), data.y_train), 0, 0, whole=True))
    return rows


def run(asked: EvaluateSettings) -> None:
    """Score the sets. Raises UserError for what the user can correct."""
    choice = settle(asked)
    settings, models = choice.settings, choice.models
    stem = set_stem("evaluate", short_name(settings.dataset), models[0], 0, settings.zca)
    with session(settings, stem) as own:
        s = settings
        data, digest = load_split(s.dataset, s.data_path, s.res, s.eval_split, s.zca, s.seed)
        data = data.to(settings.device)
        for model in models:
            empty_network(model, data.channel, data.num_classes, data.im_size, "meta")
        rows = rows_of(choice, data)
        digests = [sets.digest(row.set) for row in rows if row.set.name not in BASELINES.values()]
        earlier = own.earlier(data=digest, sets=digests)
        evaluations = earlier["evaluations"] if earlier else []
        images = max(len(row.set.images) for row in rows)
        machine = device.choose(settings, s.device, 3 * images * 1000 * data.im_size[0] * data.im_size[1])
        lines = {model: protocol.protocol(choice.protocol(model), machine, data) for model in models}
        own.open(machine, asked, again=bool(evaluations), protocol=lines, evaluations=evaluations)
        for line in dict.fromkeys(lines.values()):
            of = [model for model in models if lines[model] == line]
            which = f" on {', '.join(of)}" if len(of) < len(models) else ""
            print(f"evaluation{which}: {line}")
        for model in models:
            for row in rows:
                score(choice, data, machine, row, model, own)
        text = table(rows, models, evaluations)
        print(text)
        own.files.replace(own.files.folder / "table.md", text + "\n")
        print(f"results {own.files.results_path}")


def score(choice: Choice, data: ImageData, machine: Machine, row: Row, model: str, own: Session) -> None:
    """Train and test the networks of one architecture that have not scored a set yet; each is kept at once."""
    where = {"set": row.set.name, "experiment": row.experiment, "model": model}
    evaluations = own.record["evaluations"]
    entry = next((entry for entry in evaluations if where.items() <= entry.items()), None)
    if entry is None:
        entry = {**where, "accuracies": [], "curves": []}
        evaluations.append(entry)
    evaluator = None
    for it_eval in range(len(entry["accuracies"]), choice.settings.num_eval):
        evaluator = evaluator or protocol.Evaluator(data, choice.protocol(model, row.whole), machine)
        curve: list[list[float]] = []
        at = (row.experiment, row.iteration, it_eval)
        accuracy = evaluator.accuracy(model, row.set.images, row.set.labels, *at, own.files.log, curve)
        entry["accuracies"].append(accuracy)
        entry["curves"].append([[round(x, 5) for x in point] for point in curve])
        entry.update(protocol.summary(entry["accuracies"]))
        own.save()
    own.files.say(f"{row.set.name}, {model}: {protocol.describe(entry['accuracies'])}")


def table(rows: list[Row], models: list[str], evaluations: list[dict]) -> str:
    """Markdown: one row per set, one column per network, in %."""
    lines = [["set", *models]]
    for row in rows:
        cells = []
        for model in models:
            where = {"set": row.set.name, "experiment": row.experiment, "model": model}
            entry = next(entry for entry in evaluations if where.items() <= entry.items())
            cells.append(f"{100 * entry['mean']:.2f} ± {100 * entry['std']:.2f} (n {entry['n']})")
        lines.append([row.set.name, *cells])
    return drawing.markdown(lines)
