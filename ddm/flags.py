"""The command line that the recipes share: flags with the published names and defaults, in groups."""

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch

from ddm import ranks
from ddm.augment import ParamDiffAug, operations_of
from ddm.data import data as datasets
from ddm.errors import UserError, lookup, nearest
from ddm.evaluation.training import EVAL_MODES
from ddm.interrupt import Stopped
from ddm.methods.sampling import SAMPLERS
from ddm.methods.schedules import SCHEDULES, lr_of
from ddm.networks import ARCHITECTURES

# Settings that go together, by name: flag -> value. A flag that is given as well wins. Recipes may have more.
PRESETS = {
    # Found on CIFAR10's validation split; what it is worth: README, "Speed".
    "fast": {
        "real_sampling": "balanced",
        "batch_real": 32,
        "lr_img": None,  # follows --ipc
        "lr_schedule": "cosine",
        "Iteration": 1000,
    },
}

SWITCH = {"action": argparse.BooleanOptionalAction, "default": False}  # --name and, against a file's, --no-name


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with presets, and the flag groups of a recipe as attributes."""

    def __init__(self, description: str):
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
        )
        self.presets: dict[str, dict] = {}
        self.data = self.add_argument_group("data")
        self.method = self.add_argument_group("method")
        self.evaluation = self.add_argument_group("evaluation")
        self.output = self.add_argument_group("output")

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} (see --help)\n")

    def parse_args(self, args: list[str] | None = None, namespace: Namespace | None = None) -> Namespace:
        known, unknown = self.parse_known_args(args, namespace)
        if getattr(known, "like", None):
            values = arguments_of(known.like, self)
            for group in self._mutually_exclusive_groups:  # what is given leaves out what the file has, then the last
                dests = [action.dest for action in group._group_actions]
                given = [dest for dest in dests if getattr(known, dest) is not None]
                having = [dest for dest in dests if values.get(dest) is not None]
                for dest in set(having) - set(given or having[-1:]):
                    del values[dest]
            self.set_defaults(**values)
        self.set_defaults(**preset_values(self, getattr(known, "preset", None)))
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"unknown argument {unknown[0]!r}: {nearest(unknown[0], flags)}")
        return known


def preset_values(parser: Parser, names: str | None) -> dict:
    """What presets, joined by commas, set; of two that set the same, the later one."""
    values = {}
    for name in names.split(",") if names else ():
        if name not in parser.presets:
            parser.error(f"argument --preset: {name!r} is none of {', '.join(parser.presets)}")
        values |= parser.presets[name]
    return values


# Arguments of a run that say where it ran, not what it computed.
NOT_ALIKE = {"save_path", "resume", "device", "data_path", "proxy_cache", "like", "preset", "file", "files"}


def arguments_of(path: str, parser: Parser) -> dict:
    """The arguments that a results.json or res_*.pt was asked for, those that this command has.

    Says on stderr which the command has not, and which of its own keep their defaults.
    """
    shown = repr(path[:80])
    try:
        if path.endswith(".json"):
            found = json.loads(Path(path).read_text())
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
        ran, asked = found["args"], dict(found.get("asked", found["args"]))
        # What was asked for, not what it came to: a k that follows ipc goes on following it. What followed from the
        # machine is part of the number, though.
        if "precision" in ran and asked.get("precision") is None:
            asked["precision"] = ran["precision"]
        found = asked
    except Exception as error:  # garbage raises whatever its damage hits
        parser.error(f"argument --like: {shown} is not a results.json or res_*.pt ({type(error).__name__})")
    hidden = NOT_ALIKE | {action.dest for action in parser._actions if action.help is argparse.SUPPRESS} | {"help"}
    actions = {action.dest: action for action in parser._actions if action.dest not in hidden}
    spelt = {option[2:]: action.dest for action in actions.values() for option in action.option_strings}
    found = {spelt.get(name, name): value for name, value in found.items()}  # of flags with two names
    for name, value in found.items():
        if name not in actions or value is None:
            continue
        try:
            if not isinstance(value, str | int | float):
                raise argparse.ArgumentError(actions[name], f"{value!r} is no value of a flag")
            if isinstance(value, bool) != (actions[name].nargs == 0):
                raise argparse.ArgumentError(actions[name], f"{value!r} is no value of this flag")
            if actions[name].nargs != 0:
                parser._check_value(actions[name], parser._get_value(actions[name], str(value)))
        except argparse.ArgumentError as error:
            parser.error(f"argument --like: {shown} has {error}")
    for names, what in (
        (found.keys() - actions.keys() - NOT_ALIKE, "this command has no"),
        (actions.keys() - found.keys(), "at its default, as the file has none:"),
    ):
        if names:
            print(f"note: --like {shown}: {what} {', '.join(f'--{name}' for name in sorted(names))}", file=sys.stderr)
    return {name: value for name, value in found.items() if name in actions}


def at_least(low: int) -> Callable[[str], int]:
    """An argparse type: an integer not below `low`."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is below {low}")
        if value >= 2**63:
            raise argparse.ArgumentTypeError(f"{text[:20]} is 2**63 or more")
        return value

    return integer


def non_negative(text: str) -> float:
    """An argparse type: a finite number, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < 1e38:  # what float32 holds; false for NaN
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of 0 or more")
    return value


def resolution(text: str) -> int:
    """An argparse type: a side in pixels."""
    value = at_least(1)(text)
    if value > 4096:
        raise argparse.ArgumentTypeError(f"{value} is above 4096")
    return value


def images_per_class(text: str) -> int | str:
    """An argparse type: a number, or the path of a .json file."""
    return text if text.endswith(".json") else at_least(1)(text)


def below_one(text: str) -> float:
    """An argparse type: a number in [0, 1)."""
    value = non_negative(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not below 1")
    return value


def a_path(text: str) -> str:
    """An argparse type: a path; an empty one would mean the working folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def add_data_flags(parser: Parser, dataset: str | None = "CIFAR10") -> None:
    """Which data set, and where it is; `dataset` is the default."""
    add = parser.data.add_argument
    text = f"one of {', '.join(datasets.NAMES)}; or a store, an .npz file or a folder of class folders, by its path"
    add("--dataset", type=a_path, default=dataset, help=text)
    text = "folder of stores, <NAME>.npz or torchvision's files; downloads go there"
    add("--data_path", type=a_path, default="data", help=text)
    add(
        "--res", type=at_least(1), default=None, help="side of the images in pixels, where a data set leaves the choice"
    )
    text = f"of --dataset ImageNet: {', '.join(datasets.SUBSETS)}"
    add("--subset", choices=tuple(datasets.SUBSETS), default=None, help=text)
    add("--zca", **SWITCH, help="whiten images (ZCA, eps 0.1) in the place of normalising them")


def add_like_flag(parser: Parser) -> None:
    text = "take all arguments from a results.json or res_*.pt, but where it ran; flags given as well win"
    parser.data.add_argument("--like", default=None, metavar="FILE", help=text)


def add_machine_flags(parser: Parser) -> None:
    """Where and how networks are computed, and the seed."""
    add = parser.method.add_argument
    add("--seed", type=at_least(0), default=0, help="all randomness follows from it")
    add("--dsa_strategy", default="color_crop_cutout_flip_scale_rotate", help="operations joined by _, or none")
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default=None,
        help="arithmetic of networks; unset: bf16 where the run is compiled and the device is fast at it, else fp32",
    )
    add(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="torch.compile; auto: if the run is long enough to repay it and a compiler works",
    )
    add("--device", default="auto", help="auto (cuda, then mps, then cpu) or a torch device")


def add_evaluation_flags(parser: Parser, num_eval: int = 20) -> None:
    """How sets are scored, but for learning rate and epochs."""
    add = parser.evaluation.add_argument
    add("--num_eval", type=at_least(1), default=num_eval, help="fresh networks per evaluation and architecture")
    add("--batch_train", type=at_least(1), default=256, help="batch size of the evaluation networks")
    add(
        "--eval_split",
        choices=("test", "val"),
        default="test",
        help="val: score on a seeded tenth of the training images, held out of everything else",
    )


def common_parser(description: str, model: str, presets: dict[str, dict] | None = None) -> Parser:
    """The flags of every command that makes sets: data, network, experiments, evaluation, output.

    `model` is the default of --model; with `presets`, --preset chooses among them.
    """
    parser = Parser(description)
    parser.presets = presets or {}

    add_data_flags(parser)
    add_like_flag(parser)
    add = parser.data.add_argument
    if presets:
        text = f"settings that go together, of {', '.join(presets)}; join with commas; flags given as well win"
        add("--preset", default=None, help=text)

    add = parser.method.add_argument
    add("--model", default=model, help="network to match features of; the published _gram names are accepted")
    text = 'images per class; or a .json file of class (name or number) to number, "*" for the rest'
    add("--ipc", type=images_per_class, default=10, help=text)
    add("--num_exp", type=at_least(1), default=5, help="independent experiments")
    add("--first_exp", type=at_least(0), default=0, help="number of the first one: runs one of several alone")
    add_machine_flags(parser)

    add = parser.evaluation.add_argument
    add("--eval_mode", default="SS", help="SS: the model itself; S: without BatchNorm; M B W D A P N: a pool")
    add("--epoch_eval_train", type=at_least(0), default=1000, help="E: epochs 0 .. E are trained, the last one counts")
    add("--lr_net", type=non_negative, default=0.01, help="learning rate of the evaluation networks")
    add_evaluation_flags(parser)

    add = parser.output.add_argument
    add("--save_path", type=a_path, default="result", help="folder for everything that is written")
    add(
        "--resume",
        choices=("auto", "never", "must"),
        default="auto",
        help="auto: go on from the checkpoint in save_path, if there is one; never: want an empty one; must: want one",
    )
    return parser


def recipe_parser(description: str, model: str, presets: dict[str, dict] | None = None) -> Parser:
    """The flags of every recipe; `presets` are those of this recipe alone. Recipes add flags to `parser.method`."""
    parser = common_parser(description, model, PRESETS | (presets or {}))

    add = parser.method.add_argument
    add("--init", choices=("real", "noise"), default="real", help="start from random real images or Gaussian noise")
    add("--Iteration", type=at_least(1), default=20000, help="steps of condensation, each with a fresh network")
    add("--lr_img", type=non_negative, default=1.0, help="learning rate of the pixels")
    add("--lr_schedule", choices=tuple(SCHEDULES), default="constant", help="of lr_img over the iterations")
    add("--momentum_img", type=below_one, default=0.5, help="of the pixels' SGD")
    text = "keep the pixels in [0, 1], so that pictures (export.py --to png) lose nothing but rounding"
    add("--clip_pixels", **SWITCH, help=text)
    add("--batch_real", type=at_least(1), default=256, help="real images per class and step, if the class has as many")
    add(
        "--real_sampling",
        choices=tuple(SAMPLERS),
        default="random",
        help="balanced: of four times as many random images, those whose mean is near the mean of the class",
    )
    add("--dis_metric", default="ours", help="accepted as published; only gradient matching (match_loss) reads it")
    add("--class_chunk", type=at_least(0), default=0, help="classes per pass; lower needs less memory; 0 chooses")
    add(
        "--on_nonfinite",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with a step whose loss or gradient is not finite; skipped ones are listed in results.json",
    )

    add = parser.evaluation.add_argument
    add(
        "--eval_every",
        type=at_least(0),
        default=None,
        help="evaluate random real images at the start, the set every so many steps and at the end; 0: only at the "
        "end; unset: 2000 in modes S and SS, else 0",
    )

    add = parser.output.add_argument
    add("--tensorboard", **SWITCH, help="losses, accuracies and images for TensorBoard, too")
    add("--checkpoint_every", type=at_least(1), default=200, help="steps; a checkpoint is taken every 5 minutes too")
    return parser


def resolve(args: Namespace) -> Namespace:
    """Check the names among the arguments, before anything is read or written, and fill in what follows from others.

    Raises UserError with the nearest valid name.
    """
    settle_dataset(args)
    lookup(ARCHITECTURES, args.model, "model")
    if args.eval_mode not in EVAL_MODES:
        raise UserError(f"unknown eval_mode {args.eval_mode!r}: choose from {', '.join(EVAL_MODES)}")
    args.dsa = bool(operations_of(args.dsa_strategy))
    args.dsa_param = ParamDiffAug()
    args.device = ranks.local_device(find_device(args.device))
    if getattr(args, "lr_img", 0) is None and isinstance(args.ipc, int):  # of a file: once the classes are known
        args.lr_img = lr_of(args.ipc)
    if getattr(args, "eval_every", 0) is None:
        args.eval_every = 2000 if args.eval_mode in ("S", "SS") else 0
    return args


def settle_dataset(args: Namespace) -> None:
    """Check --dataset, and bring --subset into it."""
    if args.subset:
        if args.dataset != "ImageNet":
            raise UserError(f"--subset {args.subset} is of --dataset ImageNet, not of {args.dataset}")
        args.dataset = datasets.SUBSETS[args.subset]
    if not datasets.is_path(args.dataset):
        lookup(datasets.NAMES, args.dataset, "dataset")


def find_device(name: str) -> str:
    """'auto' or a torch device name -> a device that is there; raises UserError otherwise."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: choose auto, cpu, cuda, cuda:0 .. or mps") from None
    there = {"cpu": True, "cuda": cuda and (device.index or 0) < torch.cuda.device_count(), "mps": mps}
    if not there.get(device.type, False):
        raise UserError(f"device {name!r} is not there: torch finds {'cuda' if cuda else 'mps' if mps else 'cpu only'}")
    return str(device)


def main(parser: Parser, run: Callable[[Namespace], None], settle: Callable[[Namespace], object] = resolve) -> None:
    """Parse, settle, run, and turn a UserError into one line on stderr and exit status 2."""
    args = parser.parse_args()
    args.asked = vars(args).copy()  # before anything follows from anything
    sys.stdout.reconfigure(errors="backslashreplace")  # a path may have bytes that no text encoding has
    try:
        settle(args)
        if getattr(args, "preset", None) and ranks.from_environment()[0] == 0:
            values = preset_values(parser, args.preset)
            print(f"preset {args.preset}:", *(f"--{name} {getattr(args, name)}" for name in values))
        run(args)
    except UserError as error:
        rank, world = ranks.from_environment()
        print(f"error: {f'rank {rank} of {world}: ' if world > 1 else ''}{error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"stopped by {stopped}; the same command goes on from here, with --resume auto", file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)
