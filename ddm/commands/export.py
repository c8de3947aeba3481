"""`ddm export`: converts a condensed set to other formats."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddm import cli, disk, drawing
from ddm.commands.settings import FOLLOWED, MAKERS, ExportSettings, defaults, roles
from ddm.data.images import Normalisation
from ddm.data.layouts import file_name
from ddm.data.loading import check_name, is_path, load, short_name
from ddm.errors import UserError
from ddm.evaluation import sets
from ddm.evaluation.plausibility import clipping_cost
from ddm.evaluation.protocol import describe
from ddm.evaluation.sets import ORIGIN, CondensedDataset
from ddm.methods.settings import POOLED
from ddm.networks import ARCHITECTURES, untapped
from ddm.settings import Role


class Set(NamedTuple):
    """A condensed set and its metadata."""

    images: Tensor  # [N, C, H, W], normalised
    pixels: Tensor  # the same in [0, 1], clipped
    labels: Tensor
    class_names: list[str]
    normalisation: Normalisation
    metadata: dict  # from its file, see sets.of_one_set
    dataset: str  # its name; empty for arrays of the user
    factor: int = 1  # a stored image holds factor x factor images
    encoded: bool = False  # whether these are the stored images, and not the decoded ones

    @property
    def bytes(self) -> np.ndarray:
        """uint8 [N, H, W, C]."""
        return (self.pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    @property
    def title(self) -> str:
        return self.dataset or "your data"

    @property
    def whitened(self) -> bool:
        return self.normalisation.whitened

    @property
    def accuracies(self) -> dict[str, list[float]]:
        return self.metadata["accs_all_exps"]


def load_set(settings: ExportSettings) -> Set:
    """Load the set to export, with constants and class names from its file, else from --dataset. Raises UserError."""
    s, metadata = settings, sets.metadata(settings.file)
    if {"mean", "std", "class_names"} <= metadata.keys() and s.dataset is None:
        dataset = CondensedDataset(s.file, s.experiment)
        normalisation = Normalisation.of(dataset.mean, dataset.std, metadata.get("zca"))
        factor, images, labels = dataset.factor, dataset.images, dataset.labels
        if s.stored:
            images, labels = stored_images(dataset), labels[:: factor**2]
        return Set(
            images=images,
            pixels=normalisation.pixels(images),
            labels=labels,
            class_names=dataset.class_names,
            normalisation=normalisation,
            metadata=dataset.metadata,
            dataset=short_name(metadata.get("args", {}).get("dataset", "")),
            factor=factor,
            encoded=s.stored and factor > 1,
        )
    args = metadata.get("args", {})
    name = s.dataset or args.get("dataset")
    if name is None:
        raise UserError(f"{s.file} does not name its data set: give --dataset (and --data_path)")
    if s.dataset is None:
        sets.check_registered(s.file, args, "dataset")
        if is_path(name) and not Path(name).exists():
            raise UserError(f"{s.file} was made from {name}, which is not here: give its path with --dataset")
    if s.stored:
        raise UserError("--stored reads a set of ddm with its own constants: leave --dataset out")
    data = load(name, s.data_path, s.res or args.get("res"))
    data = data.whitened() if s.zca else data
    (synset,), notes = sets.read(s.file, data, s.space, str(s.experiment))
    for note in notes:
        print(note, file=sys.stderr)
    return Set(
        images=synset.images,
        pixels=data.normalisation.pixels(synset.images),
        labels=synset.labels,
        class_names=data.class_names,
        normalisation=data.normalisation,
        metadata=sets.of_one_set(metadata, s.experiment),
        dataset=data.name,
        factor=synset.factor,
    )


def shared(metadata: dict, entry: str = "args") -> dict:
    """The arguments in a file's metadata without the paths of this machine, as sets are passed on.

    Data of the user, --ipc and --import files keep their names: ./mine.npz.
    """
    args, known = dict(metadata.get(entry, {})), roles() | dict.fromkeys(metadata.get("asked", {}), Role.RESULT)
    imports = args.get("imports")
    for name in list(args):
        local = name not in known and isinstance(args[name], str) and os.sep in args[name]  # of a user's recipe
        if known.get(name) is Role.PLACE or local:
            del args[name]
    if "dataset" in args and is_path(args["dataset"]):
        args["dataset"] = f"./{Path(args['dataset']).name}"
    if isinstance(args.get("ipc"), str):
        args["ipc"] = Path(args["ipc"]).name
    return args | ({"imports": ",".join(Path(file).name for file in imports.split(","))} if imports else {})


def stored_images(dataset: CondensedDataset) -> Tensor:
    """The stored images of a set, normalised. Raises UserError if its file has only the decoded ones."""
    if dataset.factor == 1:
        return dataset.images
    if dataset.stored is None:
        raise UserError(f"{dataset.name} has only decoded images: export from the res_*.pt of the run")
    return dataset.stored


# The arguments of a set's run that `ddm evaluate` reads. Pictures have pixels: they do not need zca.
EVALUATED = sorted({*FOLLOWED.values(), *ORIGIN, "dataset", "res", "model", "recipe"})


# --- formats: (set, new path to write) ---------------------------------------------------------------------


def to_png(synset: Set, out: Path) -> None:
    from PIL import Image  # imported here: only pictures need it

    digits = len(str(len(synset.class_names) - 1))
    counts: dict[int, int] = {}
    folders: dict[str, int] = {}
    for image, label in zip(synset.bytes, synset.labels.tolist(), strict=True):
        folder = out / f"{label:0{digits}}_{file_name(synset.class_names[label])}"
        folder.mkdir(parents=True, exist_ok=True)
        k = counts[label] = counts.get(label, -1) + 1
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{k:04}.png")
        folders[folder.name] = label
    args = shared(synset.metadata)
    kept = {name: args[name] for name in EVALUATED if name in args}  # `ddm evaluate` trains as the run did
    classes = {"dataset": synset.dataset, "class_names": synset.class_names, "folders": folders, "args": kept}
    classes |= {"factor": synset.factor} if synset.encoded else {}
    (out / sets.CLASSES).write_text(json.dumps(classes, indent=2) + "\n")


def to_npz(synset: Set, out: Path) -> None:
    kind, factor = ("stored", {"factor": synset.factor}) if synset.encoded else ("train", {})
    arrays = {f"x_{kind}": synset.bytes, f"y_{kind}": synset.labels.numpy(), "classes": np.array(synset.class_names)}
    with open(out, "wb") as file:
        np.savez_compressed(file, **arrays, **factor)


def to_tensor(synset: Set, out: Path) -> None:
    disk.save(out, [synset.pixels, synset.labels])


def safetensors_metadata(synset: Set) -> dict[str, str]:
    """All that a reader needs."""
    constants, entries = synset.normalisation, synset.metadata
    content = {"space": "normalised", "dataset": synset.dataset, "mean": constants.mean, "std": constants.std}
    content |= {"class_names": synset.class_names, "args": shared(entries)}
    content |= {"asked": shared(entries, "asked")} if "asked" in entries else {}
    content |= {"unfinished": entries["unfinished"]} if "unfinished" in entries else {}
    content |= {"accs_all_exps": synset.accuracies} if synset.accuracies else {}
    content |= {"factor": synset.factor} if synset.factor > 1 else {}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()}


def refuse_whitened(synset: Set, to: str) -> None:
    if synset.whitened:
        raise UserError(f"--to {to} can't store the inverse of a whitened set: use its .pt file, or export png")


def to_safetensors(synset: Set, out: Path) -> None:
    try:
        from safetensors.torch import save as safetensors_of  # optional: only this format needs it
    except ImportError:
        raise UserError("--to safetensors needs the package safetensors: pip install safetensors") from None
    refuse_whitened(synset, "safetensors")
    name = "stored" if synset.encoded else "images"
    tensors = {name: synset.images.contiguous(), "labels": synset.labels.contiguous()}
    out.write_bytes(safetensors_of(tensors, safetensors_metadata(synset)))


def to_hf(synset: Set, out: Path) -> None:
    """The layout of the Hugging Face Hub: Parquet in data/, and the card as README.md with YAML front matter."""
    try:
        from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars  # optional, as is the next
        from huggingface_hub import DatasetCardData
    except ImportError:
        raise UserError("--to hf needs the package datasets: pip install datasets") from None
    from PIL import Image as Picture

    disable_progress_bars()
    to_card(synset, out)
    names = synset.class_names
    if len(set(names)) < len(names):  # ImageNet has two classes called crane
        names = [f"{name} ({label})" for label, name in enumerate(names)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    pictures = [Picture.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in synset.bytes]
    dataset = Dataset.from_dict({"image": pictures, "label": synset.labels.tolist()}, features=features)
    file = out / PARQUET
    file.parent.mkdir()
    dataset.to_parquet(str(file))
    class_label = {"names": {str(label): name for label, name in enumerate(names)}}
    split = {"name": "train", "num_bytes": dataset.data.nbytes, "num_examples": len(dataset)}
    info = {"features": [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": {"class_label": class_label}}]}
    info |= {"splits": [split], "download_size": file.stat().st_size, "dataset_size": dataset.data.nbytes}
    front = DatasetCardData(
        license="other",
        license_name="terms-of-the-source-data-set",
        pretty_name=f"{synset.title}, condensed to {len(dataset)} images",
        size_categories=[next(name for most, name in SIZES if len(dataset) < most)],
        task_categories=["image-classification"],
        tags=["dataset-condensation", "dataset-distillation", *filter(None, [synset.dataset])],
        dataset_info=info,
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": PARQUET}]}],
    )
    card = out / "README.md"
    card.write_text(f"---\n{front.to_yaml()}\n---\n\n{card.read_text()}")


def check_repository(name: str) -> None:
    """Raise UserError if `name` can't be the name of a repository, or without the package."""
    try:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError:
        raise UserError("--push needs the package huggingface_hub: pip install huggingface_hub") from None
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name!r}: {' '.join(str(error).split())[:150]}") from None


def push(folder: Path, repo: str) -> str:
    """Upload an hf folder to a dataset repository of the Hub, which is made if it is missing; return its address."""
    from huggingface_hub import HfApi  # optional; `check_repository` has imported the package

    try:
        api = HfApi()
        address = api.create_repo(repo, repo_type="dataset", exist_ok=True)
        api.upload_folder(
            repo_id=repo, repo_type="dataset", folder_path=folder, commit_message="Upload a condensed set"
        )
    except Exception as error:  # no network, no token, no permission, a wrong name: many kinds of errors
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"{folder} is written, but --push {repo!r} failed ({reason}): log in with `hf auth login`, then run `hf "
            f"upload {repo} {folder} --repo-type dataset`"
        ) from None
    return str(address)


def to_dcbench(synset: Set, out: Path) -> None:
    refuse_whitened(synset, "dcbench")
    ipc = len(synset.labels) // len(synset.class_names)
    dataset = synset.dataset or "data"
    folder = out / "DM" / dataset / f"IPC{ipc}"
    folder.mkdir(parents=True)
    content = {"data": [[synset.images, synset.labels]], "accs_all_exps": synset.accuracies}
    disk.save(folder / f"res_DM_{dataset}_ConvNet_{ipc}ipc.pt", content)


def to_card(synset: Set, out: Path) -> None:
    out.mkdir()
    counts = torch.bincount(synset.labels, minlength=len(synset.class_names)).tolist()
    tiles = drawing.in_rows(synset.pixels[synset.labels.argsort(stable=True)], counts, smallest=64)
    (out / "images.png").write_bytes(drawing.png(tiles, max(counts)))
    args, normalisation = synset.metadata.get("args", {}), synset.normalisation
    name = synset.title
    shape = "x".join(map(str, synset.images.shape[1:]))
    each = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    lines = [
        f"# {name}, condensed to {len(synset.labels)} images",
        "",
        "![the images, one row per class](images.png)",
        "",
    ]
    lines += ["| | |", "|---|---|", f"| data set | {name}, {len(synset.class_names)} classes |"]
    n = len(synset.labels) // synset.factor**2
    held = f", decoded from {n} stored images (factor {synset.factor})" if synset.factor > 1 else ""
    lines += [f"| images | {len(synset.labels)} of {shape}, {each} per class{held} |"]
    how = "protocol not recorded"
    if "recipe" in args:
        weights = sets.weights_text(args)
        made_by = " ".join(str(args[key]) for key in ("recipe", "method") if key in args) or "?"
        if "objective" in args:  # a function of the user
            made_by, weights = f"ddm.condense with the objective `{args['objective']}`", ""
        lines += [f"| made by | {made_by}{f' ({weights})' if weights else ''} |", f"| seed | {args.get('seed')} |"]
        how = f"{args.get('eval_split', 'test')} set, last epoch of {args.get('epoch_eval_train', 1000) + 1}"
    lines += [f"| accuracy, {model} | {describe(values)} ({how}) |" for model, values in synset.accuracies.items()]
    unfinished = sets.unfinished_text(synset.metadata)
    lines += [f"| unfinished | {unfinished} |"] if unfinished else []
    versions = ", ".join(f"{name} {version}" for name, version in synset.metadata.get("versions", {}).items())
    lines += [f"| software | {versions} |"] if versions else []
    mean, std = ([round(x, 6) for x in values] for values in (normalisation.mean, normalisation.std))
    constants = f"(pixel - mean) / std, mean {mean}, std {std}"
    cost = clipping_cost(synset.images, normalisation)
    lines += [f"| pixels | {cost} |"] if cost else []
    constants = "ZCA-whitened; the .pt file has the inverse" if synset.whitened else constants
    lines += [f"| normalisation | {constants} |", ""]
    known = args.get("imports") or untapped(str(args.get("model"))) in ARCHITECTURES
    if "dataset" in args and "objective" not in args and known:  # a command can repeat it
        lines += ["## Made with", "", f"    {command(synset)}", ""]
    lines += ["## Classes", "", ", ".join(f"{c} {name}" for c, name in enumerate(synset.class_names)), ""]
    starts = "" if args.get("init") == "noise" else " and start from real images of it"
    lines += ["## Citation", "", *(f"- {paper}" for paper, used in CITED.items() if used(args)), ""]
    lines += ["## Licence", "", LICENCE.format(dataset=name, starts=starts), ""]
    (out / "README.md").write_text("\n".join(lines))


def command(synset: Set) -> str:
    """The command that makes this set again: all flags except paths and the device."""
    args, usual, words = shared(synset.metadata), defaults(), []
    requested = shared(synset.metadata, "asked") or args
    for key, value in requested.items():
        if key in ("recipe", "imports"):  # files without `asked` have the recipe among the flags
            continue
        if value is None and usual.get(key) is not None:  # a preset has unset it, so that the data chose it
            value = args.get(key)
        if value is not None and (value is not False or usual.get(key)):  # a switch is off by default
            words.append(cli.spelled(key, value))
    words += [cli.spelled("import", args["imports"])] if args.get("imports") else []
    recipe, commands = args.get("recipe", "?"), {cls.RECIPE: cls.COMMAND for cls in MAKERS}
    return " ".join([commands.get(recipe, f"python {recipe}.py"), *words])


CITED: dict[str, Callable[[dict], bool]] = {  # paper -> whether a set with these arguments uses it
    "Malakshan et al., Decomposed Distribution Matching in Dataset Condensation, WACV 2025, arXiv 2412.04748": (
        lambda args: True
    ),
    "L_RR: Loo et al., Efficient Dataset Distillation using Random Feature Approximation, NeurIPS 2022": (
        lambda args: bool(args.get("rr_ratio"))
    ),
    "split images: Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization (IDC), ICML 2022": (
        lambda args: (args.get("factor") or 1) > 1
    ),
    "L_CE and partitioning: Zhao et al., Improved Distribution Matching for Dataset Condensation (IDM), CVPR 2023": (
        lambda args: bool(args.get("ce_ratio")) or (args.get("factor") or 1) > 1
    ),
    "trained networks: Zhang et al., DANCE: Dual-View Distribution Alignment for Dataset Condensation, IJCAI 2024": (
        lambda args: args.get("networks") in POOLED
    ),
    "online networks: Zhou et al., Dataset Distillation using Neural Feature Regression (FRePo), NeurIPS 2022": (
        lambda args: args.get("networks") == "online"
    ),
}
LICENCE = (
    "These images were computed from {dataset}{starts}. The terms of {dataset} apply to sharing them. The code that "
    "made them is under the MIT licence."
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


WITH_FACTOR = ("png", "npz", "safetensors")  # the formats that record the factor of stored images
CLIPPED = ("png", "npz", "tensor", "hf")
SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors"}
PARQUET = "data/train-00000-of-00001.parquet"
# The size categories of the Hugging Face Hub: upper limit, name.
SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (math.inf, "n>1M"))


def run(settings: ExportSettings) -> None:
    """Write --out. Raises UserError for invalid settings or files."""
    s, out = settings, Path(settings.out)
    suffix = SUFFIXES.get(s.to, "")
    if suffix and out.suffix != suffix:
        raise UserError(f"--out {s.out!r}: readers expect a file name that ends in {suffix}: rename it")
    if not suffix and out.suffix in SUFFIXES.values():
        raise UserError(f"--out {s.out!r}: readers would take --to {s.to} for a {out.suffix} file: use another suffix")
    if s.push is not None and s.to != "hf":
        raise UserError(f"--push uploads a folder of --to hf, not of --to {s.to}: give --to hf")
    if s.stored and s.to not in WITH_FACTOR:
        raise UserError(f"--stored: --to {s.to} can't record the factor: choose from {', '.join(WITH_FACTOR)}")
    if s.push is not None:
        check_repository(s.push)
    if s.dataset is not None:
        check_name(s.dataset)
    elif s.zca or s.res:
        raise UserError("--zca and --res describe the data set: give --dataset as well")
    if out.exists():
        raise UserError(f"--out {s.out!r} exists already: name another")
    synset = load_set(settings)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with disk.beside(out) as tmp:
            FORMATS[s.to](synset, tmp)
    except OSError as error:
        raise UserError(f"--out {s.out!r} can't be written ({error.strerror or error})") from None
    what = f"stored images (factor {synset.factor})" if synset.encoded else "images"
    number = sets.count(s.file)
    which = f", set {s.experiment} of 0 to {number - 1} (--experiment)" if number > 1 else ""
    print(f"{len(synset.labels)} {what} of {len(synset.class_names)} classes in {out}{which}")
    cost = clipping_cost(synset.images, synset.normalisation) if s.to in CLIPPED else None
    for line in filter(None, (sets.unfinished_text(synset.metadata), cost)):
        print(f"warning: {line}", file=sys.stderr)
    if s.push is not None:
        print(f"pushed  {push(out, s.push)}")
