"""The frozen Plan: all values that depend on settings and data, computed once before any file is written."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ddm import device, ranks, torchrun
from ddm.augment import operations_of
from ddm.data.images import ImageData
from ddm.data.loading import check_name
from ddm.data.partition import check_factor, decoded_labels, default_factor
from ddm.device import Machine
from ddm.errors import UserError, lookup
from ddm.evaluation.protocol import EVAL_MODES, check_networks
from ddm.methods.matching import Needs, has_batch_norm, pass_pixels
from ddm.methods.optimizers import OPTIMIZERS
from ddm.methods.sampling import SAMPLERS
from ddm.methods.settings import POOLED, Chunks, CondensingSettings, SetSettings
from ddm.networks import ARCHITECTURES, Network, empty_network
from ddm.ranks import Ranks

LARGE_LR = 100  # lr_img of SGD that is warned of at up to 10 images per class
LARGE_STEP = 0.5  # lr_img of other optimizers that is warned of, in standard deviations of the pixels per step


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a set: the settings with all values filled in, and values that depend on the data.

    `settings` includes the values that data and machine determine (lr_img, batch_real, class_chunk, precision, compile,
    device). results.json and the set's file record these values.
    """

    settings: Any  # of the maker's settings class
    counts: tuple[int, ...]  # stored images of each class
    machine: Machine
    ranks: Ranks
    chunk: int = 0  # classes per pass now, see `Chunks`; 0: the maker has no passes
    whole: bool = False  # all classes go through the network in one pass
    factor: int = 1  # a stored image holds factor x factor images, see data/partition.py

    @property
    def classes(self) -> range:
        """The classes of this rank."""
        return self.ranks.share(len(self.counts))

    def rows(self, classes: range) -> slice:
        """The rows of some classes' stored images in a whole set."""
        return slice(sum(self.counts[: classes.start]), sum(self.counts[: classes.stop]))

    def chunks(self) -> Iterator[range]:
        """This rank's classes in chunks of at most `chunk` consecutive classes with equal image counts."""
        first, stop = self.classes.start, self.classes.stop
        while first < stop:
            last = first + 1
            while last < min(first + self.chunk, stop) and self.counts[last] == self.counts[first]:
                last += 1
            yield range(first, last)
            first = last

    def labels(self) -> torch.Tensor:
        """The labels [N] of a whole set, decoded, on the device."""
        labels = torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))
        return decoded_labels(labels, self.factor).to(self.machine.device)

    def at(self, experiment: int, iteration: int) -> "Plan":
        """The plan of an iteration: out-of-memory errors in an earlier run may have halved the chunk there."""
        if isinstance(self.settings.class_chunk, int):
            return self
        return replace(self, chunk=Chunks.of(self.settings.class_chunk).at(experiment, iteration))

    def halved(self, experiment: int, iteration: int) -> "Plan":
        """The plan with half as many classes at a time from an iteration on, after running out of memory there.

        Raises UserError if no smaller chunk is possible.
        """
        if self.chunk == 1 or self.whole:
            raise UserError(
                f"out of memory with {self.chunk} class(es) at a time: lower --batch_real or --ipc, or choose a "
                "smaller --model"
            )
        first = self.settings.values().get("first_exp", 0)  # continual has none
        chunk, start = self.chunk // 2, (first, 1)
        chunks = Chunks.of(self.settings.class_chunk).limited(chunk, (experiment, iteration), start)
        return replace(self, settings=self.settings.but(class_chunk=chunks.text()), chunk=chunk)


def settle(settings: SetSettings) -> SetSettings:
    """Check all names in the settings before reading data; fill in the device and, for a number ipc, lr_img.

    Raises UserError with the nearest valid name.
    """
    check_name(settings.dataset)
    lookup(ARCHITECTURES, settings.model, "model")
    lookup(dict.fromkeys(EVAL_MODES), settings.eval_mode, "eval_mode")
    operations_of(settings.dsa_strategy)
    if isinstance(settings, CondensingSettings):
        lookup(SAMPLERS, settings.real_sampling, "real_sampling")
        if settings.lr_img is None and isinstance(settings.ipc, int):  # a .json file needs the classes: see the plan
            settings = settings.but(lr_img=OPTIMIZERS[settings.optimizer].lr(settings.ipc))
    return settings.but(device=ranks.local_device(settings.device))


def cautions(settings: CondensingSettings, counts: Sequence[int]) -> list[str]:
    """One warning line for each setting that is valid but has no effect or a doubtful one."""
    values, lines = settings.values(), []
    if settings.lr_img == 0:
        lines.append("--lr_img 0 changes no pixel: the set stays at its first images")
    large = LARGE_LR * max(1, max(counts) / 10) if settings.optimizer == "sgd" else LARGE_STEP
    if settings.lr_img > large:
        lines.append(f"--lr_img {settings.lr_img:g} is very large for {settings.optimizer}: watch the pixels' range")
    if values.get("icd_ratio") and max(counts) * settings.factor**2 == 1:
        lines.append("--icd_ratio has no effect with 1 image per class: L_ICD compares an image with its neighbours")
    return lines


def condensing_plan(
    settings: CondensingSettings, data: ImageData, needs: Needs, group: Ranks | None = None
) -> tuple[Plan, Network]:
    """The plan of a recipe and its network, with the taps that the objective needs.

    Raises UserError if the settings do not fit the data.
    """
    group = group or Ranks()
    if group.world > data.num_classes:
        raise UserError(f"{group.world} ranks for {data.num_classes} classes: start as many or fewer")
    if settings.clip_pixels and data.normalisation.whitened:
        raise UserError(
            "--clip_pixels (also in --preset best): whitened images have no range [0, 1]: add --no-clip_pixels or "
            "leave --zca out"
        )
    settings = with_factor(settings, data)
    counts = images_per_class(data, settings.ipc, settings.factor**2)
    if settings.lr_img is None:
        settings = settings.but(lr_img=OPTIMIZERS[settings.optimizer].lr(sum(counts) / len(counts)))
    settings = settings.but(batch_real=min(settings.batch_real, max(map(len, data.indices))))
    net = tapped_network(settings, data, needs)
    check_networks(settings, data)
    whole = has_batch_norm(net) or needs.all_classes
    if whole:
        check_whole(settings, net, needs, counts, group)
    pixels = condensing_pixels(settings, data, counts, pooled(settings, needs))
    chunks = chunks_of(settings, data, counts, group, whole)
    machine = device.choose(settings, settings.device, pixels)
    plan = Plan(
        settings=settings.but(class_chunk=chunks.text(), precision=machine.precision, compile=machine.compile),
        counts=tuple(counts),
        machine=machine,
        ranks=group,
        chunk=chunks.first,
        whole=whole,
        factor=settings.factor,
    )
    return plan, machine.laid_out_net(net).requires_grad_(False).train()


def tapped_network(settings: CondensingSettings, data: ImageData, needs: Needs) -> Network:
    """An empty network with the taps that the objective needs. Raises UserError if it has none."""
    net = empty_network(settings.model, data.channel, data.num_classes, data.im_size, settings.device)
    try:
        net.tap(needs.tap if needs.statistics else "none", list(needs.layers) if needs.layers else None)
    except UserError as error:
        raise UserError(f"--model {settings.model} {error}") from None
    return net


def check_whole(settings: CondensingSettings, net: Network, needs: Needs, counts: Sequence[int], group: Ranks) -> None:
    """Raise UserError if all classes must share a pass, and can't."""
    what = "BatchNorm" if has_batch_norm(net) else "the objective (such as L_RR, --rr_ratio)"
    if group.world > 1 and (has_batch_norm(net) or not needs.gathers):
        raise UserError(f"{what} runs over all classes at once and can't be split over ranks: start one process")
    if len(set(counts)) > 1:
        raise UserError(f"--ipc {settings.ipc}: {what} needs equal numbers of images per class: give a number")


def chunks_of(
    settings: CondensingSettings, data: ImageData, counts: Sequence[int], group: Ranks, whole: bool
) -> Chunks:
    """The classes per pass, at most those of this rank."""
    if whole:
        chosen: int | str = data.num_classes
    else:
        chosen = settings.class_chunk or choose_chunk(settings, data, counts, group)
    chunks, most = Chunks.of(chosen), len(group.share(len(counts)))
    return Chunks(min(chunks.first, most), {at: min(chunk, most) for at, chunk in chunks.changes.items()})


def with_factor(settings: CondensingSettings, data: ImageData) -> CondensingSettings:
    """Fill in --factor. Raises UserError if the images can't be split."""
    factor, whitened = settings.factor, data.normalisation.whitened
    if factor is None:
        factor = 1 if whitened else default_factor(data.im_size)
    if factor > 1 and whitened:
        raise UserError(f"--factor {factor}: whitened images can't be scaled: leave --zca out")
    check_factor(factor, data.im_size)
    return settings.but(factor=factor)


def choose_chunk(
    settings: CondensingSettings, data: ImageData, counts: Sequence[int], group: Ranks | None = None
) -> int:
    """Choose the classes per backward: as many as are fast on the device and fit its memory budget.

    The result divides the number of classes, so that all chunks have one shape and are compiled once.
    """
    height, width = data.im_size
    ipc, classes = max(counts) * settings.factor**2, len((group or Ranks()).share(len(counts)))
    most = pass_pixels(settings.device) // (ipc * height * width)
    net = empty_network(settings.model, data.channel, data.num_classes, data.im_size, "meta")
    needed = device.class_bytes(net, data.shape, settings.batch_real, ipc)
    budget = device.memory_budget(settings.device)
    if budget is not None:  # the rest is for real images and other processes
        sharing = torchrun.ranks_on_this_host() if settings.device == "cpu" else 1
        most = min(most, budget // needed // sharing)
    return max(n for n in range(1, classes + 1) if classes % n == 0 and n <= max(1, most))


def pooled(settings: CondensingSettings, needs: Needs) -> bool:
    """Whether the run has a pool of networks trained on real images."""
    return settings.networks in POOLED or needs.logits


def condensing_pixels(settings: CondensingSettings, data: ImageData, counts: Sequence[int], pool: bool) -> int:
    """The pixels that pass networks in one experiment's condensation and its pool; a backward counts as two forwards.

    Evaluations and the number of experiments do not count: they must not change the computation of an experiment.
    """
    synthetic = sum(counts) * settings.factor**2
    images = settings.Iteration * (data.num_classes * settings.batch_real + 3 * synthetic)
    if pool:
        images += 3 * settings.pool * settings.pool_epochs * len(data.x_train)
    return images * data.im_size[0] * data.im_size[1]


# --- images per class ------------------------------------------------------------------------------------------


def images_per_class(data: ImageData, ipc: int | str, held: int = 1) -> list[int]:
    """Convert --ipc, a number or the path of a .json file, to one number per class.

    The file maps class names or numbers to numbers of images; "*" means all other classes. Each image holds `held`
    images. Raises UserError if a class is missing, or has fewer training images than requested.
    """
    counts = [ipc] * data.num_classes if isinstance(ipc, int) else _read_counts(data, ipc)
    for c, (size, count) in enumerate(zip(map(len, data.indices), counts, strict=True)):
        if size < count * held or not size:
            least = min(map(len, data.indices)) // held
            advice = f"lower --ipc to {least} or less" if least else "every class needs training images"
            name = f"class {c} ({data.class_names[c]}) of {data.name}"
            more = f", {held} in each (--factor)" if held > 1 else ""
            shortage = f"fewer than the {count * held} of --ipc {ipc}{more}"
            raise UserError(f"{name} has {size} training images, {shortage}: {advice}")
    return counts


def _read_counts(data: ImageData, path: str) -> list[int]:
    try:
        with open(path) as file:
            found = json.load(file)
        named = {str(name): count for name, count in found.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f'--ipc {path}: not a readable .json ({type(error).__name__}): write an object such as {{"0": 5, "1": 3}}'
        ) from None
    counts, known = [], {"*"}
    for c, name in enumerate(data.class_names):
        key = name if name in named or str(c) in data.class_names else str(c)  # a class name may be a number
        count = named.get(key, named.get("*"))
        known.add(key)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            what = "names no number for it" if count is None else f"says {count!r}: give an integer >= 1"
            raise UserError(f"--ipc {path}: class {c} is {name!r} in {data.name}, the file {what}")
        counts.append(count)
    unknown = named.keys() - known
    if unknown:
        raise UserError(f"--ipc {path}: {data.name} has no class {sorted(unknown)[0]!r}: correct the name")
    return counts
