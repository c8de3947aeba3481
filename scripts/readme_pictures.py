"""Draws the pictures of README.md and docs/strong.md into docs/images/.

    python scripts/readme_pictures.py sets RUN_OF_BEST --data_path data
    python scripts/readme_pictures.py curves best=RUN_OF_BEST dm=RUN_OF_DM
    python scripts/readme_pictures.py strong RUN_OF_STRONG

`sets`: real, random and condensed CIFAR10 images side by side. `curves`: accuracy over seconds of condensing, from
results.json. `strong`: stored and decoded images of a partitioned set. A RUN is the --save_path of a run on CIFAR10.
With RUN,TIMED the seconds are those of another run of the same iterations, made while the machine was quiet.
docs/speed.md has the commands of these runs.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ddm  # noqa: E402 - the clone's package
from ddm import drawing  # noqa: E402
from ddm.data.images import Normalisation  # noqa: E402
from ddm.data.loading import load  # noqa: E402
from ddm.methods.sampling import initial_indices  # noqa: E402

IMAGES = ROOT / "docs" / "images"


def draw_sets(run: str, data_path: str) -> None:
    """Three panels of 10 images per class: real images, random ones (the baseline of a run), condensed ones."""
    condensed = ddm.load(run, pixels=True)
    data = load("CIFAR10", data_path)
    counts = torch.bincount(condensed.labels).tolist()
    shown = torch.cat([own[100 : 100 + n] for own, n in zip(data.indices, counts, strict=True)])
    random = initial_indices(data, counts, 0, 0)
    panels = {
        "50,000 real images (100 shown)": data.normalisation.pixels(data.batch(shown)),
        "100 random real images": data.normalisation.pixels(data.batch(random)),
        "100 condensed images": condensed.images,
    }
    draw_panels({title: (pixels, max(counts)) for title, pixels in panels.items()}, "cifar10.jpg", 2.6)


def draw_strong(run: str) -> None:
    """Two panels: the stored images of each class, and the images decoded from the first three of them."""
    decoded = ddm.load(run, pixels=True)
    stored = Normalisation.of(decoded.mean, decoded.std).pixels(decoded.stored)
    classes, shown = len(decoded.class_names), 3 * decoded.factor**2
    panels = {
        f"{len(stored)} stored images": (stored, len(stored) // classes),
        f"{shown} of {len(decoded) // classes} decoded images per class": (
            decoded.images.unflatten(0, (classes, -1))[:, :shown].flatten(0, 1),
            shown,
        ),
    }
    draw_panels(panels, "strong.jpg", 3.2)


def draw_panels(panels: dict[str, tuple[Tensor, int]], name: str, height: float) -> None:
    """Panels side by side: title -> pixels [N, C, H, W] and images per row."""
    with drawing.axes(7, height) as (figure, axes):  # 1,050 pixels wide: each image has its own pixels
        axes.remove()
        for place, (title, (pixels, row)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            place.imshow(make_grid(pixels.clamp(0, 1), nrow=row, padding=1).permute(1, 2, 0))
            place.set_title(title, fontsize=9)
            place.set_axis_off()
        drawing.save_figure(figure, IMAGES / name, "the picture")


def draw_curves(runs: list[str]) -> None:
    """Accuracy over seconds of condensing; the band is one standard deviation over networks."""
    with drawing.axes(7, 4) as (figure, axes):
        for run in runs:
            name, _, folders = run.partition("=")
            folder, _, timed = folders.partition(",")
            record = json.loads((Path(folder) / "results.json").read_text())
            clock = json.loads((Path(timed or folder) / "results.json").read_text())
            passed = {e["iteration"]: e["condensing_seconds"] for e in clock["evaluations"]}
            entries = [e for e in record["evaluations"] if e["images"] == "condensed"]
            first = next(e for e in record["evaluations"] if e["images"] == "random real")
            seconds = [0.0] + [passed[e["iteration"]] for e in entries]
            accs = [[100 * a for a in e["accuracies"]] for e in (first, *entries)]
            drawing.banded(axes, seconds, accs, f"{name} (n {len(accs[0])})")
        axes.axhline(48.9, color="grey", linestyle=":", label="DM, published: 48.9 %")
        axes.set(xlabel="seconds of condensing", ylabel="test accuracy, %")
        axes.legend()
        drawing.save_figure(figure, IMAGES / "accuracy_over_seconds.png", "the picture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sets", "curves", "strong"))
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data_path", default="data")
    args = parser.parse_args()
    draw = {
        "sets": lambda: draw_sets(args.runs[0], args.data_path),
        "curves": lambda: draw_curves(args.runs),
        "strong": lambda: draw_strong(args.runs[0]),
    }
    draw[args.what]()


if __name__ == "__main__":
    main()
