"""Score saved sets on networks of one's choice.

    python evaluate.py result/res_DM_CIFAR10_ConvNet_10ipc.pt --model ConvNet,AlexNet,VGG11,ResNet18 --num_eval 5

Files may be ours, of the DC/DSA/DM family ({'data': [[images, labels], ...]}), a pair [images, labels], an .npz with
x_train and y_train, .safetensors, or a folder of class folders with pictures. Prints a table, a row a set and a column
a network, with mean, (population) standard deviation and n, and writes it with every accuracy and learning curve into
--save_path. Stopped, the same command goes on. A set of ours is scored by the networks that its run would have scored
it with, trained as they were (epochs, learning rate, seed, ... unless flags say others), so that its own number comes
out again.
"""

import copy
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from typing import NamedTuple

import torch

from ddm.data import data as datasets
from ddm import flags
from ddm import rng
from ddm import speed
from ddm.evaluation import synsets
from ddm.evaluation import training
from ddm.data.data import ImageData, Normalised
from ddm.errors import UserError, lookup
from ddm.runs.files import RunFiles, hardware, plain, versions
from ddm.interrupt import Interrupts
from ddm.networks import ARCHITECTURES, empty_network, untapped
from ddm.methods.sampling import initial_indices
from ddm.evaluation.synsets import Synset

BASELINES = ("random", "whole")
BASELINE_NAMES = ("random real images", "whole training set")  # in tables


# Flag -> the argument of a run that it follows, where all sets that say one say the same, and its value otherwise.
PROTOCOL = {
    "epochs": ("epoch_eval_train", 1000),
    "lr_net": ("lr_net", 0.01),
    "batch_train": ("batch_train", 256),
    "seed": ("seed", 0),
    "dsa_strategy": ("dsa_strategy", "color_crop_cutout_flip_scale_rotate"),
    "precision": ("precision", None),
    "compile": ("compile", "auto"),
    "eval_split": ("eval_split", "test"),
}


# What says which networks scored a set in its run. A file that does not say follows those beside it that do, so that
# an export is scored by the networks that score the set itself.
ORIGIN = ("first_exp", "Iteration")


class Row(NamedTuple):
    """What is scored: a set, and which run's networks score it."""

    set: Synset
    experiment: int
    iteration: int
    whole: bool = False


def make_parser() -> flags.Parser:
    parser = flags.Parser(__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", metavar="FILE", help="a saved set, or a folder of pictures")
    flags.add_data_flags(parser, dataset=None)
    flags.add_machine_flags(parser)
    flags.add_evaluation_flags(parser, num_eval=5)
    flags.add_like_flag(parser)
    add = parser.data.add_argument
    add(
        "--space",
        choices=synsets.SPACES,
        default="auto",
        help="of the pixels, where a file does not say: " + SPACES_HELP,
    )
    add("--experiments", default="all", help="which of the sets in a file: all, or a number from 0")
    text = "random: as many random real images; whole: the whole training set; joined by commas"
    add("--baselines", default="", metavar="NAMES", help=text)
    add = parser.evaluation.add_argument
    add = parser.evaluation.add_mutually_exclusive_group().add_argument
    add("--model", default=None, help="networks, joined by commas; unset: the one that a set was made with, or ConvNet")
    add(
        "--eval_mode",
        default=None,
        help=f"networks by their mode, in the place of --model: {', '.join(training.EVAL_MODES)}",
    )
    add = parser.evaluation.add_argument
    text = "E: epochs 0 .. E are trained; a number, or NETWORK=NUMBER joined by commas"
    add("--epochs", "--epoch_eval_train", dest="epochs", default=None, help=text)
    add("--whole_epochs", type=flags.at_least(0), default=20, help="E of --baselines whole")
    add("--lr_net", default=None, help="learning rate; a number, or NETWORK=NUMBER joined by commas")
    parser.set_defaults(**dict.fromkeys(PROTOCOL))
    parser.output.add_argument(
        "--save_path", type=flags.a_path, default="result_evaluate", help="folder for the results"
    )
    return parser


SPACES_HELP = "as networks see them, in [0, 1], or in 0 .. 255; auto looks at them"


def by_network(text: str, flag: str, kind, default) -> dict[str | None, float]:
    """'0.01' or 'ConvNet=0.01,0.02' as network -> number; None stands for all others."""
    found = {None: default}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            found[name or None] = kind(number)
        except (ValueError, flags.argparse.ArgumentTypeError) as error:
            raise UserError(f"--{flag} {text!r}: {error}") from None
        if name:
            lookup(ARCHITECTURES, name, f"model in --{flag}")
    return found


def settle(args: Namespace) -> None:
    """Fill in what the sets say of themselves, and the networks to score on."""
    said = [synsets.about(file).get("args", {}) for file in args.files]
    args.origin = {}
    if args.dataset is None:
        names = {a["dataset"] for a in said if "dataset" in a}
        if len(names) != 1:
            raise UserError("the files do not say which data set they are of, or say different ones: say --dataset")
        args.dataset = names.pop()
        args.res = args.res or next((a["res"] for a in said if a.get("res")), None)
        args.zca = args.zca or any(a.get("zca") for a in said)
    followed = {}
    for name, (theirs, otherwise) in PROTOCOL.items():
        values = {a[theirs] for a in said if theirs in a}
        if len(values) > 1 and getattr(args, name) is None:
            shown = ", ".join(map(str, sorted(values, key=str)))
            print(f"note: the files were made with different --{name} ({shown}): {otherwise} is taken", file=sys.stderr)
        followed[name] = values.pop() if len(values) == 1 else otherwise
        if getattr(args, name) is None:
            setattr(args, name, followed[name])
    for name in ORIGIN:
        values = {a[name] for a in said if name in a}
        args.origin[name] = values.pop() if len(values) == 1 else 0
    if args.eval_split == "val":
        check_held_out(args, said)
    wanted = args.model
    args.model = untapped(next((a["model"] for a in said if "model" in a), "ConvNet"))
    models = [args.model]
    if wanted is not None:
        models = wanted.split(",")
    elif args.eval_mode is not None:
        lookup(dict.fromkeys(training.EVAL_MODES), args.eval_mode, "eval_mode")
        models = training.get_eval_pool(args.eval_mode, args.model)
    for model in models:
        lookup(ARCHITECTURES, model, "model")
    args.eval_mode = "SS"
    args.baselines = [name for name in args.baselines.split(",") if name]
    for name in args.baselines:
        lookup(dict.fromkeys(BASELINES), name, "baseline")
    args.lr_net, args.epochs = str(args.lr_net), str(args.epochs)
    args.models = list(dict.fromkeys(models))
    args.lr_by = by_network(args.lr_net, "lr_net", flags.non_negative, followed["lr_net"])
    args.epochs_by = by_network(args.epochs, "epochs", flags.at_least(0), followed["epochs"])
    for flag, by in (("lr_net", args.lr_by), ("epochs", args.epochs_by)):
        unused = by.keys() - {None, *args.models}
        if unused:
            raise UserError(
                f"--{flag} names {sorted(unused)[0]}, which is none of the networks {', '.join(args.models)}"
            )
    args.ipc, args.method = 0, "evaluate"  # what RunFiles reads
    flags.resolve(args)


def check_held_out(args: Namespace, said: list[dict]) -> None:
    """Raise UserError where a set was made from images that it would be scored on; a note where a file does not say."""
    for file, own in zip(args.files, said, strict=True):
        if not {"eval_split", "seed"} <= own.keys():
            print(
                f"note: --eval_split val: {file} does not say whether it was made without that tenth", file=sys.stderr
            )
        elif own["eval_split"] != "val":
            raise UserError(f"--eval_split val: {file} was made from all training images, those held out here too")
        elif own["seed"] != args.seed:
            raise UserError(
                f"--eval_split val: {file} was made with --seed {own['seed']}, which holds out another tenth than "
                f"--seed {args.seed}: score files of one seed, with that seed"
            )


def rows_of(args: Namespace, data: ImageData) -> list[Row]:
    rows = []
    for file in args.files:
        own = synsets.about(file).get("args", {})
        sets, notes = synsets.read(file, data, args.space, args.experiments)
        for note in notes:
            print(note if note.startswith("warning") else f"note: {file}: {note}", file=sys.stderr)
        first, iteration = (own.get(name, args.origin[name]) for name in ORIGIN)
        chosen = 0 if args.experiments == "all" else int(args.experiments)
        rows += [Row(found, first + chosen + k, iteration) for k, found in enumerate(sets)]
    if "random" in args.baselines:
        counts = torch.bincount(rows[0].set.labels, minlength=data.num_classes).tolist()
        own = initial_indices(data, Namespace(counts=counts, seed=args.seed), 0)
        rows.append(Row(Synset(BASELINE_NAMES[0], data.batch(own).cpu(), data.y_train.cpu()[own]), 0, 0))
    if "whole" in args.baselines:
        rows.append(Row(Synset(BASELINE_NAMES[1], Normalised(data, data.x_train), data.y_train), 0, 0, whole=True))
    return rows


def settings(args: Namespace, model: str, whole: bool) -> Namespace:
    """The arguments that one network is trained with."""
    own = copy.copy(args)
    own.model, own.lr_net = model, args.lr_by.get(model, args.lr_by[None])
    own.epoch_eval_train = args.whole_epochs if whole else args.epochs_by.get(model, args.epochs_by[None])
    return own


# What a run must have in common with the one that it goes on from; --num_eval, --model and --baselines may grow.
KEY = (
    "files",
    "dataset",
    "res",
    "seed",
    "space",
    "experiments",
    "lr_net",
    "epochs",
    "whole_epochs",
    "eval_split",
    "zca",
)
KEY += ("batch_train", "dsa_strategy", "precision", "compile")


def run(args: Namespace) -> None:
    models = args.models
    with RunFiles(args) as files, Interrupts().installed() as interrupts, interrupts.anywhere():
        key = {name: getattr(args, name) for name in KEY}
        data = datasets.load(args.dataset, args.data_path, args.res)
        if args.eval_split == "val":
            data = data.with_validation(rng.seed_of(args.seed, 0, 0, -1, "validation split"))
        key["data"] = data.digest()
        data = (data.whitened() if args.zca else data).to(args.device)
        for model in models:
            empty_network(model, data.channel, data.num_classes, data.im_size, "meta")
        rows = rows_of(args, data)
        key["sets"] = [synsets.digest(row.set) for row in rows if row.set.name not in BASELINE_NAMES]
        earlier = files.earlier("key", key)
        evaluations = earlier["evaluations"] if earlier else []
        images = max(len(row.set.images) for row in rows)
        speed.choose(args, 3 * images * 1000 * data.im_size[0] * data.im_size[1])
        files.open_beside_no_run(again=bool(evaluations))
        files.log(f"command: {' '.join(sys.argv)}")
        protocol = {model: training.protocol(settings(args, model, False), data) for model in models}
        for line in dict.fromkeys(protocol.values()):
            of = [model for model in models if protocol[model] == line]
            which = ", ".join(of)
            print(f"evaluation{f' on {which}' if len(of) < len(models) else ''}: {line}")
        record = {
            "command": sys.argv,
            "key": key,
            "args": plain(args),
            "asked": getattr(args, "asked", plain(args)),
            "protocol": protocol,
            "evaluations": evaluations,
        }
        record |= {"hardware": hardware(args.device), "versions": versions()}
        for model in models:
            for row in rows:
                score(args, data, row, model, evaluations, files, record)
        text = table(rows, models, evaluations)
        print(text)
        (files.folder / "table.md").write_text(text + "\n")
        print(f"results {files.results_path}")


def score(
    args: Namespace, data: ImageData, row: Row, model: str, evaluations: list[dict], files: RunFiles, record: dict
) -> None:
    """Train and test the networks of one architecture that have not scored a set yet; `record` is kept after each."""
    where = {"set": row.set.name, "experiment": row.experiment, "model": model}
    entry = next((entry for entry in evaluations if where.items() <= entry.items()), None)
    if entry is None:
        entry = {**where, "accuracies": [], "curves": []}
        evaluations.append(entry)
    evaluator = None
    for it_eval in range(len(entry["accuracies"]), args.num_eval):
        evaluator = evaluator or training.Evaluator(data, settings(args, model, row.whole))
        curve: list[list[float]] = []
        at = (row.experiment, row.iteration, it_eval)
        accuracy = evaluator.accuracy(model, row.set.images, row.set.labels, *at, files.log, curve)
        entry["accuracies"].append(accuracy)
        entry["curves"].append([[round(x, 5) for x in point] for point in curve])
        entry.update(training.summary(entry["accuracies"]))
        files.save_results(record)
    files.say(f"{row.set.name}, {model}: {training.describe(entry['accuracies'])}")


def table(rows: list[Row], models: list[str], evaluations: list[dict]) -> str:
    """Markdown: a row a set, a column a network, in %."""
    lines = [["set", *models], ["---"] * (len(models) + 1)]
    for row in rows:
        cells = []
        for model in models:
            where = {"set": row.set.name, "experiment": row.experiment, "model": model}
            entry = next(entry for entry in evaluations if where.items() <= entry.items())
            cells.append(f"{100 * entry['mean']:.2f} ± {100 * entry['std']:.2f} (n {entry['n']})")
        lines.append([row.set.name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    flags.main(make_parser(), run, settle)
