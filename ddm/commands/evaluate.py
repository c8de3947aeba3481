"""`ddm evaluate`: evaluates saved sets on any networks."""

import dataclasses
import sys
from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import torch

from ddm import device, ranks
from ddm.augment import operations_of
from ddm.commands import evaluation_table
from ddm.commands.evaluation_table import MANNER, PROTOCOL
from ddm.commands.run_records import BASELINES, EVALUATION
from ddm.commands.settings import FOLLOWED, DDMSettings, EvaluateSettings
from ddm.data.checks import listed
from ddm.data.images import ImageData, Normalised
from ddm.data.loading import check_name, load_split, short_name
from ddm.device import TF32, Machine
from ddm.errors import UserError, lookup
from ddm.evaluation import plausibility, protocol, sets
from ddm.evaluation.sets import ORIGIN, Synset
from ddm.evaluation.settings import LAST, PEERS, ProtocolSettings
from ddm.methods.sampling import initial_indices
from ddm.networks import ARCHITECTURES, empty_network, untapped
from ddm.runs import cost
from ddm.runs.folder import set_stem
from ddm.runs.session import Session, locked_session
from ddm.settings import at_least, non_negative


class Row(NamedTuple):
    """A set to evaluate, and the experiment and iteration that seed its networks."""

    set: Synset
    experiment: int
    iteration: int
    whole: bool = False


# --eval_protocol -> defaults that replace the settings of the sets' runs; explicit flags override.
UNSET = {LAST: {}, PEERS: {"epochs": 2000, "lr_net": 0.001, "batch_train": 128}}


class Choice(NamedTuple):
    """The networks to train, and their training settings."""

    settings: EvaluateSettings  # with all values filled in
    models: list[str]
    baselines: list[str]
    lr_by: dict[str | None, float]  # by network; None: all others
    epochs_by: dict[str | None, int]
    origin: dict[str, int]  # ORIGIN of the first file with these arguments

    @property
    def peers(self) -> bool:
        return self.settings.eval_protocol == PEERS

    def protocol(self, model: str, whole: bool = False) -> ProtocolSettings:
        """The training settings of one network."""
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


def by_network(
    text: str, flag: str, models: list[str], check: Callable[[str], Any], default: Any
) -> dict[str | None, Any]:
    """'0.01' or 'ConvNet=0.01,0.02' as network -> number; the key None means all others. Raises UserError."""
    values = {None: default}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            values[name or None] = check(number)
        except UserError as error:
            raise UserError(f"--{flag} {text!r}: {error}") from None
        if name:
            lookup(ARCHITECTURES, name, f"model in --{flag}")
    unused = values.keys() - {None, *models}
    if unused:
        raise UserError(f"--{flag} names {sorted(unused)[0]}, which is none of the networks: {', '.join(models)}")
    return values


def settle(requested: EvaluateSettings) -> Choice:
    """Fill in the values recorded in the sets, and the networks. Raises UserError."""
    arguments = [sets.metadata(file).get("args", {}) for file in requested.files]
    unset = ["dataset"] if requested.dataset is None else []
    if requested.model is None and requested.eval_mode not in protocol.POOLS:
        unset.append("model")
    if requested.dsa_strategy is None:
        unset.append("dsa_strategy")
    for file, args in zip(requested.files, arguments, strict=True):
        sets.check_registered(file, args, *unset)
    data = data_of(requested, arguments)
    check_name(data["dataset"])
    followed = followed_values(requested, arguments)
    values = requested.values() | data
    values |= {name: value for name, value in followed.items() if values[name] is None}
    values["epochs"], values["lr_net"] = str(values["epochs"]), str(values["lr_net"])
    values["device"] = ranks.local_device(requested.device)
    if requested.compile is None and values["compile"] == "on":  # the set was made on another machine, perhaps
        problem = device.compiler_problem(values["device"])
        if problem:
            device.warn_uncompiled(problem)
            values["compile"] = "off"
    if requested.precision is None:
        values["precision"] = device.repeated(values["precision"], values["device"])
    settings = dataclasses.replace(requested, **values)
    operations_of(settings.dsa_strategy)
    if settings.eval_split == "val":
        check_held_out(settings, arguments)
    models = networks_of(requested, arguments)
    baselines = [name for name in requested.baselines.split(",") if name]
    for name in baselines:
        lookup(BASELINES, name, "baseline")
    lr_by = by_network(settings.lr_net, "lr_net", models, non_negative, followed["lr_net"])
    epochs_by = by_network(settings.epochs, "epochs", models, at_least(0), followed["epochs"])
    origin = {name: next((args[name] for args in arguments if name in args), 0) for name in ORIGIN}
    return Choice(settings, models, baselines, lr_by, epochs_by, origin)


def agreed(arguments: list[dict], name: str, default: Any) -> Any:
    """The value of an argument in all files that record it, or `default` if they differ or none does."""
    recorded = {args[name] for args in arguments if name in args}
    return next(iter(recorded)) if len(recorded) == 1 else default


def data_of(requested: EvaluateSettings, arguments: list[dict]) -> dict[str, Any]:
    """The settings of the data set that the files are of, unless --dataset is given. Raises UserError."""
    if requested.dataset is not None:
        return {"dataset": requested.dataset}
    names = {args["dataset"] for args in arguments if "dataset" in args}
    if len(names) != 1:
        problem = f"the files are of different data sets ({', '.join(sorted(names))})" if names else ""
        raise UserError(f"{problem or 'no file says which data set it is of'}: give --dataset")
    res = requested.res or next((args["res"] for args in arguments if args.get("res")), None)
    return {"dataset": names.pop(), "res": res, "zca": requested.zca or any(args.get("zca") for args in arguments)}


def followed_values(requested: EvaluateSettings, arguments: list[dict]) -> dict[str, Any]:
    """The values of settings that are unset: those of the sets' runs, if all agree. Prints a note if they do not."""
    defaults, values = DDMSettings().values(), {}
    for name, theirs in FOLLOWED.items():
        value = UNSET[requested.eval_protocol].get(name, agreed(arguments, theirs, defaults[theirs]))
        recorded = {args[theirs] for args in arguments if theirs in args}
        if len(recorded) > 1 and requested.values()[name] is None:
            shown = ", ".join(map(str, sorted(recorded, key=str)))
            used = "what the machine is fast at" if value is None else value
            print(f"note: the files were made with different --{name} ({shown}): using {used}", file=sys.stderr)
        values[name] = value
    without = [file for file, args in zip(requested.files, arguments, strict=True) if "epoch_eval_train" not in args]
    followed = [name for name in ("epochs", "lr_net") if requested.values()[name] is None]
    followed = [name for name in followed if len({args.get(FOLLOWED[name]) for args in arguments} - {None}) == 1]
    if without and followed and requested.eval_protocol == LAST:
        shown = ", ".join(f"--{name} {values[name]}" for name in followed)
        print(
            f"note: {listed(without)}: without a record, evaluated with the settings of the other files ({shown})",
            file=sys.stderr,
        )
    return values


def networks_of(requested: EvaluateSettings, arguments: list[dict]) -> list[str]:
    """The networks of --model or --eval_mode, else the network that a set was made with. Raises UserError."""
    default = untapped(next((a["model"] for a in arguments if "model" in a), "ConvNet"))
    models = [default]
    if requested.model is not None:
        models = requested.model.split(",")
    elif requested.eval_mode is not None:
        lookup(dict.fromkeys(protocol.EVAL_MODES), requested.eval_mode, "eval_mode")
        models = protocol.get_eval_pool(requested.eval_mode, default)
    for model in models:
        lookup(ARCHITECTURES, model, "model")
    return list(dict.fromkeys(models))


def check_held_out(settings: EvaluateSettings, arguments: list[dict]) -> None:
    """Raise UserError if a set was made from the held-out images; print a note if this is unknown."""
    for file, args in zip(settings.files, arguments, strict=True):
        if not {"eval_split", "seed"} <= args.keys():
            print(
                f"note: --eval_split val: {file} does not say whether it was made without the held-out tenth",
                file=sys.stderr,
            )
        elif args["eval_split"] != "val":
            raise UserError(
                f"--eval_split val: {file} was made from all training images, also the held-out ones: use --eval_split "
                "test"
            )
        elif args["seed"] != settings.seed:
            raise UserError(
                f"--eval_split val: {file} was made with --seed {args['seed']}, which holds out another tenth than "
                f"--seed {settings.seed}: evaluate files of one seed, with that seed"
            )


def rows_of(choice: Choice, data: ImageData) -> tuple[list[Row], list[str]]:
    """All sets to evaluate, then the baselines; and the notes and warnings about the files, which are printed.

    The networks of the first file with a record evaluate all sets of equal experiments, so that these are pairs. Raises
    UserError for unreadable files.
    """
    s, rows, notes, iteration = choice.settings, [], [], choice.origin["Iteration"]
    for file in s.files:
        args = sets.metadata(file).get("args", {})
        synsets, found = sets.read(file, data, s.space, s.experiments)
        if args.get("Iteration", iteration) != iteration:
            found.append(
                f"note: {file}: not the networks of its run evaluate it, but those of another file, for equal networks"
            )
        notes += found
        first = args.get("first_exp", choice.origin["first_exp"])
        number = 0 if s.experiments == "all" else int(s.experiments)
        rows += [Row(synset, first + number + k, iteration) for k, synset in enumerate(synsets)]
    if "random" in choice.baselines:
        held = rows[0].set.factor ** 2  # as many pixels as the stored images
        counts = [n // held for n in torch.bincount(rows[0].set.labels, minlength=data.num_classes).tolist()]
        indices = initial_indices(data, counts, s.seed, rows[0].experiment)
        synset = Synset(BASELINES["random"], data.batch(indices).cpu(), data.y_train.cpu()[indices])
        rows.append(Row(synset, rows[0].experiment, iteration))
    if "whole" in choice.baselines:
        synset = Synset(BASELINES["whole"], Normalised(data, data.x_train), data.y_train)
        rows.append(Row(synset, rows[0].experiment, iteration, whole=True))
    for note in notes:
        print(note, file=sys.stderr)
    return rows, notes


def run(requested: EvaluateSettings) -> None:
    """Evaluate the sets. Raises UserError for invalid settings, data or files."""
    choice = settle(requested)
    settings, models = choice.settings, choice.models
    stem = set_stem("evaluate", short_name(settings.dataset), models[0], 0, settings.zca)
    with locked_session(settings, stem) as session:
        s = settings
        data, digest = load_split(s)
        data = data.to(settings.device)
        for model in models:
            empty_network(model, data.channel, data.num_classes, data.im_size, "meta")
        rows, notes = rows_of(choice, data)
        earlier = session.record_of(EVALUATION)
        evaluations = earlier.get("evaluations", []) if earlier else []
        for entry in evaluations:
            entry.setdefault("eval_protocol", LAST)  # written by version 0.3.0 or earlier
            if entry.get("precision") is None:  # by version 0.6.0 or earlier
                line = entry.get("protocol", "")
                entry["precision"] = next((name for name in TF32 if f", {name}, " in line), None)
        pixels = 3 * 1000 * data.im_size[0] * data.im_size[1]  # of an image in about 1,000 epochs, forward and backward
        machine = device.choose(settings, s.device, pixels * max(len(row.set.images) for row in rows if not row.whole))
        whole_machine = machine
        if rows[-1].whole:  # it must not change the precision of the other rows
            same = settings.but(precision=machine.precision)
            whole_machine = device.choose(same, s.device, pixels * len(data.x_train))
        lines = {model: protocol.protocol(choice.protocol(model), machine, data, choice.peers) for model in models}
        session.open(machine, requested, printed=data.warning_lines + notes, evaluations=evaluations)
        for line in dict.fromkeys(lines.values()):
            of = [model for model in models if lines[model] == line]
            which = f" on {', '.join(of)}" if len(of) < len(models) else ""
            print(f"evaluation{which}: {line}")
        parts = [(model, row, key(choice, digest, row, model, machine)) for model in models for row in rows]
        done = [len((find(evaluations, where) or {"accuracies": ()})["accuracies"]) for *_, where in parts]
        meter = cost.Meter(sum(max(0, s.num_eval - n) for n in done), "networks")
        for (model, whole), group in groupby(parts, lambda part: (part[0], part[1].whole)):
            chosen = whole_machine if whole else machine
            evaluator = protocol.Evaluator(data, choice.protocol(model, whole), chosen, choice.peers)
            for _, row, where in group:
                score(evaluator, row, model, session, where, meter)
        caption = "Accuracy in %: mean ± population standard deviation (n networks)."
        session.save_tables(evaluation_table.tables(evaluations), caption)
        print(f"results {session.files.results_path}")


def key(choice: Choice, data_digest: str, row: Row, model: str, machine: Machine) -> dict:
    """The set, network, settings and data of a measurement. It extends an earlier measurement with the same key."""
    s, settings = choice.settings, choice.protocol(model, row.whole)
    where = {"set": row.set.name, "experiment": row.experiment, "iteration": row.iteration, "model": model}
    where |= {name: value for name, value in settings.values().items() if name in PROTOCOL}
    where |= {name: value for name, value in s.values().items() if name in MANNER} | {"precision": machine.precision}
    digest = data_digest if row.whole else sets.digest(row.set.images, row.set.labels)
    return where | {"dataset": s.dataset, "data": data_digest, "digest": digest}


def find(evaluations: list[dict], where: dict) -> dict | None:
    """The record of an earlier measurement with a key."""
    return next((entry for entry in evaluations if where.items() <= entry.items()), None)


def score(
    evaluator: protocol.Evaluator, row: Row, model: str, session: Session, where: dict, meter: cost.Meter
) -> None:
    """Train and test the remaining networks of one architecture on a set; save after those trained together.

    An earlier measurement with the key `where` is extended.
    """
    evaluations, data = session.record["evaluations"], evaluator.data
    entry = find(evaluations, where)
    if entry is None:
        line = protocol.protocol(evaluator.settings, evaluator.machine, data, evaluator.peers)
        entry = {**where, "file": row.set.file, "protocol": line, "accuracies": [], "curves": []}
        evaluations.append(entry)
    while left := range(len(entry["accuracies"]), evaluator.settings.num_eval):
        training_set = protocol.TrainingSet(row.set.images, row.set.labels, row.experiment, row.iteration)
        numbers = left[: evaluator.at_once(model, len(training_set.labels), len(left))]
        trained = evaluator.trained(model, training_set, numbers, session.files.log)
        entry["curves"] += [[[round(x, 5) for x in point] for point in one.curve] for one in trained]
        protocol.record(entry, trained)
        session.save()
        line = meter.done(len(numbers))
        if line:
            session.files.say(line)
    session.files.say(f"{row.set.name}, {model}: {protocol.describe(entry['accuracies'])}")
    warning = plausibility.at_chance(entry["accuracies"], data)
    if warning:
        session.files.warn(f"{row.set.name}, {model}: {warning}")
