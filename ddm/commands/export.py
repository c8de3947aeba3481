"""`ddm export`: converts a condensed set to the formats that others read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddm import disk, drawing
from ddm.commands.settings import ExportSettings, roles
from ddm.data.images import Normalisation
from ddm.data.layouts import file_name
from ddm.data.loading import check_name, load, short_name
from ddm.errors import UserError
from ddm.evaluation import sets
from ddm.evaluation.protocol import describe
from ddm.evaluation.sets import CondensedDataset, set_accuracies
from ddm.settings import Role


class Set(NamedTuple):
    """A condensed set and what is known of it."""

    images: Tensor  # [N, C, H, W], normalised
    pixels: Tensor  # the same in [0, 1], clipped
    labels: Tensor
    class_names: list[str]
    normalisation: Normalisation
    metadata: dict  # what its file says
    dataset: str
    experiment: int  # its number in the file

    @property
    def bytes(self) -> np.ndarray:
        """uint8 [N, H, W, C]."""
        return (self.pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    @property
    def whitened(self) -> bool:
        return self.normalisation.whitened

    @property
    def accuracies(self) -> dict[str, list[float]]:
        return set_accuracies(self.metadata, self.experiment)


def load_set(settings: ExportSettings) -> Set:
    """The set to export; constants and class names come from its file or, where it has none, from --dataset."""
    s, told = settings, sets.metadata(settings.file)
    args = told.get("args", {})
    if {"mean", "std", "class_names"} <= told.keys() and s.dataset is None:
        found = CondensedDataset(s.file, s.experiment)
        normalisation = Normalisation.of(found.mean, found.std, told.get("zca"))
        pixels, name = normalisation.pixels(found.images), short_name(args.get("dataset", ""))
        return Set(found.images, pixels, found.labels, found.class_names, normalisation, told, name, s.experiment)
    if s.dataset is None:
        raise UserError(f"{s.file} does not say which data set it is of: give --dataset (and --data_path)")
    data = load(s.dataset, s.data_path, s.res)
    data = data.whitened() if s.zca else data
    (found,), notes = sets.read(s.file, data, s.space, str(s.experiment))
    for note in notes:
        print(f"note: {note}")
    own = data.normalisation
    pixels = own.pixels(found.images)
    return Set(found.images, pixels, found.labels, data.class_names, own, told, data.name, s.experiment)


# --- formats: (set, an empty place to write to) ------------------------------------------------------------


def to_png(found: Set, out: Path) -> None:
    from PIL import Image  # imported here: only pictures need it

    digits = len(str(len(found.class_names) - 1))
    counts: dict[int, int] = {}
    for image, label in zip(found.bytes, found.labels.tolist(), strict=True):
        folder = out / f"{label:0{digits}}_{file_name(found.class_names[label])}"
        folder.mkdir(parents=True, exist_ok=True)
        k = counts[label] = counts.get(label, -1) + 1
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{k:04}.png")


def to_npz(found: Set, out: Path) -> None:
    with open(out, "wb") as file:
        np.savez_compressed(
            file, x_train=found.bytes, y_train=found.labels.numpy(), classes=np.array(found.class_names)
        )


def to_tensor(found: Set, out: Path) -> None:
    disk.save(out, [found.pixels, found.labels])


def metadata(found: Set) -> dict[str, str]:
    own = found.normalisation
    told = {"space": "normalised", "dataset": found.dataset, "mean": own.mean, "std": own.std}
    args = dict(found.metadata.get("args", {}))
    if args:
        args = sets.alone(args, found.experiment)
    told |= {"class_names": found.class_names, "args": args}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}


def refuse_whitened(found: Set, to: str) -> None:
    if found.whitened:
        raise UserError(f"--to {to}: a whitened set needs its inverse transform; keep its own file, or export png")


def to_safetensors(found: Set, out: Path) -> None:
    try:
        from safetensors.torch import save as safetensors_of  # optional: only this format needs it
    except ImportError:
        raise UserError("--to safetensors needs the package safetensors: pip install safetensors") from None
    refuse_whitened(found, "safetensors")
    out.write_bytes(safetensors_of({"images": found.images.contiguous(), "labels": found.labels}, metadata(found)))


def to_hf(found: Set, out: Path) -> None:
    try:
        from datasets import ClassLabel, Dataset, Features, Image  # the package of that name, not ours
    except ImportError:
        raise UserError("--to hf needs the package datasets: pip install datasets") from None
    from PIL import Image as Picture

    features = Features({"image": Image(), "label": ClassLabel(names=found.class_names)})
    pictures = [Picture.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in found.bytes]
    Dataset.from_dict({"image": pictures, "label": found.labels.tolist()}, features=features).save_to_disk(str(out))


def to_dcbench(found: Set, out: Path) -> None:
    refuse_whitened(found, "dcbench")
    ipc = len(found.labels) // len(found.class_names)
    folder = out / "DM" / found.dataset / f"IPC{ipc}"
    folder.mkdir(parents=True)
    content = {"data": [[found.images, found.labels]], "accs_all_exps": found.accuracies}
    disk.save(folder / f"res_DM_{found.dataset}_ConvNet_{ipc}ipc.pt", content)


def to_card(found: Set, out: Path) -> None:
    out.mkdir()
    counts = torch.bincount(found.labels, minlength=len(found.class_names)).tolist()
    tiles = drawing.in_rows(found.pixels[found.labels.argsort(stable=True)], counts, smallest=64)
    (out / "images.png").write_bytes(drawing.png(tiles, max(counts)))
    args, own = found.metadata.get("args", {}), found.normalisation
    shape = "x".join(map(str, found.images.shape[1:]))
    each = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    lines = [
        f"# {found.dataset}, condensed to {len(found.labels)} images",
        "",
        "![the images, a row a class](images.png)",
        "",
    ]
    lines += ["| | |", "|---|---|", f"| data set | {found.dataset}, {len(found.class_names)} classes |"]
    lines += [f"| images | {len(found.labels)} of {shape}, {each} per class |"]
    how = "the file does not say by which protocol"
    if args:
        weights = ", ".join(f"{key} {value:g}" for key, value in args.items() if key.endswith("_ratio") and value)
        made_by = " ".join(str(args[key]) for key in ("recipe", "method") if key in args) or "?"
        lines += [f"| made by | {made_by}{f' ({weights})' if weights else ''} |", f"| seed | {args.get('seed')} |"]
        how = f"{args.get('eval_split', 'test')} set, last epoch of {args.get('epoch_eval_train', 1000) + 1}"
    lines += [f"| accuracy, {model} | {describe(values)} ({how}) |" for model, values in found.accuracies.items()]
    constants = f"(pixel - mean) / std, mean {own.mean}, std {own.std}"
    lines += [f"| normalisation | {'ZCA-whitened; its own file has the inverse' if own.whitened else constants} |", ""]
    if args:
        lines += ["## Made with", "", f"    {command(found)}", ""]
    lines += ["## Classes", "", ", ".join(f"{c} {name}" for c, name in enumerate(found.class_names)), ""]
    starts = "" if args.get("init") == "noise" else " and start from real images of it"
    lines += ["## Licence", "", LICENCE.format(dataset=found.dataset, starts=starts), ""]
    (out / "README.md").write_text("\n".join(lines))


def command(found: Set) -> str:
    """The command that makes this set again, with every flag, except those of the machine it was made on."""
    args = found.metadata["args"]
    asked = found.metadata.get("asked", args) | sets.alone({"first_exp": args.get("first_exp", 0)}, found.experiment)
    known = roles()
    told = {key: value for key, value in asked.items() if known.get(key) is not Role.PLACE}
    told = {key: value for key, value in told.items() if value is not None and value is not False}  # a seed of 0 stays
    words = (f"--{key}" if value is True else f"--{key} {value}" for key, value in told.items())
    recipe = args.get("recipe", "?")
    return f"{'ddm coreset' if recipe == 'coreset' else f'python {recipe}.py'} {' '.join(words)}"


LICENCE = (
    "These images were computed from {dataset}{starts}. Whoever passes them on is bound by the terms of {dataset}. The "
    "code that made them is under the MIT licence."
)

FORMATS: dict[str, Callable[[Set, Path], None]] = {
    "png": to_png,
    "npz": to_npz,
    "tensor": to_tensor,
    "safetensors": to_safetensors,
    "hf": to_hf,
    "dcbench": to_dcbench,
    "card": to_card,
}


CLIPPED = ("png", "npz", "tensor", "hf")
SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors"}


def run(settings: ExportSettings) -> None:
    """Write --out. Raises UserError for what the user can correct."""
    s, out = settings, Path(settings.out)
    suffix = SUFFIXES.get(s.to, "")
    if suffix and out.suffix != suffix:
        raise UserError(f"--out {s.out!r}: the name of such a file ends in {suffix}, or others won't read it")
    if s.dataset is not None:
        check_name(s.dataset)
    elif s.zca or s.res:
        raise UserError("--zca and --res describe the data set: give --dataset as well")
    if out.exists():
        raise UserError(f"--out {s.out!r} exists already: name another")
    found = load_set(settings)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with disk.beside(out) as tmp:
            FORMATS[s.to](found, tmp)
    except OSError as error:
        raise UserError(f"--out {s.out!r} can't be written ({error.strerror or error})") from None
    clipped = ""
    if s.to in CLIPPED and not found.whitened:  # how much of a whitened set was clipped is not known
        beyond = ((found.images - found.normalisation.normalise(found.pixels)).abs() > 1e-3).float().mean().item()
        clipped = f", {100 * beyond:.1f} % of the values were outside [0, 1] and are clipped"
    print(f"{len(found.labels)} images of {len(found.class_names)} classes in {out}{clipped}")
