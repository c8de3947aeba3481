"""`ddm score`: the hard-label scores of DD-Ranking, computed by the package ddranking."""

import contextlib
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddm import ranks, rng
from ddm.bars import bar
from ddm.commands.settings import ScoreSettings
from ddm.data.images import ImageData, Normalisation
from ddm.data.loading import check_name, load, short_name
from ddm.data.store import Mapped
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation import sets
from ddm.runs.folder import set_stem
from ddm.runs.session import locked_session

VERSION = "0.2.0"
INSTALL = f"pip install --no-deps ddranking=={VERSION} && pip install pandas timm"


class DDRankingData(NamedTuple):
    """ddranking's constants for a data set, and a network that it can train on the whole set."""

    model: str
    mean: list[float]
    std: list[float]


CIFAR = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
KNOWN = {
    "CIFAR10": DDRankingData("ConvNet-3", *CIFAR),
    "CIFAR100": DDRankingData("ConvNet-3", *CIFAR),  # ddranking uses CIFAR10's constants
    "TinyImageNet": DDRankingData("ConvNet-4-BN", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
# The DSA settings of its leaderboard, under the names in its code.
DSA = {"flip": 0.5, "rotate": 15.0, "scale": 1.2, "crop": 0.125, "cutout": 0.5}
DSA |= {"saturation": 2.0, "brightness": 1.0, "contrast": 0.5, "siamese": False, "latestseed": -1}


class Run(NamedTuple):
    """The accuracies in % of one evaluation run."""

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
        """The label-robust score, computed from fractions; `weight` in [0, 1] is the weight of IOR."""
        alpha = (weight * self.ior - (1 - weight) * self.hlr) / 100
        return (math.exp(alpha) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


class Real(Dataset):
    """Real images in the format of ddranking: (float32 [C, H, W] with its normalisation, label)."""

    def __init__(self, images: Tensor | Mapped, labels: Tensor, spec: DDRankingData):
        self.images, self.labels = images, labels.tolist()
        self.normalisation = Normalisation.of(spec.mean, spec.std)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self.labels[index]  # raises the IndexError that ends a loop over the set
        return self.normalisation.normalise(self.images[index : index + 1][0].float() / 255), label


def sorted_set(settings: ScoreSettings, data: ImageData) -> tuple[Tensor, Tensor]:
    """The set for ddranking: float32 [classes * ipc, C, H, W] with its normalisation, and labels, sorted by class.

    Raises UserError for unequal numbers of images per class.
    """
    file = settings.file
    (synset,), notes = sets.read(file, data, settings.space, str(settings.experiment))
    for note in notes:
        print(note, file=sys.stderr)
    if synset.factor > 1:
        n = synset.factor**2
        print(
            f"warning: {file} is partitioned: scores are for its decoded images, {n} of each stored one, and random "
            "images are as many",
            file=sys.stderr,
        )
    counts = torch.bincount(synset.labels, minlength=data.num_classes)
    if counts.min() != counts.max():
        raise UserError(f"{file} has {counts.min()} to {counts.max()} images per class: ddranking needs equal numbers")
    order = synset.labels.argsort(stable=True)
    theirs = Normalisation.of(*KNOWN[settings.dataset][1:])
    images = theirs.normalise(data.normalisation.unclipped(synset.images))
    return images[order].contiguous(), synset.labels[order]


def check_network(args: ScoreSettings, data: ImageData) -> None:
    """Check that ddranking can build the network and train it on the whole set. Raises UserError."""
    from ddranking.utils import REAL_DATA_TRAINING_CONFIG, build_model

    known = [name.partition("-")[2] for name in REAL_DATA_TRAINING_CONFIG if name.startswith(f"{args.dataset}-")]
    if args.full_acc is None and args.model not in known:
        raise UserError(
            f"--model {args.model}: ddranking can't train it on the whole set: choose from {', '.join(known)}, or give "
            "--full_acc"
        )
    try:
        build_model(args.model, data.num_classes, data.im_size, device="cpu")
    except Exception as error:  # unknown names raise several types
        raise UserError(f"--model {args.model}: ddranking can't build it ({error}): choose another") from None


def without_downloads(hard_label: ModuleType, data: ImageData, constants: DDRankingData) -> None:
    """Make ddranking use this real data and write no table; its own functions try to download, and fail."""
    real = [Real(x, y, constants) for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))]
    same = {c: c for c in range(data.num_classes)}
    size = data.channel, data.im_size, constants.mean, constants.std, data.num_classes
    hard_label.get_dataset = lambda *_: (*size, real[0], real[1], real[1], same, same)
    hard_label.save_results = lambda *_: None  # it raises an error: its columns differ in length
    hard_label.tqdm = partial(bar, leave=False)


def make_scorer(args: ScoreSettings, data: ImageData, ipc: int) -> Callable[[Tensor, Tensor, int], Run]:
    """ddranking's hard-label scores as a function of images, labels and a seed.

    Raises UserError without the package, and for a network without training settings for the whole set.
    """
    try:
        from ddranking.metrics import hard_label
        from ddranking.utils import REAL_DATA_ACC_CACHE
        from ddranking.utils.misc import set_seed
    except ImportError as error:
        raise UserError(f"score needs the package ddranking ({error}): {INSTALL}") from None
    check_network(args, data)
    without_downloads(hard_label, data, KNOWN[args.dataset])
    if args.full_acc is not None:
        REAL_DATA_ACC_CACHE[f"{args.dataset}-{args.model}"] = args.full_acc

    class Scorer(hard_label.LabelRobustScoreHard):
        def _get_class_to_samples(self, *_: object) -> None:
            """Not needed: it lists picture files."""

        def _compute_hard_label_metrics_helper(self, *, mode: str, **rest: object) -> tuple[float, float]:
            self.num_epochs = args.full_epochs if mode == "real" else args.num_epochs
            accuracy, lr = super()._compute_hard_label_metrics_helper(mode=mode, **rest)
            self.run_accuracies.append(float(accuracy))
            return accuracy, lr

    scorer = Scorer(
        dataset=args.dataset,
        ipc=ipc,
        model_name=args.model,
        data_aug_func="dsa",
        aug_params=DSA.copy(),
        step_size=args.num_epochs // 2,
        num_eval=1,
        im_size=data.im_size,
        num_epochs=args.num_epochs,
        num_workers=0,
        save_path=f"{args.save_path}/ddranking.csv",
        device=args.device,
        random_data_path=f"{args.save_path}/random",
        eval_full_data=args.full_acc is None,
    )

    def score(images: Tensor, labels: Tensor, seed: int) -> Run:
        hard_label.set_seed = lambda: set_seed(seed % 2**32)  # replaces a seed from the clock
        scorer.run_accuracies = []
        scorer.compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=args.lr_net)
        if args.full_acc is not None:
            scorer.run_accuracies.insert(1, args.full_acc)
        condensed, whole, random = scorer.run_accuracies
        return Run(condensed, random, whole)

    return score


def run(requested: ScoreSettings) -> None:
    """Score the set. Raises UserError for invalid settings, data or files."""
    settings = settle(requested)
    machine = Machine(settings.device)
    with locked_session(settings, set_stem("ddranking", short_name(settings.dataset), settings.model, 0)) as session:
        data = load(settings.dataset, settings.data_path, settings.res)
        images, labels = sorted_set(settings, data)
        earlier = session.earlier(data=data.digest, set=sets.digest(images, labels))
        runs = [Run(**entry) for entry in earlier["evaluations"]] if earlier else []
        ipc = len(labels) // data.num_classes
        score = make_scorer(settings, data, ipc) if len(runs) < settings.num_eval else None
        session.open(machine, requested, printed=data.warning_lines, ddranking=VERSION)

        def save_scores() -> None:
            session.record["evaluations"] = [each._asdict() for each in runs]
            session.record["scores"] = scores(runs, settings.lrs_lambda)
            session.save()

        for k in range(len(runs), settings.num_eval):
            seed = rng.seed_of(settings.seed, settings.experiment, 0, -1, f"ddranking {k}")
            with open(session.files.folder / "ddranking.log", "a") as log, contextlib.redirect_stdout(log):
                runs.append(score(images, labels, seed))
            values = ", ".join(f"{name} {value:.2f} %" for name, value in runs[-1]._asdict().items())
            session.files.say(f"run {k}: {values}")
            save_scores()
        save_scores()  # --lrs_lambda may have changed
        for name, value in scores(runs, settings.lrs_lambda).items():
            print(f"{name}: mean {value['mean']:.4g}, std {value['std']:.3g}, n {len(runs)}")
        print(f"HLR and IOR in points, LRS from fractions; results {session.files.results_path}")


def scores(runs: list[Run], weight: float) -> dict[str, dict[str, float]]:
    """Mean and (population) standard deviation over runs."""
    values = {"HLR": [r.hlr for r in runs], "IOR": [r.ior for r in runs], "LRS": [r.lrs(weight) for r in runs]}
    return {name: {"mean": statistics.fmean(v), "std": statistics.pstdev(v)} for name, v in values.items()}


def settle(requested: ScoreSettings) -> ScoreSettings:
    """Fill in the values recorded in the set. Raises UserError if ddranking can't score it."""
    metadata = sets.metadata(requested.file)
    args = metadata.get("args", {})
    dataset = requested.dataset or args.get("dataset")
    if dataset is None:
        raise UserError(f"{requested.file} does not name its data set: give --dataset")
    check_name(dataset)
    if dataset not in KNOWN:
        raise UserError(f"--dataset {dataset}: ddranking supports {', '.join(KNOWN)}: choose one of them")
    if requested.zca or metadata.get("zca") is not None:
        raise UserError("a whitened set can't be scored, as ddranking does not whiten: condense without --zca")
    return requested.but(
        dataset=dataset,
        res=requested.res or args.get("res"),
        model=requested.model or KNOWN[dataset].model,
        full_epochs=requested.full_epochs or requested.num_epochs,
        device=ranks.local_device(requested.device),
    )
