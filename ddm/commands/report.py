"""`ddm report`: one self-contained HTML page about one or more runs."""

import re
import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ddm import __version__, disk, drawing, page
from ddm.commands import report_plots as plots
from ddm.commands.report_data import (
    REAL,
    Baseline,
    ReportedRun,
    headline,
    random_baseline,
    read_folders,
    whole_baseline,
)
from ddm.commands.settings import ReportSettings, roles
from ddm.data.loading import short_name
from ddm.errors import UserError
from ddm.page import FEW
from ddm.settings import Role

# Limits of the page's size
CLASSES = 100  # shown with images
TILES = 600  # synthetic images of all runs
# With more than FEW classes, they are folded in groups of GROUP, with REAL_OF_MANY real images each
GROUP = 10
REAL_SHOWN, REAL_OF_MANY = 5, 2
STAGES, STAGE_ROWS, STAGE_COLUMNS = 6, 10, 5  # image grids during condensation; classes and images of each
UNKNOWN = "\N{EN DASH}"


def percent(result: dict) -> str:
    """An accuracy such as '82.92 % ± 1.25 (n 2)'."""
    return f"{drawing.mean_std(100 * result['mean'], 100 * result['std'], result['n'], ' %')} (n {result['n']})"


# --- tables --------------------------------------------------------------------------------------------------


def without_empty(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without its empty columns."""
    kept = [k for k in range(len(head)) if any(row[k] != UNKNOWN for row in rows)]
    return [head[k] for k in kept], [[row[k] for k in kept] for row in rows]


def overview(runs: Sequence[ReportedRun], baselines: Sequence[Baseline]) -> str:
    """A headline per run, and the table of all runs."""
    head = ["run", "accuracy %", "std", "n", "random real %", "gain", "whole set %", "of whole set", "iterations"]
    head += ["seconds", "images per class", "data", "network", "made by"]
    rows, cards = [], []
    for run in runs:
        results, random, whole = run.results, random_baseline(run, runs), whole_baseline(run, baselines)
        details = [f"{percent(results)} on {run.model}"]
        gain = share = random_real = whole_set = UNKNOWN
        if random:
            origin = "" if random.source == run.name else f", from {random.source}"
            details.append(f"random real images {percent(random.summary)}{origin}")
            random_real = f"{100 * random.summary['mean']:.2f}"
            gain = f"{100 * (results['mean'] - random.summary['mean']):+.2f}"
        if whole:
            details.append(f"whole training set {percent(whole.summary)}, from {whole.source}")
            whole_set = f"{100 * whole.summary['mean']:.2f}"
            share = f"{100 * results['mean'] / whole.summary['mean']:.0f} %"
        row = [run.name, f"{100 * results['mean']:.2f}", f"{100 * results['std']:.2f}", results["n"]]
        row += [random_real, gain, whole_set, share, run.args.get("Iteration") or UNKNOWN]
        row += [f"{results['seconds']:.0f}" if results.get("seconds") is not None else UNKNOWN]
        rows.append([*row, run.args["ipc"], short_name(run.args["dataset"]), run.model, run.made_by])
        title = f"<h3>{page.text(run.name)}</h3>" if len(runs) > 1 else ""
        title += f'<p class="note">{page.text(run.title)}</p>'
        lines = f'<p class="headline">{page.text(headline(run, random, whole))}</p>'
        lines += f'<p class="note">{page.text("; ".join(details))}</p>'
        cards.append(f'<div class="card">{title}{lines}</div>')
    table = page.table("Test accuracy, std over networks", *without_empty(head, rows))
    return f'<div class="runs">{"".join(cards)}</div>{table}'


def differences(runs: Sequence[ReportedRun]) -> str:
    """The settings that differ between runs, except paths and device. Settings that only some runs have are folded."""
    not_shown = {name for name, role in roles().items() if role is Role.PLACE} - {"preset"}
    different, partial = [], []
    for name in sorted({name for run in runs for name in run.args} - not_shown):
        values = [run.args.get(name) for run in runs]
        row = [name, *(UNKNOWN if value is None else value for value in values)]
        present = [run.args[name] for run in runs if name in run.args]
        if any(value != present[0] for value in present):
            different.append(row)
        elif len(present) < len(runs) and present[0] is not None:
            partial.append(row)
    head = ["setting", *(run.name for run in runs)]
    text = page.table("Values that differ", head, different) if different else ""
    if partial:
        title = f"{len(partial)} settings that only some runs have"
        text += page.details(title, page.table(title, head, partial))
    return text


def origins(runs: Sequence[ReportedRun]) -> str:
    """Protocol, command, hardware, versions and all settings of each run."""
    names = [run.name for run in runs]
    rows = [["protocol", *(run.results["protocol"] for run in runs)]]
    commands = ([Path(run.results["command"][0]).name, *run.results["command"][1:]] for run in runs)  # 0.7.0: a path
    rows.append(["command", *map(shlex.join, commands)])
    for key in ("hardware", "versions"):
        rows.append([key, *(", ".join(f"{k} {v}" for k, v in run.results[key].items()) for run in runs)])
    settings = sorted({name for run in runs for name, value in run.args.items() if value is not None})
    shown = [[name, *(run.args.get(name, UNKNOWN) for run in runs)] for name in settings]
    table = page.table("All settings", ["setting", *names], shown)
    origin = page.table("Protocol, command, hardware and versions", ["fact", *names], rows)
    return origin + page.details(f"{len(settings)} settings", table)


# --- images --------------------------------------------------------------------------------------------------


def gallery(runs: Sequence[ReportedRun]) -> str:
    """Real images of each class beside those of the runs with the same data."""
    ordered = sorted(runs, key=lambda run: [r.data_key for r in runs].index(run.data_key))
    return "".join(class_rows(list(part), runs) for _, part in groupby(ordered, key=lambda run: run.data_key))


def class_rows(same: Sequence[ReportedRun], runs: Sequence[ReportedRun]) -> str:
    """The classes of runs with the same data, folded in groups if they are many."""
    data, names = same[0].data, same[0].data.class_names[:CLASSES]
    many = len(names) > FEW
    most = max(1, TILES // (len(names) * len(runs)))
    n_real = REAL_OF_MANY if many else REAL_SHOWN
    widest = min(most, max(max(run.counts) for run in same))
    short = widest <= REAL_SHOWN and len(same) == 1  # real and synthetic images fit in one row
    columns, kind = n_real if short or many else 3, " short" if short else ""

    def block(c: int) -> str:
        name, real = names[c], same[0].real(c)[:n_real]
        pixels = data.normalisation.pixels(real)
        left = page.tiles(pixels, f"{len(real)} real training images of class {name}", "real", columns)
        right = []
        for run in same:
            syn = run.of_class(c)[:most]
            if len(syn):
                n, total = len(syn), run.counts[c]
                label = f"{run.kind}, {n} of {total}" if n < total else run.kind
                label = f"{run.name}: {label}" if len(runs) > 1 and run.name != run.kind else label
                alt = f"{n} of the {total} {run.kind} images of class {name}, run {run.name}"
                right.append(page.tiles(run.data.normalisation.pixels(syn), alt, label))
        pair = f'<div class="pair{kind}">{left}<div class="sets">{"".join(right)}</div></div>'
        return f'<div class="class"><h3>{page.text(name)}</h3>{pair}</div>'

    style = f"--block: calc({columns + min(widest, 10)} * (var(--tile) + 4px) + 24px)"
    groups = [range(k, min(k + GROUP, len(names))) for k in range(0, len(names), GROUP if many else len(names))]
    bodies = [f'<div class="classes" style="{style}">{"".join(map(block, group))}</div>' for group in groups]
    if many:
        titles = (f"Classes {g[0] + 1} to {g[-1] + 1}: {names[g[0]]} to {names[g[-1]]}" for g in groups)
        bodies = [page.details(title, body, k == 0) for k, (title, body) in enumerate(zip(titles, bodies, strict=True))]
    left = len(data.class_names) - len(names)
    more = f"<p>{left} more classes are not shown; <code>ddm export</code> writes all images.</p>" if left else ""
    title = f'<p class="note">{page.text(short_name(same[0].args["dataset"]))}</p>' if len(same) < len(runs) else ""
    return f"{title}{''.join(bodies)}{more}"


def evolution(run: ReportedRun, runs: Sequence[ReportedRun]) -> str:
    """The first classes and images of a run's grids; nothing for fewer than two grids."""
    stages = []
    for path in run.folder.glob("vis_*_exp*_iter*.png"):
        numbers = re.search(r"_exp(\d+)_iter(\d+)\.png$", path.name)
        if numbers is None:  # such as a copy of one
            continue
        experiment, iteration = map(int, numbers.groups())
        if experiment == run.args.get("first_exp", 0):
            stages.append((iteration, path))
    stages = sorted(stages)
    if len(stages) < 2:
        return ""
    if len(stages) > STAGES:  # the first, the last and those between in equal steps
        stages = [stages[round(k * (len(stages) - 1) / (STAGES - 1))] for k in range(STAGES)]
    widest = max(run.stored_counts)
    columns, rows = min(STAGE_COLUMNS, widest), min(STAGE_ROWS, len(run.counts))
    figures = []
    for iteration, path in stages:
        content = drawing.corner(path, (len(run.counts), widest), rows, columns)
        alt = f"The first {columns} images of {rows} classes, one row per class, after {iteration} iterations"
        figures.append(f"<figure><figcaption>{iteration} iterations</figcaption>{page.image(content, alt)}</figure>")
    name = plots.caption(run, runs)
    title = f"<h3>{page.text(name)}</h3>" if name else ""
    strip = page.scrolling(f"Images of {run.name} during condensation", "".join(figures), "strip")
    return f"<div>{title}{strip}</div>"


# --- the page ------------------------------------------------------------------------------------------------


def sections(runs: Sequence[ReportedRun], baselines: Sequence[Baseline], kind: str) -> list[tuple[str, str]]:
    """The titles and bodies of all sections; a section without data has an empty body."""

    parts = [plots.features(run) for run in runs]
    network = "under one untrained network"
    how, fitted = {"tsne": ("t-SNE", "real and synthetic"), "pca": ("PCA", "real")}[kind]
    classes = min(10, runs[0].data.num_classes)
    coreset = any(run.kind != "condensed" for run in runs)
    initial = "initial images" + (" or, for a coreset, random real images" if coreset else "")
    stages = "".join(evolution(run, runs) for run in runs)
    stages = f'<div class="plots">{stages}</div>' if len(runs) > 1 and stages else stages
    return [
        page.section("Summary", overview(runs, baselines)),
        page.section("Settings that differ", differences(runs)),
        page.section("Images", gallery(runs), "Real training images of each class, and images of the set beside them."),
        page.section("Images during condensation", stages),
        page.section(
            "Accuracy",
            plots.accuracy_plots(runs),
            "Mean and standard deviation over fresh networks. A dashed line has a single accuracy.",
        ),
        page.section(
            "Spread within classes",
            plots.spread_plots(parts),
            f"Root mean squared distance of embeddings to their class mean, {network}. Initial: {initial}.",
        ),
        page.section(
            "Embeddings",
            plots.embedding_plots(parts, kind),
            f"{how}, fitted to {fitted} images of the first {classes} classes, {network}. Dots are real images, stars "
            "synthetic ones.",
        ),
        page.section(
            "Losses",
            plots.losses(runs),
            "Mean over classes, in the first experiment. Terms that are always 0 are left out.",
        ),
        page.section(
            "Style gap of each layer",
            plots.gap_plots(parts),
            f"Relative distance to {REAL} real images per class {network}, averaged over classes. Before: {initial}. "
            "After: the set.",
        ),
        page.section("Origin", origins(runs)),
    ]


def run(settings: ReportSettings) -> None:
    """Write the page. Raises UserError for missing or unreadable files."""
    runs, baselines = read_folders(settings.folders, settings.data_path, settings.res)
    title = f"{len(runs)} sets" if len(runs) > 1 else runs[0].title
    subtitle = f"Condensed sets and coresets: {', '.join(run.name for run in runs)}"
    parts = sections(runs, baselines, settings.embedding)
    content = page.document(title, subtitle, parts, f"Written by ddm report, version {__version__}.")
    out = Path(settings.out or runs[0].folder / "report.html")
    try:
        disk.replace(out, content)
    except OSError as error:
        raise UserError(f"{out} can't be written ({error.strerror})") from None
    print(f"report  {out} ({out.stat().st_size / 2**20:.1f} MiB)")
