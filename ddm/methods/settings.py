"""Settings of recipes and coresets.

This module imports no torch, because `--help` must be fast. The tables behind the choices are in other modules; a test
compares both.
"""

from typing import ClassVar, NamedTuple

from ddm.data.settings import DataSettings
from ddm.evaluation.settings import ProtocolSettings
from ddm.settings import (
    MachineSettings,
    Role,
    Settings,
    a_path,
    altered,
    at_least,
    below_one,
    grouped,
    images_per_class,
    layer_numbers,
    non_negative,
)

objective = grouped("objective")
optimisation = grouped("optimisation")


class SetSettings(DataSettings, ProtocolSettings, MachineSettings):
    """A set to make: its data, size and evaluation."""

    ipc: int | str = optimisation(
        10,
        'images per class; or a .json file of class (name or number) to number, "*" for other classes',
        check=images_per_class,
    )


SCALE_FREE = {"optimizer": "normalised", "lr_img": None, "lr_schedule": "cosine"}  # lr_img 0.03, see OPTIMIZERS


class CacheSettings(Settings):
    """The cache of networks trained on real images."""

    network_cache: str | None = grouped("output")(
        None,
        "folder that caches networks trained on real images; unset: networks/ in --data_path",
        check=a_path,
        role=Role.PLACE,
        rare=True,
        spellings=("proxy_cache",),
    )


POOLED = ("trained", "mixed")  # the choices of --networks that need networks trained on real images


class PoolSettings(CacheSettings):
    """The distribution of networks under which images are matched."""

    networks: str = optimisation(
        "random",
        "networks of the steps; random: fresh ones; trained: from a pool, each at a random point of its training on "
        "the real images; mixed: either, at random; online: from a pool that trains on the synthetic set; only random "
        "is of DDM",
        choices=("random", *POOLED, "online"),
        rare=True,
    )
    pool: int = optimisation(10, "number of networks of a pool", check=at_least(1), rare=True)
    pool_epochs: int = optimisation(4, "training epochs of each on real images", check=at_least(1), rare=True)
    pool_lr: float = optimisation(0.05, "highest learning rate of their training", check=non_negative, rare=True)
    interpolate: bool = optimisation(
        True, "interpolate points of training between two kept snapshots; else take snapshots", rare=True
    )


class Chunks(NamedTuple):
    """The classes per pass over a run, --class_chunk: a number, and its changes by (experiment, iteration).

    Each out-of-memory error adds a change. A run with this record rounds like the recorded run.
    """

    first: int
    changes: dict[tuple[int, int], int]  # from this iteration on

    @classmethod
    def of(cls, value: int | str) -> "Chunks":
        """The chunks of a setting such as 10 or '10,5@0:200'. Raises UserError for other text."""
        first, *rest = str(value).split(",")
        changes = {}
        for change in rest:
            chunk, _, where = change.partition("@")
            experiment, _, iteration = where.partition(":")
            changes[at_least(0)(experiment), at_least(1)(iteration)] = at_least(1)(chunk)
        return cls(at_least(1 if rest else 0)(first), changes)

    def at(self, experiment: int, iteration: int) -> int:
        """The classes per pass in an iteration."""
        passed = [where for where in self.changes if where <= (experiment, iteration)]
        return self.changes[max(passed)] if passed else self.first

    def limited(self, most: int, where: tuple[int, int], start: tuple[int, int]) -> "Chunks":
        """At most `most` from an iteration on; `start` is the first iteration of the run."""
        later = {place: min(most, chunk) for place, chunk in self.changes.items() if place > where}
        if where <= start:
            return Chunks(most, later)
        earlier = {place: chunk for place, chunk in self.changes.items() if place < where}
        return Chunks(self.first, {**earlier, where: most, **later})

    def text(self) -> int | str:
        """The value of --class_chunk: the number, if it never changes."""
        parts, last = [str(self.first)], self.first
        for (experiment, iteration), chunk in sorted(self.changes.items()):
            if chunk != last:
                parts.append(f"{chunk}@{experiment}:{iteration}")
            last = chunk
        return ",".join(parts) if len(parts) > 1 else self.first


def class_chunks(text: str) -> int | str:
    """A check for `Chunks`; 0 means automatic."""
    return text if Chunks.of(text).changes else int(text)


class CondensingSettings(SetSettings, PoolSettings):
    """The optimisation settings of all recipes."""

    # Chosen on validation splits, see docs/tried.md and docs/speed.md.
    PRESETS: ClassVar = {
        "fast": {
            "real_sampling": "balanced",
            "batch_real": 32,
            **SCALE_FREE,
            "Iteration": 1000,
        },
    }

    preset: str | None = optimisation(
        None,
        "named settings, joined by commas; explicit flags override presets; fast: a short run",
        role=Role.PLACE,
    )
    init: str = optimisation(
        "real", "start from random real images or Gaussian noise", choices=("real", "noise"), rare=True
    )
    Iteration: int = optimisation(20000, "steps of condensation", check=at_least(1))
    optimizer: str = optimisation(
        "sgd",
        "optimizer of the pixels; normalised and adam ignore the scale of losses",
        choices=("sgd", "normalised", "adam"),
    )
    lr_img: float | None = optimisation(
        1.0, "learning rate of the pixels; with normalised give 0.03, with adam 0.1", check=non_negative
    )
    lr_schedule: str = optimisation(
        "constant", "schedule of lr_img over the iterations", choices=("constant", "cosine"), rare=True
    )
    momentum_img: float = optimisation(0.5, "momentum of sgd and normalised", check=below_one, rare=True)
    factor: int | None = optimisation(
        1,
        "split each stored image into factor x factor images, scaled up; ipc counts stored ones; unset: 2, or 1 if the "
        "sides are odd or below 28; not of DDM",
        check=at_least(1),
        rare=True,
    )
    clip_pixels: bool = optimisation(
        False, "keep the pixels in [0, 1], so that exported pictures differ only by rounding"
    )
    batch_real: int = optimisation(256, "real images per class and step, if the class has as many", check=at_least(1))
    real_sampling: str = optimisation(
        "random",
        "random, or balanced: picks real images whose mean embedding is close to the class mean, by herding from 4x as "
        "many random candidates",
        rare=True,
    )
    dis_metric: str = optimisation(
        "ours", "accepted as published; only gradient matching (match_loss) reads it", rare=True
    )
    class_chunk: int | str = grouped("machine")(
        0,
        "classes per pass; fewer need less memory; 0: automatic; 10,5@0:200: 5 from iteration 200 of experiment 0, as "
        "results.json records it after an out-of-memory error",
        check=class_chunks,
        role=Role.MANNER,
        chosen=True,
        rare=True,
    )
    graphs: str = grouped("machine")(
        "auto",
        "run a step as one CUDA graph; auto: on CUDA, in one process, if all its operations allow it",
        choices=("auto", "off"),
        role=Role.MANNER,
        rare=True,
    )
    on_nonfinite: str = optimisation(
        "stop",
        "stop or skip a step with a non-finite loss, gradient or pixel; results.json lists skipped steps",
        choices=("stop", "skip"),
        role=Role.MANNER,
        rare=True,
    )


class StyleSettings(Settings):
    """The feature maps and statistics of L_MM and L_CM."""

    style_tap: str = objective(
        "published",
        "layers of the feature maps; published: the activations (AlexNet: poolings, ResNet18: stages)",
        choices=("published", "conv", "norm", "act", "pool"),
        rare=True,
    )
    style_layers: str = objective("all", "layers to read, from 0, such as 0,2; or all", check=layer_numbers, rare=True)
    style_stats: str = objective(
        "batch",
        "L_MM: batch: moments of the batch-mean map; image: the mean over images of each image's moments",
        choices=("batch", "image"),
        rare=True,
    )
    style_scale: str = objective(
        "absolute",
        "relative: divide each style term by the squared magnitude of its real statistic, layer by layer",
        choices=("absolute", "relative"),
        rare=True,
    )
    published_accumulator: bool = objective(
        False,
        "weight classes as in the published scripts, which never reset their sum (early classes count more)",
        rare=True,
    )


class DiversitySettings(Settings):
    """The form of L_ICD, intra-class diversity."""

    icd_form: str = objective(
        "kl",
        "kl: divergence from the nearest neighbours (unbounded); spread: deviations along the real data's principal "
        "directions",
        choices=("kl", "spread"),
        rare=True,
    )
    k: int | None = objective(
        None,
        "nearest neighbours; unset: a fifth of a class's (decoded) images, rounded, at least 1",
        check=at_least(1),
        rare=True,
    )


class WeightSettings(StyleSettings, DiversitySettings):
    """The weights of the terms of the complete objective."""

    weights: str = objective(
        "absolute",
        "absolute: factors of losses; balanced: gradient norms relative to L_MMD's",
        choices=("absolute", "balanced"),
    )
    mmd_ratio: float = objective(1.0, "weight of L_MMD, the mean embedding", check=non_negative)
    mm_ratio: float = objective(10000.0, "weight of L_MM, channel moments", check=non_negative)
    cm_ratio: float = objective(10000.0, "weight of L_CM, Gram matrices", check=non_negative)
    icd_ratio: float = objective(10.0, "weight of L_ICD, intra-class diversity", check=non_negative)
    rr_ratio: float = objective(
        0.0,
        "weight of L_RR, the error of a ridge regression fitted to the set; not of DDM",
        check=non_negative,
    )
    ce_ratio: float = objective(
        0.0,
        "weight of L_CE, the cross-entropy under a fully trained network of the pool; not of DDM",
        check=non_negative,
        rare=True,
    )
    rr_ridge: float = objective(0.1, "L_RR: ridge, relative to the kernel's diagonal", check=non_negative, rare=True)


DM = {"weights": "absolute", "mmd_ratio": 1.0, "mm_ratio": 0.0, "cm_ratio": 0.0, "icd_ratio": 0.0}
DM |= {"rr_ratio": 0.0, "ce_ratio": 0.0}
PLAIN = {"networks": "random", "factor": 1}  # the networks and images of DM
BEST = DM | {"weights": "balanced", "rr_ratio": 3.0, "rr_ridge": 0.1, "clip_pixels": True} | SCALE_FREE
AS_PUBLISHED = {"style_tap": "published", "style_stats": "batch", "style_scale": "absolute"}
AS_PUBLISHED |= {"icd_form": "kl", "k": None}  # k depends on ipc


class CompleteSettings(CondensingSettings, WeightSettings):
    """The complete objective and its presets."""

    PRESETS: ClassVar = {
        **CondensingSettings.PRESETS,
        "dm": DM,
        "published": DM | AS_PUBLISHED | {"mm_ratio": 10000.0, "icd_ratio": 10.0},  # k = 2 at ipc 10
        "paper": DM | AS_PUBLISHED | {"mm_ratio": 10000.0, "cm_ratio": 10000.0, "icd_ratio": 10.0},
        # The authors' later code weights an absolute L_CM with 10000. For CIFAR10 a relative weight of 700 is similar.
        "style": {
            **DM,
            **{"style_tap": "conv", "style_stats": "image", "style_scale": "relative"},
            **{"mm_ratio": 180.0, "cm_ratio": 700.0},
        },
        # Chosen on validation splits of several data sets by scripts/choose_presets.sh, see docs/results.md.
        "best": BEST,
        # Not comparable with the others: several images per stored image, and networks trained on real images.
        "strong": BEST | {"factor": None, "networks": "mixed", "rr_ratio": 0.3, "ce_ratio": 3.0},
    }

    preset: str | None = altered(
        CondensingSettings,
        "preset",
        help="named settings, joined by commas; explicit flags override. fast: a short run; dm: plain DM; paper: all "
        "terms; published: those of its code; style: the authors' later ones; not of the paper: best: L_MMD and L_RR; "
        "strong: best, split images, L_CE",
    )


class ProxySettings(CacheSettings):
    """The trained network of herding, k-center, k-means and the difficulty scores."""

    proxy_epochs: int = optimisation(20, "training epochs of the network that coreset methods use", check=at_least(1))


class CoresetSettings(SetSettings, ProxySettings):
    """The settings of coresets."""

    method: str = objective(
        "random", "random, herding, kcenter, kmeans, forgetting, uncertainty, el2n, grand or full (all images)"
    )
    order: str = objective("hardest", "images that a difficulty score selects", choices=("easiest", "hardest"))
    subset_size: int = optimisation(
        0, "with --method full: number of random images; 0: all", check=at_least(0), rare=True
    )
