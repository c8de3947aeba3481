"""Copy condensed sets into sets/, and write the table of sets/README.md.

    python scripts/keep_sets.py cifar10_ipc10=RUN [NAME=RUN ..] [--out sets]

A RUN is the --save_path of a run with one experiment. Its stored images become NAME.safetensors. The table has all
.safetensors files of the folder, also earlier ones.
"""

import argparse
from pathlib import Path

import ddm
from ddm.__main__ import main as command
from ddm.drawing import markdown
from ddm.evaluation.protocol import describe
from ddm.evaluation.sets import weights_text

BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"


def row(path: Path) -> list[str]:
    dataset = ddm.load(path)
    args = dataset.metadata["args"]
    ((model, accs),) = dataset.accuracies.items()
    made = f"{weights_text(args)}; {args['Iteration']:,} iterations of {args['batch_real']} real images per class"
    made += f"; split {args['factor']} x {args['factor']}" if args["factor"] > 1 else ""
    stored = len(dataset) // args["factor"] ** 2
    return [
        f"`{path.name}`",
        f"{args['dataset']}, {stored} images",
        made,
        f"{model}, {args['epoch_eval_train'] + 1:,} epochs: {describe(accs)}",
        f"{path.stat().st_size / 1e6:.1f} MB",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="NAME=RUN")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "sets")
    args = parser.parse_args()
    for text in args.runs:
        name, run = text.split("=", 1)
        path = args.out / f"{name}.safetensors"
        fresh = path.with_stem(f"{name}_new")
        command(["export", run, "--to", "safetensors", "--stored", "--out", str(fresh)])
        fresh.replace(path)
    rows = [row(path) for path in sorted(args.out.glob("*.safetensors"))]
    readme = args.out / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    table = markdown([["file", "content", "made by", "test accuracy of its run", "size"], *rows])
    readme.write_text(f"{before}{BEGIN}{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
