"""Finds the images of a data set in its published layout, and writes them into a store.

A layout function returns a `Listing`: the classes in label order and the files or arrays of each split. `fill` decodes,
resizes and writes them. Labels follow the sorted names of the class folders. For ImageNet and its subsets this is the
order of the WordNet ids ("wnids").
"""

import contextlib
import csv
import gzip
import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ddm.bars import bar
from ddm.data import store
from ddm.data.checks import listed, split_warnings
from ddm.errors import UserError, first_line

PART = 512  # images per part; an interrupted preparation resumes after the last complete part
EXTENSIONS = {".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")
TRAIN = ("train", "training", "train_set", "training_set")
TEST = ("test", "val", "valid", "validation", "testing", "test_set")
MNIST_FAMILY = ("mnist", "fashionmnist", "kmnist", "emnist", "qmnist")  # their four files have the same names
VAL_FIRST = ("val", "test")  # for data sets whose test/ has no labels: ImageNet, TinyImageNet
CONSTANTS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # ImageNet's, as published


def state(path: Path) -> str:
    """The size and modification time of a file; empty for one that can't be read, such as a broken link."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


class Files:
    """The image files of a split, decoded when read."""

    def __init__(self, items: list[tuple[Path, int]]):
        self.paths, self.labels = [path for path, _ in items], np.array([label for _, label in items], np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        """A digest of names, sizes, modification times and labels. A replaced file changes it."""
        names = "\n".join(f"{path.parent.name}/{path.name} {state(path)}" for path in self.paths)
        return hashlib.blake2b(names.encode(errors="replace") + self.labels.tobytes(), digest_size=16).hexdigest()

    def read(self, part: slice, res: int | None, pool: ThreadPoolExecutor) -> tuple[np.ndarray, list[list]]:
        """Images uint8 [n, 3, res, res] of a part, and [index, file, reason] for files that can't be decoded."""
        images, damaged = [], []
        for at, image in enumerate(pool.map(lambda path: decoded(path, res), self.paths[part]), part.start):
            if isinstance(image, str):
                damaged.append([at, str(self.paths[at]), image])
            else:
                images.append(image)
        if len({image.shape for image in images}) > 1:
            sizes = sorted({f"{image.shape[2]}x{image.shape[1]}" for image in images})
            raise UserError(
                f"the images differ in size ({', '.join(sizes[:3])} ..): give --res, the side after resizing"
            )
        return np.stack(images) if images else np.empty((0, 3, res or 1, res or 1), np.uint8), damaged


class Array:
    """The images of a split as an array uint8 [N, H, W, C] or [N, H, W]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images[..., None] if images.ndim == 3 else images, labels.reshape(-1)

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """A digest of all labels and images."""
        hasher = hashlib.blake2b(self.labels.tobytes(), digest_size=16)
        for start in range(0, len(self.images), PART):
            hasher.update(np.ascontiguousarray(self.images[start : start + PART]))
        return hasher.hexdigest()

    def read(self, part: slice, res: int | None, pool: ThreadPoolExecutor) -> tuple[np.ndarray, list[list]]:
        images = self.images[part].transpose(0, 3, 1, 2)
        if res is not None and images.shape[2:] != (res, res):
            raise UserError(f"arrays of {images.shape[3]}x{images.shape[2]} images can't be resized: leave --res out")
        return images, []


@dataclass
class Listing:
    """The classes and images of a data set; labels are indices of class_names."""

    name: str
    class_names: list[str]
    splits: dict[str, Files | Array]  # "train" and "test"
    notes: list[str] = field(default_factory=list)  # printed for the user
    warnings: list[str] = field(default_factory=list)  # doubts about the data, printed at every use
    wnids: list[str] | None = None
    constants: dict[str, list[float]] = field(default_factory=dict)  # published mean and std, if any


def decoded(path: Path, res: int | None) -> np.ndarray | str:
    """Decode an image file to RGB uint8 [3, res, res]; return the reason as text if that fails.

    The image is resized (bilinear, antialiased) to a shorter side of `res` and cropped to its centre, as in
    torchvision's Resize and CenterCrop. Without `res` the size stays. Grey, palette, RGBA and CMYK images become RGB.
    The range of 32-bit pixels is unknown.
    """
    from PIL import Image  # imported here: only the preparation of data needs it
    from torchvision.transforms.functional import center_crop, resize

    try:
        with Image.open(path) as file:
            if file.mode == "F" or (file.mode == "I" and file.format != "PNG"):
                return "its pixels have 32 bits: convert it to 8 bits"
            if file.mode.startswith("I"):  # 16 bits: convert() would clip them
                image = Image.fromarray((np.asarray(file).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
            else:
                image = file.convert("RGB")
        if res is not None:
            image = center_crop(resize(image, [res]), [res])
        return np.asarray(image).transpose(2, 0, 1)
    except Exception as error:  # damaged files raise many kinds of errors
        return first_line(error).replace(str(path), path.name)


def grey(image: np.ndarray) -> np.ndarray:
    """An RGB image uint8 [3, H, W] as grey [1, H, W], by the luminance of ITU-R 601 as in Pillow."""
    weighted = image.astype(np.int64) * np.array([19595, 38470, 7471])[:, None, None]
    return ((weighted.sum(0, keepdims=True) + 2**15) >> 16).astype(np.uint8)


def file_name(name: str) -> str:
    """The name of a class as a valid name of a file or folder."""
    return re.sub(r"[^\w.-]+", "-", name)


# --- layouts -----------------------------------------------------------------------------------------------


def images_in(folder: Path) -> list[Path]:
    """The image files below a folder, sorted by path."""
    paths, visited = [], set()
    for root, inner, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in visited:  # a link to a folder that contains it
            inner.clear()
            continue
        visited.add(os.path.realpath(root))
        inner[:] = [name for name in inner if not name.startswith(".")]  # such as .ipynb_checkpoints
        paths += [Path(root) / name for name in names if not name.startswith(".")]
    return sorted(path for path in paths if path.suffix.lower() in EXTENSIONS)


def child(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first existing subfolder among `names`, which are lower-case; the folders may be named Train or TEST."""
    folders = {sub.name.lower(): sub for sub in visible(folder)}
    return next((folders[name] for name in names if name in folders), None)


def visible(folder: Path) -> list[Path]:
    """The subfolders whose names do not begin with a dot, sorted."""
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def class_folders(folder: Path) -> list[tuple[str, list[Path]]]:
    """(name, images) of the class folders that contain images, sorted by name."""
    groups = [(sub.name, images_in(sub)) for sub in visible(folder)]
    return [(name, images) for name, images in groups if images]


def labelled(groups: list[tuple[str, list[Path]]], classes: list[str]) -> Files:
    at = {name: label for label, name in enumerate(classes)}
    return Files([(path, at[name]) for name, images in groups for path in images if name in at])


def folders(
    root: Path,
    name: str,
    test_names: tuple[str, ...] = TEST,
    choose: Callable[[list[str]], list[str]] | None = None,
    around: tuple[Path, ...] = (),
) -> Listing:
    """List class folders in train/ and test/ or val/, or class folders without a split.

    Without a split, a seeded fifth of every class becomes the test set. The labels of a flat val/ or test/ folder come
    from a file (see `labels_of`) there, in `root` or in the folders `around`. `choose` selects from the sorted names of
    the training folders. Raises UserError for another layout.
    """
    train = child(root, TRAIN)
    if train is not None and not visible(train) and child(root, test_names) is None:
        train = None  # a class of this name
    subfolders = [(sub.name, images_in(sub)) for sub in visible(train or root)]
    groups = [group for group in subfolders if group[1]]
    names = [group for group, _ in groups]
    if choose is not None:
        names = choose(names)
        groups = [group for group in groups if group[0] in names]
    if len(names) < 2:
        have = f"{len(names)} folder(s) with images"
        raise UserError(f"{train or root} has {have}: a data set is a folder of class folders, two or more")
    listing = Listing(name, names, {"train": labelled(groups, names)})
    if choose is None:
        empty = [sub for sub, images in subfolders if not images]
        if empty:
            listing.warnings.append(f"{train or root} has class folders without images, left out: {listed(empty)}")
    if train is None:
        if inner := inner_classes(root, groups):
            listing.warnings.append(
                f"the classes are {listed(names)}, but each has the folders {listed(inner)}: if the classes are "
                f"{listed(inner)}, rename {listed(names)} to train and test"
            )
        split_off(listing, groups)
        return listing
    test = child(root, test_names)
    if test is None:
        raise UserError(
            f"{root} has {train.name}/, but none of {', '.join(test_names)}: rename the folder of the test images"
        )
    unused = [other for name in test_names if (other := child(root, (name,))) not in (None, test)]
    if unused and test_names == TEST:
        listing.warnings.append(f"{test} is the test set; {', '.join(map(str, unused))} is not used")
    test_groups = class_folders(test)
    if {group for group, _ in test_groups} & set(names):
        listing.splits["test"] = labelled(test_groups, names)
        other = sorted({group for group, _ in test_groups} - set(names))
    else:
        try:
            labels = labels_of(test, root, *around)
        except UserError:
            if not test_groups:
                raise
            theirs = listed([group for group, _ in test_groups])
            raise UserError(
                f"{test} has the classes {theirs}, {train} has {listed(names)}: give them equal names"
            ) from None
        files = [(labels.get(path.stem), [path]) for path in images_in(test)]
        other = sorted({wnid for wnid, _ in files if wnid is not None} - set(names))
        unknown = [path.name for wnid, (path,) in files if wnid is None]
        if unknown:
            raise UserError(f"{len(unknown)} images in {test} have no label: complete the labels of {unknown[0]}, ...")
        listing.splits["test"] = labelled(files, names)
    if other and choose is None:
        listing.warnings.append(f"{test} has classes that {train} lacks; they are left out: {listed(other)}")
    return listing


def inner_classes(root: Path, groups: list[tuple[str, list[Path]]]) -> list[str]:
    """Two or more folders with images that all class folders have: then these may be the classes."""
    inside = [{path.relative_to(root / group).parts[:-1][:1] for path in images} for group, images in groups]
    shared = sorted(name for (name,) in set.intersection(*inside) - {()})
    return shared if len(shared) > 1 else []


def split_off(listing: Listing, groups: list[tuple[str, list[Path]]]) -> None:
    """Use a fifth of every class, drawn with seed 0, as the test set. Raises UserError for a class of one image."""
    train, test = [], []
    generator = torch.Generator().manual_seed(0)
    for label, (name, images) in enumerate(groups):
        if len(images) < 2:
            raise UserError(
                f"class {name} has one image, and a fifth of each class becomes the test set: add images, or make the "
                "folders train and test"
            )
        order = torch.randperm(len(images), generator=generator).tolist()
        held = set(order[: max(1, len(images) // 5)])
        for at, path in enumerate(images):
            (test if at in held else train).append((path, label))
    listing.splits = {"train": Files(train), "test": Files(test)}
    listing.notes.append(
        "there are no train/ and test/ folders: a fifth of every class, drawn with seed 0, is the test set"
    )


def labels_of(*places: Path) -> dict[str, str]:
    """File name without extension -> wnid, for a flat folder of ImageNet's or TinyImageNet's validation images.

    Reads val_annotations.txt, LOC_val_solution.csv, or the devkit's ILSVRC2012_validation_ground_truth.txt (with
    meta.mat) in one of `places`; the first place is the folder of the images. Raises UserError without such a file.
    """
    names = ("*.txt", "*.csv", "*.mat", "*devkit*/data/*")
    files = {path.name: path for place in reversed(places) for name in names for path in place.glob(name)}
    try:
        labels = _labels(files)
    except Exception as error:  # damaged files raise many kinds of errors
        raise UserError(f"the labels of {places[0]} can't be read ({type(error).__name__}): use another copy") from None
    if labels is None:
        raise UserError(
            f"{places[0]} has neither class folders nor a file of labels: put val_annotations.txt, "
            f"LOC_val_solution.csv or the devkit (ILSVRC2012_validation_ground_truth.txt and meta.mat) into {places[1]}"
        )
    return labels


def _labels(files: dict[str, Path]) -> dict[str, str] | None:
    if "val_annotations.txt" in files:
        lines = files["val_annotations.txt"].read_text().splitlines()
        return {Path(file).stem: wnid for file, wnid in (line.split()[:2] for line in lines if line.strip())}
    if "LOC_val_solution.csv" in files:
        with open(files["LOC_val_solution.csv"], newline="") as file:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    if "ILSVRC2012_validation_ground_truth.txt" in files and "meta.mat" in files:
        from scipy.io import loadmat  # imported here: only this layout needs it

        synsets = np.atleast_1d(loadmat(files["meta.mat"], squeeze_me=True)["synsets"])
        wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        numbers = files["ILSVRC2012_validation_ground_truth.txt"].read_text().split()
        return {f"ILSVRC2012_val_{at:08d}": wnids[int(number)] for at, number in enumerate(numbers, 1)}
    return None


def words_of(root: Path, wnids: list[str]) -> list[str]:
    """The first name of each wnid, from words.txt or LOC_synset_mapping.txt; the wnid if it has no name."""
    words: dict[str, str] = {}
    for name, separator in (("words.txt", "\t"), ("LOC_synset_mapping.txt", " ")):
        with contextlib.suppress(OSError):
            for line in (root / name).read_text(errors="replace").splitlines():
                wnid, _, rest = line.partition(separator)
                words[wnid] = rest.split(",")[0].strip()
    return [words.get(wnid) or wnid for wnid in wnids]


def tiny_imagenet(root: Path, name: str) -> Listing:
    """tiny-imagenet-200: train/<wnid>/images, val/images with val_annotations.txt; its test/ has no labels."""
    if root.suffix == ".pt":
        return published_tensors(root, name)
    listing = folders(root, name, VAL_FIRST)
    listing.wnids, listing.class_names = listing.class_names, words_of(root, listing.class_names)
    with contextlib.suppress(OSError):
        official = (root / "wnids.txt").read_text().split()
        if set(official) != set(listing.wnids):
            raise UserError(
                f"{root / 'wnids.txt'} names {len(official)} classes, train/ has {len(listing.wnids)} others: use "
                "another copy"
            )
        if official != listing.wnids:
            listing.notes.append("wnids.txt has another class order; labels follow the sorted wnids")
    return listing


def published_tensors(path: Path, name: str) -> Listing:
    """The tinyimagenet.pt of the DC family: classes, images_train, labels_train, images_val, labels_val."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        splits = {}
        for split, key in (("train", "train"), ("test", "val")):
            images, labels = content[f"images_{key}"], content[f"labels_{key}"]
            if images.dtype != torch.uint8 or images.ndim != 4:
                raise ValueError(f"images_{key} is {images.dtype} {list(images.shape)}, uint8 [N, 3, H, W] expected")
            splits[split] = Array(images.permute(0, 2, 3, 1).numpy(), labels.numpy().astype(np.int64))
        classes = [str(label) for label in content["classes"]]
    except Exception as error:  # damaged files raise many kinds of errors
        raise UserError(f"{path} can't be read as the published file ({str(error)[:120]}): use another copy") from None
    listing = Listing(name, classes, splits)
    if classes != sorted(classes):
        listing.notes.append(f"the classes in {path.name} are not sorted; labels follow the order in the file")
    return listing


def imagenet(root: Path, name: str) -> Listing:
    """List ILSVRC's train/<wnid> and val, or an archive with the ten classes of a subset.

    Raises UserError for other classes than those of PREPARED.
    """
    indices, wnids = PREPARED[name].indices, PREPARED[name].wnids

    def choose(names: list[str]) -> list[str]:
        if not all(re.fullmatch(r"n\d{8}", folder) for folder in names):
            raise UserError(f"{root}: name the class folders of {name} by WordNet id, such as n01440764")
        for other in (NETTE_WNIDS, WOOF_WNIDS):
            if not wnids and names == other:
                raise UserError(f"{root} has other classes than {name}: check NAME and --source")
        if not indices or len(names) == len(indices):
            if wnids and names != sorted(wnids):
                differing = ", ".join(sorted(set(names) ^ set(wnids))[:4])
                raise UserError(f"{root} has other classes than {name} ({differing}): check NAME and --source")
            return names
        if len(names) != 1000:
            raise UserError(f"{root} has {len(names)} class folders: {name} needs its 10, or all 1000 of ImageNet")
        return [names[at] for at in sorted(indices)]

    kaggle = [root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC"]
    listing = folders(
        next((folder for folder in kaggle if folder.is_dir()), root), name, VAL_FIRST, choose, around=(root,)
    )
    listing.wnids, listing.class_names = listing.class_names, words_of(root, listing.class_names)
    return listing


def family(folder: Path) -> str | None:
    """The data set of MNIST_FAMILY that a path names last, such as that of FashionMNIST/raw; None if it names none."""
    words = [re.sub(r"[^a-z]", "", part.lower()) for part in folder.parts]
    return next((word for word in reversed(words) if word in MNIST_FAMILY), None)


def idx_files(root: Path, name: str) -> Listing | None:
    """List the four files of MNIST or FashionMNIST, gzipped or not, anywhere below a folder; None without them."""
    folders = {path.parent for path in root.resolve().rglob("*ubyte*") if path.is_file()}
    folders = {folder for folder in folders if family(folder) in (None, name.lower())}
    if len(folders) != 1:
        return None
    (folder,) = folders
    files = {path.name.removesuffix(".gz").replace(".", "-"): path for path in folder.iterdir()}
    arrays = []
    for prefix in ("train", "t10k"):
        for kind, dims in (("images-idx3", 3), ("labels-idx1", 1)):
            path = files.get(f"{prefix}-{kind}-ubyte")
            if path is None:
                return None
            try:
                content = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
                if int.from_bytes(content[:4], "big") != 0x800 + dims:
                    raise ValueError("wrong magic number")
                shape = np.frombuffer(content, ">i4", dims, offset=4)
                arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape))
            except (OSError, ValueError, EOFError, zlib.error) as error:
                raise UserError(f"{path} is damaged ({str(error)[:80]}): use another copy") from None
    splits = {"train": Array(arrays[0], arrays[1]), "test": Array(arrays[2], arrays[3])}
    return Listing(name, [str(label) for label in range(10)], splits)


# --- into a store --------------------------------------------------------------------------------------------


def fill(path: Path, listing: Listing, source: str, res: int | None) -> dict:
    """Decode a listing into a store at `path`, resuming if possible; return the content of store.json.

    Raises UserError if a write fails, or if no image of a class can be read.
    """
    for split, images in listing.splits.items():
        if not len(images):
            raise UserError(f"{source}: the {split} set of {listing.name} is empty")
    recipe = {"name": listing.name, "source": source, "res": res, "part": PART}
    recipe["listing"] = {split: images.digest() for split, images in listing.splits.items()}
    try:
        with contextlib.closing(store.Writer(path, recipe)) as writer:
            try:
                return _fill(writer, listing, res)
            except UserError:  # the images are at fault: nothing to resume
                shutil.rmtree(writer.partial, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(
            f"can't write {path}: {error.strerror or error}; run the same command again to resume from "
            f"{path.name}.partial"
        ) from None


def _fill(writer: store.Writer, listing: Listing, res: int | None) -> dict:
    if not writer.fresh:
        print(f"resuming {writer.partial}")
    labels = {}
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(threads) as pool:
        for name, images in listing.splits.items():
            split = writer.split(name)
            with bar(total=len(images), initial=split["consumed"], desc=name, unit="img") as shown:
                for first in range(split["consumed"], len(images), PART):
                    part = slice(first, min(first + PART, len(images)))
                    pixels, damaged = images.read(part, res, pool)
                    if split["shape"] is not None and len(pixels) and list(pixels.shape[1:]) != split["shape"]:
                        raise UserError(
                            f"the images differ in size ({split['shape']}, then {list(pixels.shape[1:])}): give --res, "
                            "the side after resizing"
                        )
                    writer.append(name, pixels, part.stop - first, damaged)
                    shown.update(part.stop - first)
            bad = [at for at, *_ in split["damaged"]]
            labels[name] = np.delete(images.labels, bad)
            counts = np.bincount(labels[name], minlength=len(listing.class_names))
            shapes = {tuple(split["shape"][1:]) for split in writer.state["splits"].values() if split["shape"]}
            if len(shapes) > 1:
                raise UserError(f"training and test images differ in size ({sorted(shapes)}): give --res")
            if not len(labels[name]):
                raise UserError(f"no image of the {name} set of {listing.name} can be read: use another copy")
            if name == "train" and not counts.all():
                missing = listing.class_names[int(counts.argmin())]
                raise UserError(f"class {missing} of {listing.name} has no readable training image: use another copy")
    metadata = {"name": listing.name, "class_names": listing.class_names, "wnids": listing.wnids}
    doubts = list(listing.warnings)
    damaged = [file for split in writer.state["splits"].values() for _, file, _ in split["damaged"]]
    if damaged:
        shown = listed(["/".join(Path(file).parts[-2:]) for file in damaged])
        doubts.append(f"images that can't be read are left out, {len(damaged)}: {shown}")
    if not listing.constants:  # published splits are known, and some are large
        arrays = {name: np.load(writer.partial / f"x_{name}.npy", mmap_mode="r") for name in listing.splits}
        doubts += split_warnings(listing.class_names, arrays, labels["test"])
    return writer.finish(labels, metadata | listing.constants | {"notes": listing.notes, "warnings": doubts})


# --- archives ------------------------------------------------------------------------------------------------


def unpacked(source: Path, work: Path) -> Path:
    """The folder of a source; an archive is unpacked once, into a folder below `work`.

    If the result contains a single folder without a training split beside it, that folder is returned.
    """
    if source.is_file() and source.name.endswith(ARCHIVES):
        stat = source.stat()  # a changed archive is unpacked again
        key = hashlib.blake2b(f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode(), digest_size=4)
        done = work / f"unpacked_{key.hexdigest()}"
        if not done.exists():
            print(f"unpacking {source}")
            tmp = work / "unpacking"
            shutil.rmtree(tmp, ignore_errors=True)
            try:
                tmp.mkdir(parents=True)
                shutil.unpack_archive(source, tmp, **({} if source.suffix == ".zip" else {"filter": "data"}))
            except Exception as error:  # damaged archives raise many kinds of errors
                raise UserError(f"{source} can't be unpacked ({str(error)[:100]}): use another copy") from None
            os.replace(tmp, done)
        source = done
    if source.is_dir():
        inside = [path for path in source.iterdir() if not path.name.startswith((".", "__"))]
        if len(inside) == 1 and inside[0].is_dir() and child(source, TRAIN) is None:
            return unpacked(inside[0], work)
    return source


# --- the data sets that must be prepared -------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A data set that `ddm prepare` converts into a store: its expected size, and the function that lists it."""

    num_classes: int
    res: int  # default image side in pixels
    counts: tuple[int, int]  # training and test images of a complete copy
    find: Callable[[Path, str], Listing]
    indices: tuple[int, ...] = ()  # for a subset: its classes among ImageNet's 1,000 sorted wnids
    wnids: Sequence[str] = ()  # their ids, if known


NETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
WOOF = (155, 159, 162, 167, 182, 193, 207, 229, 258, 273)
FRUIT = (943, 945, 948, 949, 950, 951, 952, 953, 954, 957)
MEOW = (281, 282, 283, 284, 285, 287, 289, 290, 291, 292)
SQUAWK = (9, 22, 84, 88, 89, 96, 100, 130, 144, 145)
YELLOW = (11, 72, 291, 309, 599, 779, 951, 954, 986, 987)
# fmt: off
NETTE_WNIDS = ["n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
               "n03394916", "n03417042", "n03425413", "n03445777", "n03888257"]
WOOF_WNIDS = ["n02086240", "n02087394", "n02088364", "n02089973", "n02093754",
              "n02096294", "n02099601", "n02105641", "n02111889", "n02115641"]
# fmt: on


def _subset(indices: tuple[int, ...], counts: tuple[int, int], wnids: Sequence[str] = ()) -> Prepared:
    return Prepared(10, 128, counts, imagenet, indices, wnids)


PREPARED: dict[str, Prepared] = {
    "TinyImageNet": Prepared(200, 64, (100000, 10000), tiny_imagenet),
    "ImageNet": Prepared(1000, 64, (1281167, 50000), imagenet),
    # Counts: fastai's archives (second version) for these two, ImageNet's split for the others.
    "ImageNette": _subset(NETTE, (9469, 3925), NETTE_WNIDS),
    "ImageWoof": _subset(WOOF, (9025, 3929), WOOF_WNIDS),
    "ImageFruit": _subset(FRUIT, (13000, 500)),
    "ImageMeow": _subset(MEOW, (13000, 500)),
    "ImageSquawk": _subset(SQUAWK, (13000, 500)),
    "ImageYellow": _subset(YELLOW, (13000, 500)),
}


def store_path(data_path: Path, name: str, res: int | None) -> Path:
    """The path of a data set's store."""
    return data_path / (f"{name}{store.SUFFIX}" if res is None else f"{name}_{res}{store.SUFFIX}")
