"""`ddm report`: one self-contained HTML page about one or more runs."""

import base64
import html
import io
import json
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddm import disk, drawing, rng
from ddm.commands.settings import ReportSettings
from ddm.data.loading import load_split, short_name
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation import sets
from ddm.evaluation.protocol import summary
from ddm.losses import gram_distance, image_moments, mean_gram, moments_distance
from ddm.methods.matching import features
from ddm.methods.step import INITS
from ddm.networks import empty_network, initialise

REAL = 64  # real images per class in the comparisons
STATISTICS = {"moments": image_moments, "grams": mean_gram}
GREY = "#8a8a8a"  # the colour of axes and text: readable on white and on black
COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee8866", "#44bb99", "#aa4499"]


class ClassFeatures(NamedTuple):
    """The features of some images under one untrained network, by class."""

    embedding: list[Tensor]  # per class: [n, D]
    style: list[dict[str, list[Tensor]]]  # per class: statistic -> list over layers of [1, ...]


class RunFolder:
    """The files and data of a run. Raises UserError for missing or unreadable files."""

    def __init__(self, folder: Path, data_path: str, res: int | None):
        self.folder = folder
        try:
            self.results = json.loads((folder / "results.json").read_text())
            self.args = self.results["args"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} has no results.json of a run ({type(error).__name__}): name the --save_path of a run"
            ) from None
        files = sorted(folder.glob("res_*.pt"))
        if not files:
            raise UserError(f"{folder} has no res_*.pt: name the --save_path of a run")
        a = self.args
        sets.check_registered(folder, a, "dataset", "model")
        split, zca = a.get("eval_split", "test"), bool(a.get("zca"))  # the data as in the run
        self.data, _ = load_split(a["dataset"], data_path, res or a.get("res"), split, zca, a.get("seed", 0))
        (found,), _ = sets.read(files[0], self.data, experiments="0")
        self.images, self.labels = found.images, found.labels
        self.metrics = []
        if (folder / "metrics.jsonl").exists():
            for line in (folder / "metrics.jsonl").read_text().splitlines():
                try:
                    self.metrics.append(json.loads(line))
                except ValueError:  # an incomplete line of a killed process
                    continue

    def of_class(self, c: int) -> Tensor:
        return self.images[self.labels == c]

    def initial(self, c: int) -> Tensor:
        """The initial images of a class (experiment first_exp)."""
        return self.start[c]

    @cached_property
    def start(self) -> tuple[Tensor, ...]:
        counts = torch.bincount(self.labels, minlength=self.data.num_classes).tolist()
        init, experiment = self.args.get("init", "real"), self.args.get("first_exp", 0)
        return INITS[init](self.data, counts, self.args["seed"], experiment).split(counts)

    def real(self, c: int) -> Tensor:
        n = min(REAL, len(self.data.indices[c]))
        return self.data.batch(self.data.draw(c, n, rng.generator(0, 0, 0, c, "report")))


# --- computations ------------------------------------------------------------------------------------------


@torch.no_grad()
def embed_classes(run: RunFolder, images: Callable[[int], Tensor]) -> ClassFeatures:
    """The features of images(class) under one untrained network of the run's architecture, at its published taps."""
    data, model = run.data, run.args["model"]
    net = empty_network(model, data.channel, data.num_classes, data.im_size, "cpu")
    net.tap("published" if net.sites.get("published") else "none")
    initialise(net, rng.generator(0, 0, 0, -1, "report")).eval()
    found = [features(net, images(c)[None], STATISTICS if net.taps else {}, Machine()) for c in range(data.num_classes)]
    return ClassFeatures([f.embedding[0] for f in found], [f.style for f in found])


def style_gaps(real: ClassFeatures, other: ClassFeatures) -> dict[str, list[float]]:
    """Relative L_MM and L_CM of each layer, averaged over classes."""
    layers = len(real.style[0].get("moments", []))
    gaps: dict[str, list[float]] = {"moments (L_MM)": [], "Gram (L_CM)": []}
    for layer in range(layers):
        mm, cm = [], []
        for r, o in zip(real.style, other.style, strict=True):
            mm.append(moments_distance([r["moments"][layer]], [o["moments"][layer]], "image", True).item())
            cm.append(gram_distance([r["grams"][layer]], [o["grams"][layer]], True).item())
        gaps["moments (L_MM)"].append(sum(mm) / len(mm))
        gaps["Gram (L_CM)"].append(sum(cm) / len(cm))
    return gaps


def spreads(images: ClassFeatures) -> list[float]:
    """The root mean squared distance of the embeddings of each class to their mean; 0 for one image."""
    return [(e - e.mean(0)).square().sum(1).mean().sqrt().item() for e in images.embedding]


# --- figures -----------------------------------------------------------------------------------------------


def figure(draw: Callable, wide: float = 6, high: float = 3.4) -> str:
    """The plot that `draw(axes)` draws, as an <img> for light and dark pages."""
    settings = {key: GREY for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "legend.frameon": False}
    with drawing.axes(wide, high, settings) as (canvas, axes):
        axes.set_prop_cycle(color=COLOURS)
        draw(axes)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=130, transparent=True)
    return image_tag(buffer.getvalue(), "a plot")


def image_tag(content: bytes, alt: str, style: str = "") -> str:
    return f'<img {style} alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def gallery(run: RunFolder) -> str:
    rows = []
    for c, name in enumerate(run.data.class_names[:MOST_CLASSES]):
        syn = run.of_class(c)[:10]
        cells = [f"<th>{html.escape(name)}</th>"]
        for kind, images in (("real", run.real(c)[: len(syn)]), ("synthetic", syn)):
            content = drawing.png(run.data.normalisation.pixels(images), len(images), padding=1, pad_value=0.5)
            cells.append(f"<td>{image_tag(content, f'{kind} images of {name}', 'class=pixels')}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    left = len(run.data.class_names) - MOST_CLASSES
    more = f"<p>{left} more classes are not shown.</p>" if left > 0 else ""
    head = "<tr><th></th><th>real</th><th>synthetic</th></tr>"
    return f'<div class="scroll"><table class="gallery">{head}{"".join(rows)}</table></div>{more}'


MOST_CLASSES = 20


def evolution(run: RunFolder) -> str:
    found = []
    for path in run.folder.glob("vis_*_exp*_iter*.png"):
        experiment, iteration = map(int, re.search(r"_exp(\d+)_iter(\d+)\.png$", path.name).groups())
        if experiment == run.args.get("first_exp", 0):
            found.append((iteration, path))
    found = sorted(found)
    if len(found) > 6:  # first, last and four between
        found = [found[round(k * (len(found) - 1) / 5)] for k in range(6)]
    tags = [
        f"<figure>{image_tag(path.read_bytes(), f'iteration {it}')}<figcaption>{it} iterations</figcaption></figure>"
        for it, path in found
    ]
    return f'<div class="strip">{"".join(tags)}</div>' if tags else "<p>The run has no image grids.</p>"


def loss_curves(run: RunFolder) -> str:
    first = run.args.get("first_exp", 0)
    lines = [line for line in run.metrics if line["kind"] == "loss" and line["experiment"] == first]
    if not lines:
        return "<p>metrics.jsonl has no losses.</p>"
    names = [key for key in lines[0] if key.startswith("L_")]

    def draw(axes) -> None:
        for name in names:
            axes.plot([line["iteration"] for line in lines], [line[name] for line in lines], label=name)
        axes.set(xlabel="iteration", ylabel="weighted term, mean over classes")
        if all(line[name] > 0 for line in lines for name in names):
            axes.set_yscale("log")
        axes.legend()

    return figure(draw)


def accuracy_curves(run: RunFolder) -> str:
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for entry in run.results["evaluations"]:
        if entry.get("accuracies"):
            at = found.setdefault((entry["model"], entry["images"]), {}).setdefault(entry["iteration"], [])
            at.extend(100 * acc for acc in entry["accuracies"])

    if all(len(points) == 1 for points in found.values()):  # one point does not make a line
        stats = [summary(accs) for points in found.values() for accs in points.values()]
        means, stds = [s["mean"] for s in stats], [s["std"] for s in stats]
        return bars({"": means}, [", ".join(key) for key in found], "accuracy of fresh networks, %", stds)

    def draw(axes) -> None:
        for (model, kind), points in found.items():
            at = sorted(points)
            stats = [summary(points[i]) for i in at]
            mean, std = [s["mean"] for s in stats], [s["std"] for s in stats]
            line = axes.errorbar(at, mean, yerr=std, fmt="o-", capsize=3, label=f"{model}, {kind}")
            if kind == "random real" and len(at) == 1:
                axes.axhline(mean[0], linestyle=":", color=line[0].get_color())
        axes.set(xlabel="iteration", ylabel="accuracy of fresh networks, %")
        axes.legend()

    return figure(draw)


def bars(groups: dict[str, list[float]], labels: list[str], ylabel: str, errors: list[float] | None = None) -> str:
    def draw(axes) -> None:
        width = 0.8 / len(groups)
        for k, (name, values) in enumerate(groups.items()):
            axes.bar(
                [i + k * width for i in range(len(values))],
                values,
                width,
                label=name,
                yerr=errors,
                capsize=4,
                ecolor=GREY,
            )
        middle = [i + 0.4 - width / 2 for i in range(len(labels))]
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(labels) > 5 else {}
        axes.set_xticks(middle, labels, **turned)
        axes.set_xlim(-0.6, max(len(labels), 4) - 0.2)  # limits the width of a single bar
        axes.set_ylabel(ylabel)
        if len(groups) > 1:
            axes.legend(ncols=len(groups), loc="lower center", bbox_to_anchor=(0.5, 1))

    return figure(draw)


DOTS, STARS = {"s": 9, "alpha": 0.45}, {"s": 45, "marker": "*", "edgecolors": "#555"}


def embedding(run: RunFolder, real: ClassFeatures, syn: ClassFeatures, kind: str) -> str:
    from sklearn.decomposition import PCA  # imported here: it takes a second

    classes = range(min(10, run.data.num_classes))
    points = torch.cat([e[:40] for c in classes for e in (real.embedding[c], syn.embedding[c])]).numpy()
    if kind == "tsne":
        from sklearn.manifold import TSNE

        flat = TSNE(2, random_state=0, perplexity=min(30, len(points) // 4)).fit_transform(points)
    else:
        flat = PCA(2, random_state=0).fit_transform(points)

    def draw(axes) -> None:
        first = 0
        for c in classes:
            for images, options in ((real, DOTS), (syn, STARS)):
                n = len(images.embedding[c][:40])
                part = flat[first : first + n]
                label = run.data.class_names[c] if images is syn else None
                axes.scatter(part[:, 0], part[:, 1], color=COLOURS[c % 10], label=label, linewidths=0.5, **options)
                first += n
        axes.set(xticks=[], yticks=[])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)

    return figure(draw, 6.6, 4.4)


# --- the page ------------------------------------------------------------------------------------------------


def run_table(run: RunFolder) -> str:
    results = run.results
    rows = {"accuracy": f"{100 * results['mean']:.2f} % ± {100 * results['std']:.2f}, n {results['n']}"}
    for model, found in results.get("random_real", {}).items():
        rows[f"random real images, {model}"] = f"{100 * found['mean']:.2f} % ± {100 * found['std']:.2f}, n {found['n']}"
    rows["protocol"] = results["protocol"]
    rows["command"] = " ".join([Path(results["command"][0]).name, *results["command"][1:]])
    rows["hardware"] = ", ".join(f"{key} {value}" for key, value in results["hardware"].items())
    rows["versions"] = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    return table(rows)


def table(rows: dict[str, object]) -> str:
    cells = (f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f'<div class="scroll"><table>{"".join(cells)}</table></div>'


def section(title: str, body: str, note: str = "") -> str:
    return f"<section><h3>{title}</h3>{f'<p>{note}</p>' if note else ''}{body}</section>"


def run_report(run: RunFolder, kind: str) -> str:
    real, before, after = (embed_classes(run, images) for images in (run.real, run.initial, run.of_class))
    names = run.data.class_names[:MOST_CLASSES]
    parts = [section("The run", run_table(run))]
    parts.append(section("Images", gallery(run), "Real and synthetic images of each class."))
    parts.append(section("Images during condensation", evolution(run)))
    parts.append(section("Losses", loss_curves(run)))
    parts.append(section("Accuracy", accuracy_curves(run)))
    gaps_before, gaps_after = style_gaps(real, before), style_gaps(real, after)
    note = (
        f"Relative distance to {REAL} real images per class under one untrained network, averaged over classes: "
        "initial images (before) and synthetic images (after)."
    )
    bodies = []
    for name, values in gaps_before.items():
        pair, layers = {"before": values, "after": gaps_after[name]}, [f"layer {k}" for k in range(len(values))]
        if values:
            bodies.append(f"<h4>{name}</h4>" + bars(pair, layers, "relative distance"))
    gaps = "".join(bodies) or "<p>The network has no feature maps to read.</p>"
    parts.append(section("Style gap of each layer", gaps, note))
    groups = {"real": spreads(real), "initial": spreads(before), "synthetic": spreads(after)}
    groups = {name: values[:MOST_CLASSES] for name, values in groups.items()}
    note = "Root mean squared distance of embeddings to their class mean, same network."
    parts.append(section("Spread within classes", bars(groups, names, "spread"), note))
    how = {"tsne": "t-SNE", "pca": "PCA"}[kind]
    note = f"{how} of embeddings, same network: dots are real images, stars synthetic ones."
    parts.append(section("Embeddings", embedding(run, real, after, kind), note))
    shown = {key: value for key, value in sorted(run.args.items()) if value is not None}
    parts.append(section("Settings", f"<details><summary>{len(shown)} arguments</summary>{table(shown)}</details>"))
    made_by, dataset = run.args.get("method") or run.args.get("recipe"), short_name(run.args["dataset"])
    title = html.escape(f"{made_by}, {dataset}, {run.args['ipc']} images per class")
    path = html.escape(run.folder.name)
    return f"<article><h2>{title}</h2><p class='path'>{path}</p>{''.join(parts)}</article>"


STYLE = """
:root { color-scheme: light dark; --line: #8884; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1700px; padding: 1rem; }
main { display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); }
article { min-width: 0; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-bottom: 0; } h4 { margin: .5rem 0 0; font-weight: 600; }
h3 { border-top: 1px solid var(--line); font-size: 1.05rem; margin: 1.5rem 0 .5rem; padding-top: .8rem; }
p { margin: .3rem 0; } .path, figcaption, section > p { color: #777; font-size: .875rem; }
img { height: auto; max-width: 100%; vertical-align: middle; }
.pixels { image-rendering: pixelated; height: 25px; max-width: none; }
.scroll { overflow-x: auto; } .strip { display: flex; gap: .75rem; overflow-x: auto; }
figure { flex: 0 0 auto; margin: 0; }
.strip img { image-rendering: pixelated; max-height: 300px; max-width: none; }
table { border-collapse: collapse; font-size: .875rem; } th { font-weight: 600; text-align: left; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; vertical-align: top; }
td { overflow-wrap: anywhere; } .gallery td { white-space: nowrap; }
"""


def run(settings: ReportSettings) -> None:
    """Write the page. Raises UserError for missing or unreadable files."""
    runs = [RunFolder(Path(folder), settings.data_path, settings.res) for folder in settings.folders]
    bodies = "".join(run_report(found, settings.embedding) for found in runs)
    title = "Condensed sets" if len(runs) > 1 else "A condensed set"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{title}</title><style>{STYLE}</style>"
    body = f"<h1>{title}</h1><main>{bodies}</main>"
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
    out = Path(settings.out or runs[0].folder / "report.html")
    try:
        disk.replace(out, page)
    except OSError as error:
        raise UserError(f"{out} can't be written ({error.strerror})") from None
    print(f"report  {out} ({out.stat().st_size / 2**20:.1f} MiB)")
