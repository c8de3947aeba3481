"""Reads condensed sets of ddm and the DC/DSA/DM family, pictures and arrays.

If a file does not record the space of its pixels, `read` guesses it from their range and reports the guess.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddm import disk
from ddm.augment import OPERATIONS, UNAUGMENTED
from ddm.data import layouts
from ddm.data.checks import listed
from ddm.data.images import ImageData, Normalisation
from ddm.data.loading import NAMES, is_path
from ddm.data.partition import check_factor, decoded, decoded_labels
from ddm.errors import UserError, first_line, nearest
from ddm.evaluation.plausibility import far_outside
from ddm.evaluation.settings import SpaceSettings
from ddm.networks import ARCHITECTURES, untapped
from ddm.settings import declarations

SPACES = declarations(SpaceSettings)["space"].choices  # auto; normalised; in [0, 1]; in 0 .. 255
# The arguments that determine the evaluation networks of a run. For a file without them `ddm evaluate` takes those of
# the other files, so that an export is evaluated on the same networks as the original set.
ORIGIN = ("first_exp", "Iteration")
CLASSES = "classes.json"  # in an exported folder of pictures: the class of every folder
# The types in pickles of numpy arrays and of numpy floats in published lists of accuracies; none of them runs code.
SAFE = [
    *(
        (getattr(np._core.multiarray, name), f"{package}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for package in ("numpy._core", "numpy.core")
    ),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8)),
]


class Synset(NamedTuple):
    """A condensed set: normalised images float32 [N, C, H, W], labels int64 [N].

    In a partitioned set they are decoded: a stored image holds factor x factor of them.
    """

    name: str
    images: Tensor
    labels: Tensor
    factor: int = 1
    file: str = ""  # the file, if it has several sets


class Contents(NamedTuple):
    """The contents of a file, before its pixels are interpreted."""

    sets: list[tuple[Tensor, Tensor]]
    metadata: dict  # the other entries of the file; "args", if present, is a dict
    space: str | None  # one of SPACES; None: not recorded
    notes: tuple[str, ...] = ()  # warnings about the labels
    decode: int = 1  # the factor by which `_contents` decodes the images, if they are stored ones


def metadata(path: str | Path) -> dict:
    """The entries of a file besides its images: arguments and more in files of ddm, usually none in others.

    Raises UserError for an unreadable file.
    """
    return _contents(Path(path), None).metadata


def count(path: str | Path) -> int:
    """The number of sets in a file; 1 for a folder of pictures. Raises UserError for an unreadable file."""
    return len(_contents(Path(path), None).sets) or 1


def read(
    path: str | Path, data: ImageData, space: str = "auto", experiments: str = "all"
) -> tuple[list[Synset], list[str]]:
    """Read the sets in a file or folder of pictures, normalised for `data`, and lines on how they were interpreted.

    The lines are 'note: <path>: ...' and 'warning: <set>: ...'. `space` is the space of the pixels for files that do
    not record it; 'auto' guesses it. `experiments` is 'all' or the number of one set. Raises UserError for unreadable
    files and sets that do not fit the data set.
    """
    path = Path(path)
    contents = _contents(path, data)
    notes, factor = list(contents.notes), factor_of(contents.metadata)
    notes += filter(None, [unfinished_text(contents.metadata)])
    if any(len(labels) % factor**2 for _, labels in contents.sets):
        raise UserError(f"{path} has images that are no multiple of {factor}x{factor}, its factor: use another file")
    sets = list(enumerate(contents.sets))
    if experiments != "all":
        sets = [entry for entry in sets if str(entry[0]) == experiments]
        if not sets:
            raise UserError(f"{path} has {len(contents.sets)} set(s), from 0, and no number {experiments}")
    synsets = []
    for number, (images, labels) in sets:
        _check_labels(path, images, labels)
        _check(path, images, labels, data)
        name = str(path) if len(contents.sets) == 1 else f"{path}[{number}]"
        normalised, note = _normalised(images, contents, data, space)
        if note and note not in notes:
            notes.append(note)
        warning = None if contents.space else suspicious(normalised, data)
        warning = warning or far_outside(normalised, data.normalisation)
        if warning:
            notes.append(f"warning: {name}: {warning}")
        file = str(path) if len(contents.sets) > 1 else ""
        synsets.append(Synset(name, normalised, labels.long().flatten(), factor, file))
    return synsets, [note if note.startswith("warning") else f"note: {path}: {note}" for note in notes]


# Arguments of a run whose values users can register: argument -> whether this process has a value, another remedy.
REGISTERED = {
    "dataset": (lambda name: name in NAMES or (is_path(name) and Path(name).exists()), "its path with --dataset"),
    "model": (lambda name: untapped(name) in ARCHITECTURES, "another --model"),
    "dsa_strategy": (lambda names: {*names.split("_")} <= {*OPERATIONS, *UNAUGMENTED}, "another --dsa_strategy"),
}


def check_registered(path: str | Path, args: dict, *names: str) -> None:
    """Raise UserError if an argument of a set's run, such as its model, was registered by a file of the user.

    The message suggests --import. No file is run because a set names it.
    """
    for name in names:
        known, remedy = REGISTERED[name]
        if name in args and not known(args[name]):
            imports = f"it was {args['imports']}" if args.get("imports") else f"its recipe: {args.get('recipe', '?')}"
            raise UserError(
                f"{path} was made with --{name} {args[name]}, which ddm does not have: give {remedy}, or the file that "
                f"registers it with --import ({imports})"
            )


def factor_of(metadata: dict) -> int:
    """The factor of a partitioned set, from the metadata of its file; 1 for other sets. Raises UserError if invalid."""
    factor = metadata.get("factor", 1)
    if not isinstance(factor, int) or factor < 1:
        raise UserError(f"the factor of the set is {factor!r}: an integer of 1 or more is needed")
    return factor


def progress_text(record: dict) -> str:
    """Iterations or experiments of a run that has not ended, from its results or its set; empty for other runs."""
    if "unfinished" in record:
        done, total = record["unfinished"]
        return f"{done:,} of {total:,} iterations"
    done, total = (record.get(part, {}).get("num_exp", 0) for part in ("args", "asked"))
    return f"{done} of {total} experiments" if done < total else ""


def unfinished_text(metadata: dict) -> str:
    """A note about a set whose run has not ended; empty for other sets."""
    progress = progress_text(metadata)
    return progress and f"its run has not ended: {progress}"


def weights_text(args: dict) -> str:
    """The weights of a run's terms, such as 'mmd_ratio 1, rr_ratio 3', from its arguments."""
    return ", ".join(f"{name} {value:g}" for name, value in args.items() if name.endswith("_ratio") and value)


def digest(images: Tensor, labels: Tensor) -> str:
    """A digest of the images and labels of a set, on the CPU."""
    hasher = hashlib.blake2b(digest_size=16)
    for tensor in (images, labels):
        hasher.update(tensor.contiguous().numpy())
    return hasher.hexdigest()


def _check_labels(path: Path, images: Tensor, labels: Tensor) -> None:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise UserError(f"{path} has soft labels {list(labels.shape)}: one integer per image is needed")
    if labels.numel() != len(images) or not len(images):
        raise UserError(f"{path} has {len(images)} images and {labels.numel()} labels: one label per image is needed")
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):  # NaN differs from itself
        raise UserError(f"{path} has labels that are not integers: one integer per image is needed")


def _check(path: Path, images: Tensor, labels: Tensor, data: ImageData) -> None:
    shape = (data.channel, *data.im_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise UserError(
            f"{path} has images {list(images.shape)}, {data.name} needs [N, {', '.join(map(str, shape))}]: "
            "give the --dataset that the set is of"
        )
    if labels.min() < 0 or labels.max() >= data.num_classes:
        span, most = f"{int(labels.min())} to {int(labels.max())}", data.num_classes - 1
        raise UserError(f"{path} has labels {span}, {data.name} has 0 to {most}: give the --dataset that the set is of")
    if images.is_floating_point() and not images.isfinite().all():
        raise UserError(f"{path} has pixels that are not finite: use another file")


def _normalised(images: Tensor, contents: Contents, data: ImageData, space: str) -> tuple[Tensor, str | None]:
    """The normalised images, and a note on how their space was determined."""
    whitened = contents.metadata.get("zca") is not None
    if whitened and not data.normalisation.whitened:
        raise UserError("the images are whitened: evaluate them with --zca")
    if contents.space and not whitened and data.normalisation.whitened:
        raise UserError(
            "the images are not whitened, but --zca or another file says so: leave --zca out, or evaluate it alone"
        )
    if data.normalisation.whitened and not whitened:  # --zca was given, and the file does not contradict it
        return images.float(), "pixels are taken as whitened by the same transform"
    note = None
    if contents.space:
        space = contents.space
    elif space == "auto":
        space = guessed(images)
        note = f"pixels from {images.min():.3g} to {images.max():.3g} are taken for {space} (override with --space)"
    images = images.float()
    if space == "normalised":
        if not whitened and {"mean", "std"} <= contents.metadata.keys():
            before, now = constants_of(contents.metadata, images.shape[1]), data.normalisation
            if not torch.allclose(before.constants, now.to("cpu").constants, atol=0):
                shown = f"mean {before.mean}, std {before.std}"
                note = f"the file was normalised with other constants ({shown}) and is normalised again"
                images = now.to("cpu").normalise(before.unclipped(images))
        return images, note
    return data.normalisation.to("cpu").normalise(images / 255 if space == "bytes" else images), note


def constants_of(metadata: dict, channels: int) -> Normalisation:
    """The normalisation of a file by its mean and std. Raises UserError for numbers that can't be right."""
    mean, std = metadata["mean"], metadata["std"]
    if len(mean) != channels or len(std) != channels:
        raise UserError(f"the file has constants {mean} and {std} for {channels} channel(s): correct its mean and std")
    if not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
        raise UserError(f"the file has mean {mean} and std {std}: finite numbers are needed, and std above 0")
    return Normalisation.of(mean, std)


def guessed(images: Tensor) -> str:
    """Guess the space of pixels: bytes from their type or range, unit if all are in [0, 1], else normalised."""
    low, high = float(images.min()), float(images.max())
    if not images.is_floating_point() or (low >= 0 and high > 20):
        return "bytes"
    return "unit" if low >= -1e-3 and high <= 1 + 1e-3 else "normalised"


def suspicious(images: Tensor, data: ImageData) -> str | None:
    """A warning if the channel statistics of normalised images are far from mean 0 and deviation 1, else None.

    Images in [-1, 1], or slightly outside [0, 1], are guessed as normalised; their pixels are then grey.
    """
    if data.normalisation.whitened:
        return None
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    if mean.abs().max() >= 0.7 or std.min() <= 0.4 or std.max() >= 2.5:
        shown = ", ".join(f"{m:.2f} +- {s:.2f}" for m, s in zip(mean.tolist(), std.tolist(), strict=True))
        return (
            f"its normalised channels have {shown}, but images of {data.name} have about 0 +- 1: if it has other "
            "normalisation constants, or is in [0, 1], accuracy falls to chance; see --space"
        )
    pixels = data.normalisation.to("cpu").unclipped(images).flatten()
    low, high = np.percentile(pixels[:: max(1, len(pixels) // 2**20)].numpy(), (0.5, 99.5))
    if high - low < 0.7:
        return (
            f"its pictures are grey, almost all pixels are in [{low:.2f}, {high:.2f}]: if it has other normalisation "
            "constants, or is in [-1, 1] or [0, 1], accuracy falls; see --space"
        )
    return None


# --- files -----------------------------------------------------------------------------------------------


def _contents(path: Path, data: ImageData | None) -> Contents:
    if not path.exists():
        raise UserError(f"{str(path)!r}: there is no such file or folder: check the path")
    path = _set_of_run(path)
    if path.is_dir():
        return _decoded(_pictures(path, data)) if data is not None else Contents([], _recorded_arguments(path), "unit")
    reader = READERS.get(path.suffix.lower(), _torch_file)
    try:
        contents = _decoded(reader(path))
        metadata = contents.metadata
        args = metadata.get("args", {})
        if not isinstance(args, dict):
            metadata = metadata | {"args": {}}
        elif "num_exp" in args:  # up to version 0.6.0, an unfinished run recorded the requested number
            metadata = metadata | {"args": args | {"num_exp": len(contents.sets)}}
        return contents._replace(metadata=metadata, space=contents.space if contents.space in SPACES[1:] else None)
    except UserError:
        raise
    except Exception as error:  # damaged files raise many kinds of errors
        reason = first_line(error)
        if reason.startswith("Weights only load failed"):
            reason = "no torch file, or one that would run code"
        raise UserError(f"{path} can't be read as a condensed set ({reason}): use another file") from None


def _decoded(contents: Contents) -> Contents:
    """The contents with tensors without gradients, decoded if they are stored images. Raises UserError."""
    factor = contents.decode
    sets = [tuple(torch.as_tensor(x).detach() for x in pair) for pair in contents.sets]
    # The strides of grey images can mean channels last, which rounds differently: equal ones for all formats.
    sets = [(images.clone(memory_format=torch.contiguous_format), labels) for images, labels in sets]
    if factor > 1:
        for images, _ in sets:
            check_factor(factor, tuple(images.shape[-2:]), "factor")
        sets = [(decoded(images.float(), factor), decoded_labels(labels, factor)) for images, labels in sets]
    return contents._replace(sets=sets, decode=1)


def _set_of_run(path: Path) -> Path:
    """The res_*.pt of a run's folder or results.json; any other path as it is. Raises UserError for several."""
    folder = path.parent if path.name == "results.json" else path
    patterns = ("res_*.pt", "DM/*/*/res_*.pt")  # of a run, of an export to dcbench
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))] if folder.is_dir() else []
    if len(files) > 1:
        raise UserError(f"{folder} has {len(files)} sets, {files[0].name} and others: give one of the files")
    if not files and ((folder / "training.log").exists() or (folder / "results.json").exists()):
        left = next(iter(sorted(folder.glob("last_finite_*.pt"))), None)
        hint = "name a folder with a set" if (folder / "results.json").exists() else "it has not saved a set yet"
        hint = f"it diverged, and its last images are in {left.name}" if left else hint
        raise UserError(f"{folder} has no res_*.pt of a run: {hint}")
    return files[0] if files else path


def _torch_file(path: Path) -> Contents:
    """{'data': [[images, labels], ...], ...}, {'images', 'labels'}, or a pair of them.

    Or images_*.pt beside labels_*.pt, two tensors, as trajectory matching (MTT) saves them.
    """
    with torch.serialization.safe_globals(SAFE):
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, Tensor):
            beside = path.with_name(path.name.replace("images", "labels", 1))
            if not path.name.startswith("images") or not beside.exists():
                raise UserError(
                    f"{path} is one tensor: give the file images_*.pt that has labels_*.pt beside it, or a file of "
                    "[images, labels]"
                )
            content = [content, torch.load(beside, map_location="cpu", weights_only=True)]
            if not isinstance(content[1], Tensor):
                raise UserError(f"{beside} has no tensor of labels: correct it")
    if isinstance(content, dict) and "data" in content:
        sets = [(images, labels) for images, labels, *_ in content["data"]]
    elif isinstance(content, dict) and {"images", "labels"} <= content.keys():
        sets = [(content["images"], content["labels"])]
    elif isinstance(content, list | tuple) and len(content) == 2 and all(hasattr(x, "shape") for x in content):
        sets, content = [tuple(content)], {}
    else:
        what = f"a dict of {', '.join(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} is {what[:150]}: neither {{'data': [[images, labels], ..]}} nor [images, labels]")
    sets = [(images, labels) for images, labels in sets if len(images)]
    if not sets:
        raise UserError(f"{path} has no images: use another file")
    rest = {key: value for key, value in content.items() if key not in ("data", "images", "labels")} if content else {}
    for name in ("mean", "std"):  # other code also saves tensors and arrays
        value = rest.pop(name, None)
        if value is not None:
            rest[name] = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    return Contents(sets, rest, rest.get("space") or ("normalised" if {"mean", "std"} <= rest.keys() else None))


def _arrays(path: Path) -> Contents:
    """x_train (uint8 or float, [N, H, W, C] or [N, C, H, W] with C = 1 or 3) and y_train, or images and labels.

    Or x_stored and y_stored with their factor.
    """
    with np.load(path, allow_pickle=False) as file:
        pairs = (("x_stored", "y_stored"), ("x_train", "y_train"), ("images", "labels"))
        pair = next((pair for pair in pairs if {*pair} <= {*file}), None)
        if pair is None:
            raise UserError(
                f"{path} has the arrays {', '.join(file) or 'none'}: it needs x_train and y_train, or images and labels"
            )
        factor = factor_of({"factor": int(file["factor"])}) if "factor" in file else 1
        x, y = (file[name] for name in pair)
        names = {"class_names": file["classes"].astype(str).tolist()} if "classes" in file else {}
    if x.dtype.kind in "iu" and x.size and x.min() >= 0 and x.max() < 256:
        x = x.astype(np.uint8)
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise UserError(f"{path} has images of type {x.dtype}: integers from 0 to 255 or floats are needed")
    x = x[..., None] if x.ndim == 3 else x
    if x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    y = y if y.dtype.kind == "f" else y.astype(np.int64)  # fractions are refused later
    sets = [(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y))]
    # Decoded images are floats, from which bytes could not be guessed.
    space = "bytes" if factor > 1 and x.dtype == np.uint8 else None
    return Contents(sets, names | ({"factor": factor} if factor > 1 else {}), space, decode=factor)


def _safetensors(path: Path) -> Contents:
    try:
        from safetensors import safe_open  # optional: only this format needs it
    except ImportError:
        raise UserError(f"{path}: reading it needs the package safetensors: pip install safetensors") from None
    with safe_open(path, "pt") as file:
        header, stored = file.metadata() or {}, "stored" in set(file.keys())
        sets = [(file.get_tensor("stored" if stored else "images"), file.get_tensor("labels"))]
    known = {"mean", "std", "class_names", "args", "asked", "unfinished", "accs_all_exps", "factor"}
    ours = header.keys() & known if "space" in header else ()
    metadata = {name: json.loads(header[name]) for name in ours}
    if header.get("dataset"):
        metadata["args"] = {"dataset": header["dataset"], **metadata.get("args", {})}
    metadata |= {"stored": [sets[0][0]]} if stored else {}
    return Contents(sets, metadata, header.get("space"), decode=factor_of(metadata) if stored else 1)


READERS = {".npz": _arrays, ".safetensors": _safetensors}  # other files are torch's


def _pictures(path: Path, data: ImageData) -> Contents:
    """Class folders of pictures; `folder_labels` finds their classes."""
    groups = layouts.class_folders(path)
    if not groups:
        files = sorted(file.name for file in path.glob("*.pt") if not file.name.startswith("labels"))
        hint = f"give one of its files, such as {path / files[0]}" if files else "name a folder that has"
        raise UserError(f"{path} has no class folders with pictures: {hint}")
    labels, guess = folder_labels(path, [name for name, _ in groups], data)
    images, of = [], []
    for label, (_, files) in zip(labels, groups, strict=True):
        for file in files:
            image = layouts.decoded(file, None)
            if isinstance(image, str):
                raise UserError(f"{file} can't be read ({image}): replace or delete it")
            images.append(layouts.grey(image) if data.channel == 1 else image)
            of.append(label)
    if len({image.shape for image in images}) > 1:
        raise UserError(f"the pictures in {path} differ in size: resize them to one size")
    notes = [guess] if guess else []
    absent = [name for label, name in enumerate(data.class_names) if label not in of]
    if absent:
        notes.append(f"warning: {path} has no pictures of {listed(absent)}")
    metadata = _recorded_arguments(path)
    return Contents(
        [(torch.from_numpy(np.stack(images)), torch.tensor(of))], metadata, "bytes", tuple(notes), factor_of(metadata)
    )


def folder_labels(path: Path, folders: list[str], data: ImageData) -> tuple[list[int], str | None]:
    """The labels of class folders, and a warning if a part of them is guessed.

    The entries of classes.json, which `ddm export` writes, are certain, and so are the names <number>_<class>, <class>
    and <number>. Guessed are names that begin with a number, and one unknown name if one class is left. If no folder
    has the name of a class, they are guessed in sorted order. Raises UserError for all other names.
    """
    known = [layouts.file_name(name) for name in data.class_names]
    recorded = _recorded_labels(path, known, data)
    labels = [_folder_label(path, name, known, recorded, data) for name in folders]
    unknown = [name for name, label in zip(folders, labels, strict=True) if label is None]
    numbers = [name.partition("_")[0] for name in folders]
    if recorded and unknown:
        raise UserError(f"{path}: {unknown[0]!r} is not in its {CLASSES}: give it its old name, or delete {CLASSES}")
    if unknown and all(name.isdecimal() for name in folders):
        labels, unknown = [int(name) for name in folders], []
    guess = None
    if unknown:
        left = [label for label in range(data.num_classes) if label not in labels]
        if all(number.isdecimal() for number in numbers):
            given = [int(number) for number in numbers]
            guess = [label if label is not None else number for label, number in zip(labels, given, strict=True)]
        elif len(unknown) == len(left) and (len(left) == 1 or len(unknown) == len(folders)):
            rest = iter(left)
            guess = [next(rest) if label is None else label for label in labels]
        if guess is None or max(guess) >= data.num_classes:
            raise UserError(
                f"{path}: {unknown[0]!r} is no class of {data.name}: {nearest(unknown[0], data.class_names)}; name "
                "folders by class or number"
            )
        labels = guess
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        of = [name for name, label in zip(folders, labels, strict=True) if label == twice]
        raise UserError(f"{path}: {of[0]!r} and {of[1]!r} are both class {twice}: name folders by class or number")
    if not unknown:
        return labels, None
    pairs = [
        f"{name} = {label} {data.class_names[label]}"
        for name, label in zip(folders, labels, strict=True)
        if name in unknown
    ]
    return labels, f"warning: {path}: folders without the name of a class; guessed {listed(pairs, most=10)}"


def _recorded_labels(path: Path, known: list[str], data: ImageData) -> dict[str, int]:
    """Folder -> label in the classes.json of an export; {} without the file. Raises UserError for other classes."""
    try:
        content = json.loads((path / CLASSES).read_text())
        labels = {str(folder): int(label) for folder, label in content["folders"].items()}
        names = [layouts.file_name(name) for name in content["class_names"]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / CLASSES} can't be read ({type(error).__name__}): restore or delete it") from None
    if names != known:
        raise UserError(f"{path / CLASSES} has other classes than {data.name}: give the --dataset that it is from")
    return labels


def _recorded_arguments(path: Path) -> dict:
    """The metadata of an exported folder of pictures: the arguments and factor in its classes.json, if any."""
    try:
        content = json.loads((path / CLASSES).read_text())
        factor = {"factor": content["factor"]} if "factor" in content else {}
        args = {"dataset": content["dataset"], **content.get("args", {})}
        args.pop("zca", None)  # of version 0.6.0 or earlier: pictures have pixels
        return {"args": args, **factor}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _folder_label(path: Path, folder: str, known: list[str], recorded: dict[str, int], data: ImageData) -> int | None:
    """The label of a class folder, if its name is that of a class."""
    if recorded:
        return recorded.get(folder)
    number, _, name = folder.partition("_")
    if number.isdecimal() and int(number) < len(known) and known[int(number)] == name:
        return int(number)  # numbers separate classes of the same name
    for spelt in (folder, name) if number.isdecimal() else (folder,):
        if known.count(spelt) > 1:
            raise UserError(f"{path}: {data.name} has several classes called {spelt!r}: name folders by number")
        if spelt in known:
            return known.index(spelt)
    return None


# --- for other code --------------------------------------------------------------------------------------


class CondensedDataset(Dataset):
    """A condensed set as a torch Dataset of (image [C, H, W], int label).

        from ddm import CondensedDataset
        train = CondensedDataset("result/res_DM_CIFAR10_ConvNet_10ipc.pt")

    Images are unchanged, that is normalised with `train.mean` and `train.std`, or in [0, 1] with `pixels=True`. The
    images of a partitioned set are decoded: `factor` x `factor` of them are cut out of each image of `stored`.
    `experiment` is the number of the set in the file; `transform` is called with each image. `accuracies` are the
    accuracies of this set by network, in [0, 1], if the file has them. Raises UserError for a file without a condensed
    set of hard labels, and with `pixels=True` for one without normalisation constants.
    """

    def __init__(self, path: str | Path, experiment: int = 0, pixels: bool = False, transform=None):
        contents = _contents(Path(path), None)
        if not contents.sets:
            raise UserError(f"{path}: a folder of pictures has no tensors: read it with torchvision's ImageFolder")
        if not isinstance(experiment, int) or not 0 <= experiment < len(contents.sets):
            raise UserError(f"{path} has {len(contents.sets)} set(s), from 0, and no number {experiment!r}")
        images, labels = contents.sets[experiment]
        _check_labels(Path(path), images, labels)
        whitened = contents.metadata.get("zca") is not None
        space = contents.space or ("normalised" if whitened else guessed(images))
        self._fill(images, labels, contents.metadata, space, str(path), experiment)
        self.transform = transform
        if pixels:
            self.images, self.space = self.pixels(), "unit"

    @classmethod
    def from_tensors(cls, images: Tensor, labels: Tensor, metadata: dict) -> "CondensedDataset":
        """A set that is not from a file: normalised images [N, C, H, W], labels [N], and the metadata of a file."""
        dataset = cls.__new__(cls)
        dataset._fill(images, labels, metadata, "normalised", "the set", 0)
        dataset.transform = None
        return dataset

    def _fill(self, images: Tensor, labels: Tensor, metadata: dict, space: str, name: str, experiment: int) -> None:
        self.images, self.labels = images.float(), labels.long().flatten()
        self.class_names, self.mean, self.std = (metadata.get(key) for key in ("class_names", "mean", "std"))
        self.metadata, self.space, self.name = of_one_set(metadata, experiment), space, name
        self.accuracies = self.metadata["accs_all_exps"]

    def __repr__(self) -> str:
        accs = ", ".join(f"{100 * sum(a) / len(a):.2f} % on {model}" for model, a in self.accuracies.items() if a)
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"CondensedDataset({len(self)} images of {shape}, {self.space}{', ' if accs else ''}{accs})"

    @property
    def factor(self) -> int:
        """A stored image holds factor x factor images; 1 without --factor."""
        return factor_of(self.metadata)

    @property
    def stored(self) -> Tensor | None:
        """The stored images, normalised: [N / factor^2, C, H, W]; None if the file has only the decoded ones."""
        stored = self.metadata.get("stored")
        return stored[0] if isinstance(stored, list) and stored and isinstance(stored[0], Tensor) else None

    def pixels(self) -> Tensor:
        """The images in [0, 1], clipped: [N, C, H, W]. Raises UserError if the normalisation is unknown."""
        if self.space != "normalised":
            return (self.images / 255 if self.space == "bytes" else self.images).clamp(0, 1)
        zca = self.metadata.get("zca")
        if zca is None and (self.mean is None or self.std is None):
            raise UserError(f"{self.name} does not say how its images were normalised: use those of get_dataset")
        if zca is None:
            return constants_of({"mean": self.mean, "std": self.std}, self.images.shape[1]).pixels(self.images)
        channels = [0.0] * self.images.shape[1]
        return Normalisation.of(channels, channels, zca).pixels(self.images)

    def save(self, path: str | Path) -> None:
        """Write the set in the format of a run: {'data': [[images, labels]], 'accs_all_exps', ...}.

        Raises UserError if the file can't be written, or if its suffix is that of another format.
        """
        if not isinstance(path, str | os.PathLike) or Path(path).suffix.lower() in READERS:
            raise UserError(f"{str(path)!r}: save writes torch files: name it *.pt, and convert it by `ddm export`")
        content = self.metadata | {"space": self.space}
        if self.space != "normalised":  # constants would mark it as normalised
            content = {key: value for key, value in content.items() if key not in ("mean", "std", "zca", "stored")}
        try:
            disk.save(Path(path), content | {"data": [[self.images, self.labels]], "accs_all_exps": self.accuracies})
        except OSError as error:
            raise UserError(f"{str(path)!r} can't be written ({error.strerror or error}): name another file") from None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


def of_one_set(metadata: dict, experiment: int) -> dict:
    """The metadata of one set of a file: those of a run with this experiment only, which has the same networks."""
    args = metadata.get("args", {})
    alone = {"first_exp": args.get("first_exp", 0) + experiment, "num_exp": 1}
    ours = ("args", "asked") if args.keys() & alone.keys() else ()
    entries = {name: metadata[name] | alone for name in ours if name in metadata}
    stored = metadata.get("stored")
    if isinstance(stored, list) and experiment < len(stored):
        entries["stored"] = [stored[experiment]]
    return metadata | entries | {"accs_all_exps": set_accuracies(metadata, experiment)}


def set_accuracies(metadata: dict, experiment: int) -> dict[str, list[float]]:
    """The accuracies of one set, by network; all accuracies if the file does not record its number of experiments."""
    accs = metadata.get("accs_all_exps")
    accs = accs if isinstance(accs, dict) else {}
    sets = metadata.get("args", {}).get("num_exp", 1)
    by_model = {}
    for model, values in accs.items():
        values = [float(acc) for acc in values] if isinstance(values, list | tuple) else []
        n = len(values) // sets
        by_model[model] = values[n * experiment : n * (experiment + 1)] if n * sets == len(values) else values
    return {model: values for model, values in by_model.items() if values}
