"""The runs of a report: their files, accuracies to compare them with, and statistics of their images."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddm import rng
from ddm.commands.run_records import BASELINES, EVALUATION, Result, read, short_names
from ddm.data import loading
from ddm.data.partition import decoded
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation import sets
from ddm.losses import gram_distance, image_moments, mean_gram, moments_distance
from ddm.methods.matching import features
from ddm.methods.step import first_images
from ddm.networks import empty_network, initialise, untapped
from ddm.runs.folder import set_size

REAL = 64  # real images per class in the comparisons
STATISTICS = {"moments": image_moments, "grams": mean_gram}


class ClassFeatures(NamedTuple):
    """The features of some images under one untrained network, by class."""

    embedding: list[Tensor]  # per class: [n, D]
    style: list[dict[str, list[Tensor]]]  # per class: statistic -> list over layers of [1, ...]


class Baseline(NamedTuple):
    """An accuracy to compare runs with."""

    source: str  # the folder's name
    key: tuple  # the values that comparable runs share
    summary: dict  # mean, std, n, as in results.json


def whole_key(args: dict, model: str) -> tuple:
    """The settings that determine the accuracy of the whole training set."""
    split, zca = args.get("eval_split", "test"), bool(args.get("zca"))
    return os.path.normpath(args["dataset"]), args.get("res"), zca, split, untapped(model)


class ReportedRun:
    """The files and data of a run. Raises UserError for missing or unreadable files."""

    def __init__(self, folder: Path, data_path: str, res: int | None, name: str = ""):
        self.folder, self.name = folder, name or folder.resolve().name
        record = Result(self.name, read(folder / "results.json"))
        self.results, self.args, self.made_by, self.model = record.record, record.args, record.made_by, record.model
        a = self.args
        files = sorted(folder.glob("res_*.pt"))
        if not files:
            raise UserError(f"{folder} has no res_*.pt: name the --save_path of a run")
        sets.check_registered(folder, a, "dataset", "model")
        loaded = loading.load(a["dataset"], data_path, res or a.get("res"))
        # As in the run.
        self.data = loading.split(loaded, a.get("eval_split", "test"), bool(a.get("zca")), a.get("seed", 0))
        (found,), _ = sets.read(files[0], self.data, experiments="0")
        self.images, self.labels, self.factor = found.images, found.labels, found.factor
        self.metrics = []
        if (folder / "metrics.jsonl").exists():
            for line in (folder / "metrics.jsonl").read_text().splitlines():
                try:
                    self.metrics.append(json.loads(line))
                except ValueError:  # an incomplete line of a killed process
                    continue

    @property
    def kind(self) -> str:
        """The kind of its images: the coreset's method, or 'condensed'."""
        return self.args.get("method") or "condensed"

    @property
    def title(self) -> str:
        return f"{self.made_by}, {loading.short_name(self.args['dataset'])}, {set_size(self.args['ipc'])}"

    @property
    def data_key(self) -> tuple:
        """The settings that determine the real images."""
        a = self.args
        return a["dataset"], self.data.im_size, bool(a.get("zca")), a.get("eval_split", "test")

    @property
    def random_key(self) -> tuple:
        """The settings, except the seed, that determine the accuracy of random real images."""
        return *whole_key(self.args, self.model), self.args["ipc"], self.results["protocol"]

    @cached_property
    def counts(self) -> list[int]:
        """The number of images of each class, decoded."""
        return torch.bincount(self.labels, minlength=self.data.num_classes).tolist()

    @property
    def stored_counts(self) -> list[int]:
        """The number of stored images of each class."""
        return [n // self.factor**2 for n in self.counts]

    def of_class(self, c: int) -> Tensor:
        return self.images[self.labels == c]

    def initial(self, c: int) -> Tensor:
        """The initial images of a class (experiment first_exp); random real images for a coreset."""
        return self.start[c]

    @cached_property
    def start(self) -> tuple[Tensor, ...]:
        init, experiment = self.args.get("init", "real"), self.args.get("first_exp", 0)
        images = first_images(init, self.data, self.stored_counts, self.factor, self.args["seed"], experiment)
        return decoded(images, self.factor).split(self.counts)

    def real(self, c: int) -> Tensor:
        """At most REAL real images of a class: normalised, [n, C, H, W]."""
        n = min(REAL, len(self.data.indices[c]))
        return self.data.batch(self.data.draw(c, n, rng.generator(0, 0, 0, c, "report")))


def read_results(folder: Path) -> dict:
    """The content of a folder's results.json, which has `args`. Raises UserError."""
    try:
        results = json.loads((folder / "results.json").read_text())
        results["args"]["dataset"]
        return results
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} has no results.json of a run ({type(error).__name__}): name the --save_path of a run"
        ) from None


def read_folders(folders: Sequence[str], data_path: str, res: int | None) -> tuple[list[ReportedRun], list[Baseline]]:
    """The runs among some folders, and the accuracies of whole training sets. Raises UserError.

    Those accuracies come from the folders of `ddm coreset --method full` and `ddm evaluate --baselines whole`.
    """
    paths = [path.parent if path.name == "results.json" else path for path in map(Path, folders)]
    names = short_names([path.resolve() / "results.json" for path in paths])
    runs, baselines = [], []
    for path, name in zip(paths, names, strict=True):
        results = read_results(path)
        if results["args"].get("subset_size"):
            print(f"note: {path} trained on a part of the training set: left out", file=sys.stderr)
        elif results["args"].get("method") == "full":
            for model, summary in results.get("models", {}).items():
                baselines.append(Baseline(name, whole_key(results["args"], model), summary))
        elif results.get("key") == EVALUATION:  # of ddm evaluate
            for entry in results.get("evaluations", []):
                if entry.get("set") == BASELINES["whole"] and entry.get("accuracies"):
                    baselines.append(Baseline(name, whole_key(results["args"] | entry, entry["model"]), entry))
        else:
            runs.append(ReportedRun(path, data_path, res, name))
    if not runs:
        raise UserError(f"no condensed set or coreset in {', '.join(folders)}: name the --save_path of a run too")
    return runs, baselines


def random_baseline(run: ReportedRun, runs: Sequence[ReportedRun]) -> Baseline | None:
    """The accuracy of as many random real images: the run's, or that of another run with the same protocol."""
    for other in (run, *runs):
        if other.random_key == run.random_key:
            summary = other.results.get("random_real", {}).get(other.model)
            if other.kind == "random" and other is not run:
                summary = other.results
            if summary:
                return Baseline(other.name, other.random_key, summary)
    return None


def whole_baseline(run: ReportedRun, baselines: Sequence[Baseline]) -> Baseline | None:
    """The accuracy of the whole training set on the run's network."""
    key = whole_key(run.args, run.model)
    return next((baseline for baseline in baselines if baseline.key == key and baseline.summary["mean"]), None)


def headline(run: ReportedRun, random: Baseline | None, whole: Baseline | None) -> str:
    """A line such as '+8.1 points over random real images; 89 % of whole-set accuracy', from the known baselines."""
    accuracy, parts = run.results["mean"], []
    if progress := sets.progress_text(run.results):
        parts.append(f"unfinished, {progress}")
    if random:
        gain = round(100 * (accuracy - random.summary["mean"]), 1)
        parts.append(f"{gain:+.1f} points {'over' if gain >= 0 else 'against'} random real images")
    if whole:
        parts.append(f"{100 * accuracy / whole.summary['mean']:.0f} % of whole-set accuracy")
    return "; ".join(parts) or f"{100 * accuracy:.2f} % accuracy"


# --- statistics --------------------------------------------------------------------------------------------


@torch.no_grad()
def embed_classes(run: ReportedRun, images: Callable[[int], Tensor]) -> ClassFeatures:
    """The features of images(class) under one untrained network of the run's architecture, at its published taps."""
    data, model = run.data, run.args["model"]
    net = empty_network(model, data.channel, data.num_classes, data.im_size, "cpu")
    net.tap("published" if net.sites.get("published") else "none")
    initialise(net, rng.generator(0, 0, 0, -1, "report")).eval()
    found = [features(net, images(c)[None], STATISTICS if net.taps else {}, Machine()) for c in range(data.num_classes)]
    return ClassFeatures([f.embedding[0] for f in found], [f.style for f in found])


def style_gaps(real: ClassFeatures, other: ClassFeatures) -> dict[str, list[float]]:
    """Relative L_MM and L_CM of each layer, averaged over classes."""
    layers = len(real.style[0].get("moments", []))
    gaps: dict[str, list[float]] = {"moments (L_MM)": [], "Gram (L_CM)": []}
    for layer in range(layers):
        mm, cm = [], []
        for r, o in zip(real.style, other.style, strict=True):
            mm.append(moments_distance([r["moments"][layer]], [o["moments"][layer]], "image", True).item())
            cm.append(gram_distance([r["grams"][layer]], [o["grams"][layer]], True).item())
        gaps["moments (L_MM)"].append(sum(mm) / len(mm))
        gaps["Gram (L_CM)"].append(sum(cm) / len(cm))
    return gaps


def spreads(images: ClassFeatures) -> list[float]:
    """The root mean squared distance of the embeddings of each class to their mean; 0 for one image."""
    return [(e - e.mean(0)).square().sum(1).mean().sqrt().item() for e in images.embedding]
