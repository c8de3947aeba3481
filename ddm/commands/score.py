"""Score a condensed set as DD-Ranking does, with the package ddranking 0.2.0.

    pip install --no-deps ddranking==0.2.0 && pip install pandas timm
    python score.py result/res_DM_CIFAR10_ConvNet_10ipc.pt --num_eval 5

The package is optional, and its old pins of numpy and scipy are not needed: `--no-deps` leaves them out. It trains its
own networks, with hard labels, on the set, on as many random real images (the best of five learning rates) and on the
whole training set, and takes **the best of every tenth epoch on the test set**: its accuracies are not evaluate.py's.
From them follow, in points,

    HLR = accuracy(whole set) - accuracy(condensed)         hard label recovery, lower is better
    IOR = accuracy(condensed) - accuracy(random)            improvement over random, higher is better
    LRS = (exp(a) - exp(-1)) / (exp(1) - exp(-1))           label-robust score, a = w IOR - (1 - w) HLR

with a from fractions, as the formula is meant; the package puts percentages into it, which saturates. Most of the time
goes into the whole set: --full_epochs shortens it, --full_acc gives its accuracy, say of an earlier run. Stopped, the
same command goes on with the runs that are left.
"""

import contextlib
import math
import statistics
import sys
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ddm.data import data as datasets
from ddm import flags
from ddm import rng
from ddm.evaluation import synsets
from ddm.data.data import ImageData
from ddm.errors import UserError
from ddm.runs.files import RunFiles, hardware, plain, versions
from ddm.interrupt import Interrupts
from ddm.data.store import Mapped
from ddm.evaluation.synsets import Synset

VERSION = "0.2.0"
INSTALL = f"pip install --no-deps ddranking=={VERSION} && pip install pandas timm"


class Theirs(NamedTuple):
    """What ddranking does with a data set: its constants, and a network whose training on the whole set it knows."""

    model: str
    mean: list[float]
    std: list[float]


CIFAR = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
KNOWN = {
    "CIFAR10": Theirs("ConvNet-3", *CIFAR),
    "CIFAR100": Theirs("ConvNet-3", *CIFAR),  # with CIFAR10's constants, not its own
    "TinyImageNet": Theirs("ConvNet-4-BN", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
# Its leaderboard's settings of DSA, under the names that its code reads.
DSA = {"flip": 0.5, "rotate": 15.0, "scale": 1.2, "crop": 0.125, "cutout": 0.5}
DSA |= {"saturation": 2.0, "brightness": 1.0, "contrast": 0.5, "siamese": False, "latestseed": -1}


class Run(NamedTuple):
    """Accuracies in % of one evaluation run."""

    condensed: float
    random: float
    whole: float

    @property
    def hlr(self) -> float:
        return self.whole - self.condensed

    @property
    def ior(self) -> float:
        return self.condensed - self.random

    def lrs(self, weight: float) -> float:
        """The label-robust score, from fractions; `weight` in [0, 1] is that of IOR."""
        alpha = (weight * self.ior - (1 - weight) * self.hlr) / 100
        return (math.exp(alpha) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


class Real(Dataset):
    """Real images as ddranking reads a data set: (float32 [C, H, W] in its normalised space, label)."""

    def __init__(self, images: Tensor | Mapped, labels: Tensor, theirs: Theirs):
        self.images, self.labels = images, labels.tolist()
        self.mean, self.std = (torch.tensor(x).view(-1, 1, 1) for x in (theirs.mean, theirs.std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self.labels[index]  # past the end: an IndexError, which ends a loop over the set
        return (self.images[index : index + 1][0].float() / 255 - self.mean) / self.std, label


def sorted_set(args: Namespace, data: ImageData) -> tuple[Tensor, Tensor]:
    """The set as ddranking wants it: float32 [classes * ipc, C, H, W] in its space, labels, sorted by class."""
    (found,), notes = synsets.read(args.file, data, args.space, str(args.experiment))
    for note in notes:
        print(note if note.startswith("warning") else f"note: {args.file}: {note}", file=sys.stderr)
    counts = torch.bincount(found.labels, minlength=data.num_classes)
    if counts.min() != counts.max():
        raise UserError(
            f"{args.file} has {counts.min()} to {counts.max()} images a class: ddranking wants equal numbers"
        )
    order = found.labels.argsort(stable=True)
    mean, std = data.constants
    pixels = found.images * std + mean
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in KNOWN[args.dataset][1:])
    return ((pixels - mean) / std)[order].contiguous(), found.labels[order]


def make_scorer(args: Namespace, data: ImageData) -> Callable[[Tensor, Tensor, int], Run]:
    """ddranking's hard-label score as a function of images, labels and a seed.

    Raises UserError without the package, and for a network whose training on the whole set it does not know.
    """
    try:
        from ddranking.metrics import hard_label
        from ddranking.utils import REAL_DATA_ACC_CACHE, REAL_DATA_TRAINING_CONFIG, build_model
        from ddranking.utils.misc import set_seed
    except ImportError as error:
        raise UserError(f"score.py needs the package ddranking ({error}): {INSTALL}") from None
    theirs, key = KNOWN[args.dataset], f"{args.dataset}-{args.model}"
    if args.full_acc is not None:
        REAL_DATA_ACC_CACHE[key] = args.full_acc
    elif key not in REAL_DATA_TRAINING_CONFIG:
        known = [name.partition("-")[2] for name in REAL_DATA_TRAINING_CONFIG if name.startswith(f"{args.dataset}-")]
        raise UserError(
            f"--model {args.model}: ddranking trains {', '.join(known)} on the whole set; or say --full_acc"
        )
    try:
        build_model(args.model, data.num_classes, data.im_size, device="cpu")
    except Exception as error:  # whatever it raises for a name that it does not know
        raise UserError(f"--model {args.model}: ddranking can't build it ({error})") from None
    real = [Real(x, y, theirs) for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))]
    same = {c: c for c in range(data.num_classes)}

    def ours(*_: object) -> tuple:
        """In the place of its get_dataset, which downloads."""
        size = data.channel, data.im_size, theirs.mean, theirs.std, data.num_classes
        return *size, real[0], real[1], real[1], same, same

    class Scorer(hard_label.LabelRobustScoreHard):
        def _get_class_to_samples(self, *_: object) -> None:
            """Paths of pictures, which only random images as files need."""

        def _compute_hard_label_metrics_helper(self, *, mode: str, **rest: object) -> tuple[float, float]:
            self.num_epochs = args.full_epochs if mode == "real" else args.num_epochs
            accuracy, lr = super()._compute_hard_label_metrics_helper(mode=mode, **rest)
            self.found.append(float(accuracy))
            return accuracy, lr

    hard_label.get_dataset = ours
    hard_label.save_results = lambda *_: None  # it raises: one of its three columns is twice as long
    hard_label.tqdm = partial(tqdm, leave=False)
    folder = args.save_path
    scorer = Scorer(
        dataset=args.dataset,
        ipc=args.ipc,
        model_name=args.model,
        data_aug_func="dsa",
        aug_params=DSA.copy(),
        step_size=args.num_epochs // 2,
        num_eval=1,
        im_size=data.im_size,
        num_epochs=args.num_epochs,
        num_workers=0,
        save_path=f"{folder}/ddranking.csv",
        device=args.device,
        random_data_path=f"{folder}/random",
        eval_full_data=args.full_acc is None,
    )

    def score(images: Tensor, labels: Tensor, seed: int) -> Run:
        hard_label.set_seed = lambda: set_seed(seed % 2**32)  # of the wall clock, otherwise
        scorer.found = []
        scorer.compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=args.lr_net)
        if args.full_acc is not None:
            scorer.found.insert(1, args.full_acc)
        condensed, whole, random = scorer.found
        return Run(condensed, random, whole)

    return score


# What a run must have in common with the one that it goes on from.
KEY = ("experiment", "space", "dataset", "res", "model", "seed", "num_epochs", "full_epochs", "full_acc", "lr_net")


def run(args: Namespace) -> None:
    key = {name: getattr(args, name) for name in KEY}
    with RunFiles(args) as files, Interrupts().installed() as interrupts, interrupts.anywhere():
        data = datasets.load(args.dataset, args.data_path, args.res)
        images, labels = sorted_set(args, data)
        key |= {"data": data.digest(), "set": synsets.digest(Synset(args.file, images, labels))}
        earlier = files.earlier("key", key)
        found = [Run(**entry) for entry in earlier["evaluations"]] if earlier else []
        args.ipc = len(labels) // data.num_classes
        score = make_scorer(args, data) if len(found) < args.num_eval else None
        files.open_beside_no_run(again=bool(found))
        record = {"command": sys.argv, "key": key, "args": plain(args), "ddranking": VERSION}
        record["asked"] = getattr(args, "asked", plain(args))
        record |= {"hardware": hardware(args.device), "versions": versions()}

        def keep() -> None:
            record["evaluations"] = [each._asdict() for each in found]
            record["scores"] = scores(found, args.lrs_lambda)
            files.save_results(record)

        for k in range(len(found), args.num_eval):
            with open(files.folder / "ddranking.log", "a") as log, contextlib.redirect_stdout(log):
                found.append(score(images, labels, rng.seed_of(args.seed, args.experiment, 0, -1, f"ddranking {k}")))
            files.say(f"run {k}: " + ", ".join(f"{name} {value:.2f} %" for name, value in found[-1]._asdict().items()))
            keep()
        keep()  # --lrs_lambda may be another
        for name, value in scores(found, args.lrs_lambda).items():
            print(f"{name}: mean {value['mean']:.4g}, std {value['std']:.3g}, n {len(found)}")
        print(f"HLR and IOR in points, LRS from fractions; results {files.results_path}")


def scores(found: list[Run], weight: float) -> dict[str, dict[str, float]]:
    """Mean and (population) standard deviation over runs."""
    values = {"HLR": [r.hlr for r in found], "IOR": [r.ior for r in found], "LRS": [r.lrs(weight) for r in found]}
    return {name: {"mean": statistics.fmean(v), "std": statistics.pstdev(v)} for name, v in values.items()}


def settle(args: Namespace) -> None:
    about = synsets.about(args.file)
    own = about.get("args", {})
    args.dataset = args.dataset or own.get("dataset")
    if args.dataset is None:
        raise UserError(f"{args.file} does not say which data set it is of: say --dataset")
    flags.settle_dataset(args)
    if args.dataset not in KNOWN:
        raise UserError(f"--dataset {args.dataset}: ddranking's score is for {', '.join(KNOWN)}")
    if args.zca or about.get("zca") is not None:
        raise UserError("a whitened set can't be scored: ddranking would have to be told the same transform")
    args.res = args.res or own.get("res")
    args.model = args.model or KNOWN[args.dataset].model
    args.full_epochs = args.full_epochs or args.num_epochs
    args.device = flags.find_device(args.device)
    args.method, args.ipc = "ddranking", 0  # what RunFiles reads


def weight(text: str) -> float:
    """An argparse type: a number in [0, 1]."""
    value = flags.non_negative(text)
    if value > 1:
        raise ArgumentTypeError(f"{text} is above 1")
    return value


def make_parser() -> flags.Parser:
    parser = flags.Parser(__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="FILE", help="a saved set, or a folder of pictures")
    flags.add_data_flags(parser, dataset=None)
    flags.add_like_flag(parser)
    add = parser.data.add_argument
    add("--space", choices=synsets.SPACES, default="auto", help="of the pixels, if FILE is not ours")
    add("--experiment", type=flags.at_least(0), default=0, help="which of the sets in FILE")
    add = parser.evaluation.add_argument
    add(
        "--model", default=None, help="ddranking's name of a network, ConvNet-3; unset: the one it has for the data set"
    )
    add("--num_eval", type=flags.at_least(1), default=5, help="runs, each with networks of its own")
    text = "of the networks on few images; 10 at least, as it tests after every tenth"
    add("--num_epochs", type=flags.at_least(10), default=1000, help=text)
    text = "of the network on the whole training set; unset: --num_epochs, as the package does"
    add("--full_epochs", type=flags.at_least(10), default=None, help=text)
    text = "its accuracy in %%, in the place of training it"
    add("--full_acc", type=flags.non_negative, default=None, help=text)
    add("--lr_net", type=flags.non_negative, default=0.01, help="learning rate on the condensed set")
    add("--lrs_lambda", type=weight, default=0.5, help="w, the weight of IOR against HLR in LRS")
    add("--seed", type=flags.at_least(0), default=0, help="all randomness follows from it")
    add("--device", default="auto", help="auto (cuda, then mps, then cpu) or a torch device")
    parser.output.add_argument("--save_path", type=flags.a_path, default="result_score", help="folder for the results")
    return parser


if __name__ == "__main__":
    flags.main(make_parser(), run, settle)
