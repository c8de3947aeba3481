"""The plots of a report, each with a text that states its numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ddm import page
from ddm.commands.report_data import ClassFeatures, ReportedRun, embed_classes, spreads, style_gaps
from ddm.evaluation.protocol import summary
from ddm.page import FEW, Plot


class Features(NamedTuple):
    """A run, and the features of its real, initial and synthetic images."""

    run: ReportedRun
    real: ClassFeatures
    before: ClassFeatures
    after: ClassFeatures


def features(run: ReportedRun) -> Features:
    """Embed the images of a run."""
    return Features(run, *(embed_classes(run, images) for images in (run.real, run.initial, run.of_class)))


def caption(run: ReportedRun, runs: Sequence[ReportedRun]) -> str:
    """The name of a run, where a page has several."""
    return run.name if len(runs) > 1 else ""


def losses(runs: Sequence[ReportedRun]) -> str:
    """A plot per weighted term, with a line per run; runs with fewer than two logged losses are left out."""
    curves: dict[str, dict[str, dict[int, float]]] = {}  # term -> run -> iteration -> value
    for run in runs:
        first = run.args.get("first_exp", 0)
        lines = [line for line in run.metrics if line["kind"] == "loss" and line["experiment"] == first]
        for name in dict.fromkeys(name for line in lines for name in line if name.startswith("L_")):
            points = {line["iteration"]: line[name] for line in lines if name in line}
            if len(points) > 1 and any(points.values()):
                curves.setdefault(name, {})[run.name] = points

    def plot(name: str, curves_of_run: dict[str, dict[int, float]]) -> Plot:
        def draw(axes: Any) -> None:
            for run, points in curves_of_run.items():
                axes.plot(
                    list(points),
                    list(points.values()),
                    label=run,
                    color=page.COLOURS[order.index(run) % len(page.COLOURS)],
                )
            axes.set(xlabel="iteration", ylabel="weighted term")
            values = [value for points in curves_of_run.values() for value in points.values()]
            if min(values) > 0 and max(values) > 10 * min(values):
                axes.set_yscale("log")
            if len(runs) > 1:
                page.legend(axes)

        changes = []
        for run, points in curves_of_run.items():
            values = list(points.values())
            changes.append(f"{run} from {values[0]:.3g} to {values[-1]:.3g}")
        points = next(iter(curves_of_run.values()))
        return Plot(draw, f"{name}, iterations {min(points)} to {max(points)}: {', '.join(changes)}.", name)

    order = list(dict.fromkeys(run for by_run in curves.values() for run in by_run))
    return page.plots([plot(*item) for item in curves.items()], "x", high=2.6) if curves else ""


def accuracies(run: ReportedRun) -> dict[str, dict[int, dict]]:
    """'network, kind of images' -> iteration -> mean and std in %, n."""
    points_of: dict[str, dict[int, list[float]]] = {}
    for entry in run.results["evaluations"]:
        if entry.get("accuracies"):
            points = points_of.setdefault(f"{entry['model']}, {entry['images']}", {})
            points.setdefault(entry["iteration"], []).extend(100 * acc for acc in entry["accuracies"])
    return {name: {i: summary(points[i]) for i in sorted(points)} for name, points in points_of.items()}


def as_curves(points_of: dict[str, dict[int, dict]]) -> page.Draw:
    """Accuracies over iterations; those without iterations are horizontal lines."""

    def draw(axes: Any) -> None:
        for k, (name, points) in enumerate(points_of.items()):
            mean, std = ([s[key] for s in points.values()] for key in ("mean", "std"))
            style = {"color": page.COLOURS[k % len(page.COLOURS)], "label": name}
            if len(points) == 1:
                axes.axhline(mean[0], linestyle="--", **style)
                axes.axhspan(mean[0] - std[0], mean[0] + std[0], color=style["color"], alpha=0.15, linewidth=0)
            else:
                marker = page.MARKERS[k % len(page.MARKERS)]
                axes.errorbar(list(points), mean, yerr=std, fmt=f"{marker}-", capsize=3, **style)
        axes.set(xlabel="iteration", ylabel="accuracy of fresh networks, %")
        page.legend(axes, 1 if max(map(len, points_of)) > 24 else 2)

    return draw


def as_bars(labels: list[str], last: list[dict]) -> page.Draw:
    """Accuracies as horizontal bars with their values."""

    def draw(axes: Any) -> None:
        mean, std = ([s[key] for s in last] for key in ("mean", "std"))
        held = axes.barh(labels, mean, 0.6, xerr=std, capsize=4, ecolor=page.INK, color=page.COLOURS[0])
        axes.bar_label(held, [f"{m:.1f}" for m in mean], padding=4)
        axes.set_ylim(len(labels) - 0.4, -0.6)  # the first on top
        axes.set(xlabel="accuracy of fresh networks, %")
        axes.margins(x=0.15)

    return draw


def accuracy_plots(runs: Sequence[ReportedRun]) -> str:
    """A plot per run if any run has a curve, else one with a bar per accuracy; nothing for a single accuracy."""
    all_lines = [accuracies(run) for run in runs]
    curves = any(len(points) > 1 for lines in all_lines for points in lines.values())
    shown, labels, last = [], [], []
    for run, lines in zip(runs, all_lines, strict=True):
        parts = []
        for name, points in lines.items():
            at = (f"{s['mean']:.1f} % ± {s['std']:.1f} after {i} iterations" for i, s in points.items())
            parts.append(f"{name}: {', '.join(at)}")
            labels.append(f"{run.name}: {name}" if len(runs) > 1 else name)
            last.append(list(points.values())[-1])
        if parts:
            alt = f"Accuracy of fresh networks, {run.name}. {'. '.join(parts)}."
            shown.append(Plot(as_curves(lines), alt, caption(run, runs)))
    if curves:
        return page.plots(shown, "xy")
    if len(labels) < 2:
        return ""
    values = (f"{label} {s['mean']:.1f} % ± {s['std']:.1f}" for label, s in zip(labels, last, strict=True))
    alt = f"Accuracy of fresh networks: {', '.join(values)}."
    return page.plots([Plot(as_bars(labels, last), alt)], high=0.9 + 0.35 * len(labels))


def gap_plots(parts: Sequence[Features]) -> str:
    """The style gap of each layer before and after: a row of plots per statistic, or one row for a single run."""
    runs = [f.run for f in parts]
    pairs = [(f.run, style_gaps(f.real, f.before), style_gaps(f.real, f.after)) for f in parts]
    rows = {name: [gap_plot(name, *pair, runs) for pair in pairs if pair[1][name]] for name in pairs[0][1]}
    rows = {name: row for name, row in rows.items() if row}
    if len(runs) == 1:
        return page.plots([plot for row in rows.values() for plot in row]) if rows else ""
    return "".join(f"<h3>{name}</h3>{page.plots(row, 'y')}" for name, row in rows.items())


def gap_plot(name: str, run: ReportedRun, before: dict, after: dict, runs: Sequence[ReportedRun]) -> Plot:
    """The gap of one statistic in the layers of a run."""
    layers = [f"layer {k}" for k in range(len(after[name]))]
    groups = {"before": before[name], "after": after[name]}
    numbers = "; ".join(f"{group} {page.listed(layers, values)}" for group, values in groups.items())
    alt = f"Relative distance of {name} to real images, {run.name}: {numbers}."
    return Plot(page.bars(groups, layers, "relative distance"), alt, caption(run, runs) or name)


def spread_plots(parts: Sequence[Features]) -> str:
    """The spread within classes of real, initial and synthetic images; runs with one image per class are left out."""
    runs, shown = [f.run for f in parts], []
    for f in parts:
        if max(f.run.counts) > 1:
            groups = {"real": spreads(f.real), "initial": spreads(f.before), f.run.kind: spreads(f.after)}
            names = f.run.data.class_names
            numbers = "; ".join(f"{group}: {page.listed(names, values)}" for group, values in groups.items())
            draw = spread_points(groups) if len(names) > FEW else page.bars(groups, names, "spread")
            shown.append(Plot(draw, f"Spread within classes, {f.run.name}. {numbers}.", caption(f.run, runs)))
    return page.plots(shown, "y") if shown else ""


def spread_points(groups: dict[str, list[float]]) -> page.Draw:
    """One point per class: the spread of a set over that of real images."""

    def draw(axes: Any) -> None:
        (_, real), *others = groups.items()
        for k, (name, values) in enumerate(others):
            axes.scatter(real, values, s=16, marker=page.MARKERS[k], label=name, alpha=0.8)
        axes.axline((min(real), min(real)), slope=1, color=page.INK, linestyle=":", linewidth=1, label="as real images")
        axes.set(xlabel="spread of a class's real images", ylabel="spread of its set")
        page.legend(axes)

    return draw


DOTS, STARS = {"s": 9, "alpha": 0.45}, {"s": 45, "marker": "*", "edgecolors": page.INK}


def embedding_plots(features_of_runs: Sequence[Features], kind: str) -> str:
    """2-D projections of embeddings; runs with the same data and network share PCA's axes."""
    how = {"tsne": "t-SNE", "pca": "PCA"}[kind]
    runs = [f.run for f in features_of_runs]
    same = len({(f.run.data_key, f.run.model, len(f.real.embedding[0][0])) for f in features_of_runs}) == 1
    shown = []
    for f in features_of_runs:
        classes = range(min(10, f.run.data.num_classes))
        parts = [images.embedding[c][:40] for c in classes for images in (f.real, f.after)]
        flat = project(parts, kind).split(list(map(len, parts)))
        names = ", ".join(f.run.data.class_names[c] for c in classes)
        alt = f"{how} of embeddings, {f.run.name}, of at most 40 real and 40 synthetic images of {names}. "
        inside = nearest(flat, len(classes))
        alt += f"The mean of a class's synthetic images is nearest to that of its real ones for {inside}."
        shown.append(Plot(scatter(flat, f.run.data.class_names), alt, caption(f.run, runs)))
    return page.plots(shown, "xy" if same and kind == "pca" else "", high=4)


def project(parts: Sequence[torch.Tensor], kind: str) -> torch.Tensor:
    """Embeddings [n, D] of real and synthetic images in turn, in two dimensions: [sum n, 2]."""
    from sklearn.decomposition import PCA  # imported here: it takes a second

    points = torch.cat(list(parts)).numpy()
    if kind == "tsne":
        from sklearn.manifold import TSNE

        return torch.tensor(TSNE(2, random_state=0, perplexity=min(30, len(points) // 4)).fit_transform(points))
    return torch.tensor(PCA(2, random_state=0).fit(torch.cat(list(parts[::2])).numpy()).transform(points))


def nearest(flat: Sequence[torch.Tensor], classes: int) -> str:
    """How many classes have synthetic images whose mean is nearest to that of their own real images: 'k of n'."""
    real, syn = (torch.stack([part.double().mean(0) for part in flat[k::2]]) for k in (0, 1))
    right = torch.cdist(syn, real).argmin(1) == torch.arange(classes)
    return f"{int(right.sum())} of {classes} classes"


def scatter(flat: Sequence[torch.Tensor], names: Sequence[str]) -> page.Draw:
    """Dots for real, stars for synthetic images, coloured by class."""

    def draw(axes: Any) -> None:
        for k, part in enumerate(flat):
            c, synthetic = divmod(k, 2)
            options = STARS if synthetic else DOTS
            label, colour = names[c] if synthetic else None, page.COLOURS[c % len(page.COLOURS)]
            axes.scatter(part[:, 0], part[:, 1], color=colour, label=label, linewidths=0.5, **options)
        axes.set(xticks=[], yticks=[])
        page.legend(axes, 5)

    return draw
