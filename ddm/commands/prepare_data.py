"""`ddm prepare`: converts a data set into a store."""

import shutil
import sys
from pathlib import Path

from ddm import cli
from ddm.commands.settings import PrepareSettings
from ddm.data import layouts, loading, store
from ddm.data.catalogue import DATASETS
from ddm.data.images import ImageData
from ddm.data.layouts import Array, Listing
from ddm.errors import UserError, nearest
from ddm.interrupt import Interrupts


def find(args: PrepareSettings, source: Path, work: Path) -> Listing:
    """List the images of an archive, a folder or a file; archives are unpacked into `work`. Raises UserError."""
    prepared = layouts.PREPARED.get(args.name)
    if prepared is not None:
        root = layouts.unpacked(source, work)
        if not root.is_dir() and not (args.name == "TinyImageNet" and root.suffix == ".pt"):
            kinds = ", ".join(layouts.ARCHIVES)
            raise UserError(f"--source {args.source!r} is neither a folder nor an archive: give a folder or {kinds}")
        return prepared.find(root, args.name)
    if args.name not in DATASETS:
        root = layouts.unpacked(source, work)
        return layouts.folders(root, args.name) if root.is_dir() else array_listing(loading.load_file(root))
    if source.is_file():
        return array_listing(loading.load_file(source, args.name))
    return layouts.idx_files(source, args.name) or array_listing(loading.load(args.name, source, download=False))


def array_listing(data: ImageData) -> Listing:
    """The listing of a data set in memory."""
    splits = {
        split: Array(x[:].permute(0, 2, 3, 1).numpy(), y.numpy())
        for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test))
    }
    return Listing(data.name, data.class_names, splits)


def check(args: PrepareSettings, listing: Listing) -> list[str]:
    """Notes on differences from the published data set. Raises UserError for other shapes, labels or classes."""
    notes, prepared = list(listing.notes), layouts.PREPARED.get(args.name)
    spec = DATASETS.get(args.name)
    classes = prepared.num_classes if prepared else len(spec.class_names) if spec else len(listing.class_names)
    for split, images in listing.splits.items():
        if isinstance(images, Array):
            shape, labels = images.images.shape[1:], images.labels
            wanted = (*spec.shape[1:], spec.shape[0]) if spec else shape
            span = f" {labels.min()} to {labels.max()}" if len(labels) else ""
            wrong = len(labels) and not 0 <= labels.min() <= labels.max() < classes
            if shape != wanted or len(labels) != len(images) or wrong:
                content = f"{len(images)} images {list(shape)}, {len(labels)} labels{span}"
                raise UserError(f"the {split} set in {args.source} has {content}: it is not {args.name}")
    if len(listing.class_names) != classes:
        raise UserError(f"{args.source} has {len(listing.class_names)} classes, {args.name} has {classes}")
    counts = tuple(len(listing.splits[split]) for split in ("train", "test"))
    if prepared and counts != prepared.counts:
        whole = " and ".join(map(str, prepared.counts))
        notes.append(f"{counts[0]} training and {counts[1]} test images; a complete copy has {whole}")
    if spec:
        listing.class_names, listing.constants = spec.class_names, {"mean": spec.mean, "std": spec.std}
    elif prepared:
        listing.constants = layouts.CONSTANTS
    return notes


def run(args: PrepareSettings) -> None:
    """Make the store. Raises UserError for invalid settings, data or files, and Stopped after a signal."""
    with Interrupts().installed() as interrupts, interrupts.immediate():
        prepare(args)


def prepare(args: PrepareSettings) -> None:
    source, data_path = Path(args.source), Path(args.data_path)
    if not source.exists():
        raise UserError(f"--source {args.source!r}: there is no such file or folder: check the path")
    if not args.name.strip(". "):
        raise UserError(f"{args.name!r} is no name of a data set: give a word, and the path as --source")
    if loading.is_path(args.name) and (Path(args.name).name != args.name or Path(args.name).suffix):
        raise UserError(f"{args.name!r} is a path: give a name, and the path as --source")
    prepared = layouts.PREPARED.get(args.name)
    if args.name not in loading.NAMES and not args.own:
        raise UserError(
            f"unknown dataset {args.name!r}: {nearest(args.name, loading.NAMES)}; add --own for a new data set"
        )
    if args.own and args.name in loading.NAMES:
        raise UserError(f"--own {args.name}: this is the name of a published data set; choose another")
    base, _, number = args.name.rpartition("_")
    if args.own and base in loading.NAMES and number.isdigit():
        raise UserError(f"--own {args.name}: this is the name of a store of {base}; choose another")
    if args.name in DATASETS:
        size = DATASETS[args.name].shape[1]
        if args.res not in (None, size):
            raise UserError(f"--res {args.res}: {args.name} has images of {size} pixels; leave --res out")
        args = args.but(res=None)
    res = args.res or (prepared.res if prepared else None)
    path = layouts.store_path(data_path, args.name, res)
    if store.is_store(path):
        metadata, _ = store.read(path)
        print(f"{path} exists already: {metadata['counts']}; delete it to make it again")
        return
    work = path.with_name(path.name + ".source")
    try:
        listing = find(args, source, work)
        for note in check(args, listing):
            print(f"note: {note}")
            listing.notes = [*dict.fromkeys([*listing.notes, note])]
        metadata = layouts.fill(path, listing, str(source.resolve()), res)
    except UserError:
        if not store.partial(path).exists():  # nothing to resume
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    for line in metadata["warnings"]:
        print(f"warning: {args.name}: {line}", file=sys.stderr)
    damaged = [entry for entries in metadata["damaged"].values() for entry in entries]
    for _, file, reason in damaged[:10]:
        print(f"damaged: {file}: {reason}")
    if damaged:
        print(f"{path / 'store.json'} lists all that were left out")
    counts = ", ".join(f"{split} {n}" for split, n in metadata["counts"].items())
    measured = (", ".join(f"{x:.4f}" for x in metadata[key]) for key in ("measured_mean", "measured_std"))
    print(f"images   {counts}, {'x'.join(map(str, metadata['shape']))}, {len(metadata['class_names'])} classes")
    print("pixels   mean {}; std {}".format(*measured))
    print(f"store    {path}")
    usage = {"dataset": str(path) if args.own else args.name, "data_path": str(data_path)}
    usage |= {"res": res} if prepared and args.res else {}
    print("use it  ", *(cli.spelled(name, value) for name, value in usage.items()))
