"""Hand a condensed set on, in the format that others read.

    python export.py result/res_DM_CIFAR10_ConvNet_10ipc.pt --to png --out cifar10_10ipc

| --to | --out | pixels |
|---|---|---|
| png | folder of class folders of PNG files | rounded to 8 bits, clipped |
| npz | Keras layout: x_train uint8 [N, H, W, C], y_train, classes | rounded to 8 bits, clipped |
| tensor | torch file of [images in [0, 1], labels] | clipped |
| safetensors | images, labels, and metadata that says how they are normalised | as they are |
| hf | Hugging Face `datasets` folder: image, label (needs the package datasets) | rounded to 8 bits, clipped |
| dcbench | DM/<dataset>/IPC<ipc>/res_DM_<dataset>_ConvNet_<ipc>ipc.pt below --out | as they are |
| card | Markdown that says what the set is, with a picture beside it | |

`python evaluate.py` reads the first four and dcbench back.
"""

import io
import json
import os
import shutil
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddm.data import data as datasets
from ddm import flags
from ddm.evaluation import synsets
from ddm.errors import UserError
from ddm.runs.files import in_rows
from ddm.data.layouts import file_name
from ddm.evaluation.training import describe


class Set(NamedTuple):
    """A condensed set and what is known of it."""

    images: Tensor  # [N, C, H, W], normalised
    pixels: Tensor  # the same in [0, 1], clipped
    labels: Tensor
    class_names: list[str]
    mean: list[float]
    std: list[float]
    about: dict  # what its file says
    dataset: str
    experiment: int  # its number in the file

    @property
    def bytes(self) -> np.ndarray:
        """uint8 [N, H, W, C]."""
        return (self.pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def load(args: Namespace) -> Set:
    """The set to export; constants and class names come from its file or, where it has none, from --dataset."""
    about = synsets.about(args.file)
    own = about.get("args", {})
    if {"mean", "std", "class_names"} <= about.keys() and args.dataset is None:
        found = synsets.CondensedDataset(args.file, args.experiment)
        pixels = synsets.CondensedDataset(args.file, args.experiment, pixels=True).images
        known = found.class_names, found.mean, found.std
        name = datasets.short_name(own.get("dataset", ""))
        return Set(found.images, pixels, found.labels, *known, about, name, args.experiment)
    if args.dataset is None:
        raise UserError(f"{args.file} does not say which data set it is of: say --dataset (and --data_path)")
    data = datasets.load(args.dataset, args.data_path, args.res)
    data = data.whitened() if args.zca else data
    (found,), notes = synsets.read(args.file, data, args.space, str(args.experiment))
    for note in notes:
        print(f"note: {note}")
    pixels = data.denormalise(found.images)
    known = data.class_names, data.mean, data.std
    return Set(found.images, pixels, found.labels, *known, about, data.name, args.experiment)


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
    save(out, [found.pixels, found.labels])


def save(out: Path, content: object) -> None:
    """As torch.save, which raises whatever where the disk refuses; a plain write says what it is."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    out.write_bytes(buffer.getbuffer())


def metadata(found: Set) -> dict[str, str]:
    told = {"space": "normalised", "dataset": found.dataset, "mean": found.mean, "std": found.std}
    args = dict(found.about.get("args", {}))
    if args:  # of this set alone, so that the networks that scored it do so again
        args |= {"first_exp": args.get("first_exp", 0) + found.experiment, "num_exp": 1}
    told |= {"class_names": found.class_names, "args": args}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}


def refuse_whitened(found: Set, to: str) -> None:
    if found.about.get("zca") is not None:
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
    content = {"data": [[found.images, found.labels]], "accs_all_exps": accuracies(found)}
    save(folder / f"res_DM_{found.dataset}_ConvNet_{ipc}ipc.pt", content)


def accuracies(found: Set) -> dict[str, list[float]]:
    """Of this set alone, by network; of a file that does not say how many experiments it has, all of them."""
    accs = found.about.get("accs_all_exps")
    accs = accs if isinstance(accs, dict) else {}
    sets = found.about.get("args", {}).get("num_exp", 1)
    own = {}
    for model, values in accs.items():
        values = [float(acc) for acc in values] if isinstance(values, list | tuple) else []
        n = len(values) // sets
        own[model] = values[n * found.experiment : n * (found.experiment + 1)] if n * sets == len(values) else values
    return {model: values for model, values in own.items() if values}


def to_card(found: Set, out: Path) -> None:
    from torchvision.utils import save_image  # imported here: only pictures need it

    out.mkdir()
    counts = torch.bincount(found.labels, minlength=len(found.class_names)).tolist()
    tiles = in_rows(found.pixels[found.labels.argsort(stable=True)], counts, smallest=64)
    save_image(tiles, out / "images.png", nrow=max(counts))
    args, whitened = found.about.get("args", {}), found.about.get("zca") is not None
    shape = "x".join(map(str, found.images.shape[1:]))
    each = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    lines = [
        f"# {found.dataset}, condensed to {len(found.labels)} images",
        "",
        "![the images, a row a class](images.png)",
        "",
    ]
    lines += ["| | |", "|---|---|", f"| data set | {found.dataset}, {len(found.class_names)} classes |"]
    lines += [f"| images | {len(found.labels)} of {shape}, {each} a class |"]
    how = "the file does not say by which protocol"
    if args:
        weights = ", ".join(f"{key} {value:g}" for key, value in args.items() if key.endswith("_ratio") and value)
        made_by = " ".join(str(args[key]) for key in ("recipe", "method") if key in args) or "?"
        lines += [f"| made by | {made_by}{f' ({weights})' if weights else ''} |", f"| seed | {args.get('seed')} |"]
        how = f"{args.get('eval_split', 'test')} set, last epoch of {args.get('epoch_eval_train', 1000) + 1}"
    lines += [f"| accuracy, {model} | {describe(values)} ({how}) |" for model, values in accuracies(found).items()]
    constants = f"(pixel - mean) / std, mean {found.mean}, std {found.std}"
    lines += [f"| normalisation | {'ZCA-whitened; its own file has the inverse' if whitened else constants} |", ""]
    if args:
        lines += ["## Made with", "", f"    {command(found)}", ""]
    lines += ["## Classes", "", ", ".join(f"{c} {name}" for c, name in enumerate(found.class_names)), ""]
    starts = "" if args.get("init") == "noise" else " and start from real images of it"
    lines += ["## Licence", "", LICENCE.format(dataset=found.dataset, starts=starts), ""]
    (out / "README.md").write_text("\n".join(lines))


def command(found: Set) -> str:
    """The command that makes this set again, every flag said, where nothing is of the machine it was made on."""
    args = found.about["args"]
    asked = dict(found.about.get("asked", args))
    asked |= {"first_exp": args.get("first_exp", 0) + found.experiment, "num_exp": 1}
    said = {key: value for key, value in asked.items() if key not in flags.NOT_ALIKE}
    said = {key: value for key, value in said.items() if value is not None and value is not False}  # a seed of 0 stays
    words = (f"--{key}" if value is True else f"--{key} {value}" for key, value in said.items())
    return f"python {args.get('recipe', '?')}.py {' '.join(words)}"


LICENCE = (
    "These images were computed from {dataset}{starts}: whoever hands them on is bound by the terms of {dataset}. The "
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


def run(args: Namespace) -> None:
    out = Path(args.out)
    if out.exists():
        raise UserError(f"--out {args.out!r} is there already: name another")
    found = load(args)
    tmp = out.with_name(f"{out.name}.{os.getpid()}.tmp")  # nobody sees half of it
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[args.to](found, tmp)
        os.replace(tmp, out)
    except OSError as error:
        raise UserError(f"--out {args.out!r} can't be written ({error.strerror or error})") from None
    finally:
        if tmp.is_dir():
            shutil.rmtree(tmp)
        tmp.unlink(missing_ok=True)
    beyond = ((found.images - renormalised(found)).abs() > 1e-3).float().mean().item()
    clipped = f", {100 * beyond:.1f} % of the values were outside [0, 1] and are clipped" if args.to in CLIPPED else ""
    print(f"{len(found.labels)} images of {len(found.class_names)} classes in {out}{clipped}")


CLIPPED = ("png", "npz", "tensor", "hf")


def renormalised(found: Set) -> Tensor:
    if found.about.get("zca") is not None:
        return found.images  # how much was clipped is not known
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (found.mean, found.std))
    return (found.pixels - mean) / std


def settle(args: Namespace) -> None:
    suffix = SUFFIXES.get(args.to, "")
    if suffix and Path(args.out).suffix != suffix:
        raise UserError(f"--out {args.out!r}: the name of such a file ends in {suffix}, or others won't read it")
    if args.dataset is not None:
        flags.settle_dataset(args)
    elif args.zca or args.res:
        raise UserError("--zca and --res are of the data set: say --dataset as well")


SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors"}


def make_parser() -> flags.Parser:
    parser = flags.Parser(__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="FILE", help="a condensed set, of ours or of the DC/DSA/DM family")
    flags.add_data_flags(parser, dataset=None)
    parser.data.add_argument(
        "--space", choices=synsets.SPACES, default="auto", help="of the pixels, if FILE is not ours"
    )
    parser.data.add_argument("--experiment", type=flags.at_least(0), default=0, help="which of the sets in FILE")
    parser.output.add_argument("--to", choices=tuple(FORMATS), required=True, help="format, see above")
    parser.output.add_argument("--out", type=flags.a_path, required=True, help="file or folder to write")
    return parser


if __name__ == "__main__":
    flags.main(make_parser(), run, settle)
