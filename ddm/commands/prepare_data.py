"""Bring a data set into a store: uint8 arrays on the disk that training reads without loading them.

    python prepare_data.py TinyImageNet --source tiny-imagenet-200.zip
    python prepare_data.py ImageNet --source /data/ILSVRC2012 --res 64

Interrupted, the same command goes on. Images that can't be decoded are left out and listed. docs/datasets.md has the
layout that each data set is expected in.
"""

import shutil
import sys
from argparse import Namespace
from pathlib import Path

from ddm.data import data as datasets
from ddm import flags
from ddm.data import layouts
from ddm.data import store
from ddm.errors import UserError, nearest
from ddm.data.layouts import Array, Listing


def find(args: Namespace, source: Path, where: Path) -> Listing:
    """What is to be prepared, from an archive, a folder or a file."""
    prepared = layouts.PREPARED.get(args.name)
    if prepared is not None:
        root = layouts.unpacked(source, where)
        if not root.is_dir() and not (args.name == "TinyImageNet" and root.suffix == ".pt"):
            raise UserError(f"--source {args.source!r} is neither a folder nor one of {', '.join(layouts.ARCHIVES)}")
        return prepared.find(root, args.name)
    if args.name not in datasets.DATASETS:
        root = layouts.unpacked(source, where)
        return layouts.folders(root, args.name) if root.is_dir() else array_listing(datasets.load_file(root))
    if source.is_file():
        return array_listing(datasets.load_file(source, args.name))
    return layouts.idx_files(source, args.name) or array_listing(datasets.load(args.name, source))


def array_listing(data: datasets.ImageData) -> Listing:
    """A data set that is small enough to be in memory already."""
    splits = {
        split: Array(x[:].permute(0, 2, 3, 1).numpy(), y.numpy())
        for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test))
    }
    return Listing(data.name, data.class_names, splits)


def check(args: Namespace, listing: Listing) -> list[str]:
    """What differs from the data set as it was published; raises UserError where the number of classes does."""
    notes, prepared = list(listing.notes), layouts.PREPARED.get(args.name)
    spec = datasets.DATASETS.get(args.name)
    classes = prepared.num_classes if prepared else len(spec.class_names) if spec else len(listing.class_names)
    for split, images in listing.splits.items():
        if isinstance(images, Array):
            shape, labels = images.images.shape[1:], images.labels
            wanted = (*spec.shape[1:], spec.shape[0]) if spec else shape
            if shape != wanted or len(labels) != len(images) or not 0 <= labels.min() <= labels.max() < classes:
                found = f"{len(images)} images {list(shape)}, {len(labels)} labels {labels.min()} to {labels.max()}"
                raise UserError(f"the {split} set in {args.source} has {found}: it is not {args.name}")
    if len(listing.class_names) != classes:
        raise UserError(f"{args.source} has {len(listing.class_names)} classes, {args.name} has {classes}")
    found = tuple(len(listing.splits[split]) for split in ("train", "test"))
    if prepared and found != prepared.counts:
        whole = " and ".join(map(str, prepared.counts))
        notes.append(f"{found[0]} training and {found[1]} test images, where a whole copy has {whole}")
    if spec:
        listing.class_names, listing.constants = spec.class_names, {"mean": spec.mean, "std": spec.std}
    elif prepared:
        listing.constants = layouts.CONSTANTS
    return notes


def run(args: Namespace) -> None:
    source, data_path = Path(args.source), Path(args.data_path)
    if not source.exists():
        raise UserError(f"--source {args.source!r}: there is no such file or folder")
    if datasets.is_path(args.name) and (Path(args.name).name != args.name or Path(args.name).suffix):
        raise UserError(f"{args.name!r} is a path: give the data set a name, and its path as --source")
    prepared = layouts.PREPARED.get(args.name)
    if args.name not in datasets.NAMES and not args.own:
        raise UserError(f"unknown dataset {args.name!r}: {nearest(args.name, datasets.NAMES)}; one's own wants --own")
    if args.name in datasets.DATASETS:
        size = datasets.DATASETS[args.name].shape[1]
        if args.res not in (None, size):
            raise UserError(f"--res {args.res}: {args.name} has images of {size} pixels; leave --res out")
        args.res = None
    elif args.own and args.name in datasets.NAMES:
        raise UserError(f"--own {args.name}: that is the name of a published data set; choose another")
    res = args.res or (prepared.res if prepared else None)
    path = layouts.store_path(data_path, args.name, res)
    if store.is_store(path):
        about, _ = store.read(path)
        print(f"{path} is there already: {about['counts']}; delete it to make it again")
        return
    work = path.with_name(path.name + ".source")
    try:
        listing = find(args, source, work)
        notes = check(args, listing)
    except UserError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    for note in notes:
        print(f"note: {note}")
        listing.notes = [*dict.fromkeys([*listing.notes, note])]
    about = layouts.fill(path, listing, str(source.resolve()), res)
    shutil.rmtree(work, ignore_errors=True)
    damaged = [entry for entries in about["damaged"].values() for entry in entries]
    for _, file, reason in damaged[:10]:
        print(f"damaged: {file}: {reason}")
    if damaged:
        print(f"{len(damaged)} images could not be read and were left out; {path / 'store.json'} lists them")
    counts = ", ".join(f"{split} {n}" for split, n in about["counts"].items())
    measured = (", ".join(f"{x:.4f}" for x in about[key]) for key in ("measured_mean", "measured_std"))
    print(f"images   {counts}, {'x'.join(map(str, about['shape']))}, {len(about['class_names'])} classes")
    print("pixels   mean {}; std {}".format(*measured))
    print(f"store    {path}")
    own = f"{path}" if args.own else args.name
    print(f"use it   --dataset {own} --data_path {data_path}" + (f" --res {res}" if prepared and args.res else ""))


def make_parser() -> flags.Parser:
    parser = flags.Parser(__doc__)
    parser.formatter_class = flags.argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(datasets.NAMES)}; any other with --own")
    add = parser.data.add_argument
    add("--source", type=flags.a_path, required=True, help="archive, folder or file that has the images")
    add("--res", type=flags.resolution, default=None, help="side in pixels that images are resized to")
    add("--data_path", type=flags.a_path, default="data", help="folder that the store is made in")
    add("--own", action="store_true", help="NAME is a new one: class folders, or an .npz file, of one's own")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    try:
        run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
