"""`ddm collect`: tables and plots of results.json files."""

import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from ddm import disk, drawing
from ddm.commands.run_records import BUDGET, COSTS, SHARED, Result, differing, load
from ddm.commands.settings import CollectSettings
from ddm.errors import UserError, nearest
from ddm.evaluation.protocol import interval
from ddm.evaluation.sets import progress_text

LABELS = ("dataset", "ipc", "run", "made by")
SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
CONDENSATIONS = {"experiments": "condensations", "networks of one experiment": "networks of one condensation"}

Cells = list[dict[str, str]]  # one dictionary per row, with equal keys: the columns


class Row(NamedTuple):
    """One row of the table: a run, or runs that it averages over."""

    name: str
    runs: list[Result]

    @property
    def label(self) -> dict[str, str]:
        args, name = self.runs[0].args, self.name
        if len(self.runs) == 1:
            name = self.runs[0].title
        elif any(progress := [progress_text(run.record) for run in self.runs]):
            name += f", {progress[0]}" if len(set(progress)) == 1 else ", with unfinished runs"
        dataset = args["dataset"] + (" (validation split)" if args.get("eval_split") == "val" else "")
        return dict(zip(LABELS, (dataset, str(args["ipc"]), name, self.runs[0].made_by), strict=True))

    @property
    def is_base(self) -> bool:
        return any(run.is_base for run in self.runs)

    @property
    def mean(self) -> float:
        """The mean accuracy in percent, each run with equal weight."""
        return 100 * statistics.fmean(run.record["mean"] for run in self.runs)

    @property
    def std(self) -> float | None:
        """The population standard deviation of the runs' means in percentage points; None for one run."""
        return 100 * statistics.pstdev(run.record["mean"] for run in self.runs) if len(self.runs) > 1 else None

    def curve(self) -> dict[int, list[float]]:
        """Iteration -> accuracies of all networks in percent."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            for iteration, experiments in run.curve(run.model).items():
                found.setdefault(iteration, []).extend(100 * acc for accs in experiments.values() for acc in accs)
        return found


def names_of(text: str, flag: str, results: list[Result]) -> list[str]:
    """The settings, or COSTS, in a list joined by commas. Raises UserError for one that no run has."""
    costs = COSTS if flag == "--columns" else ()
    known = dict.fromkeys(name for result in results for name in (*result.listed, *result.args, *costs))
    names = [name.strip().removeprefix("--") for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"{flag}: no run has a setting {name!r}: {nearest(name, known)}")
    return names


def common_name(names: list[str]) -> str:
    """The parts of the paths that all averaged runs share, else the first name and the number of others."""
    places = zip(*(name.split("/") for name in names), strict=False)
    shared = [parts[0] for parts in places if len(set(parts)) == 1]
    return "/".join(shared) or f"{names[0]} and {len(names) - 1} more"


def averaged(results: list[Result], names: list[str]) -> list[Row]:
    """Rows of the runs that have the data set, ipc, maker and the settings `names` in common.

    Warns of other settings that differ within a row, and of runs that count twice.
    """
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        key = (result.args["dataset"], result.args["ipc"], result.made_by, *map(result.value, names))
        groups.setdefault(key, []).append(result)
    mixed = dict.fromkeys(name for runs in groups.values() for name in differing(runs) if name not in ("seed", *names))
    if mixed:
        flags = ", ".join(f"--{name}" for name in mixed)
        print(f"warning: rows average over runs that differ in {flags}: add the names to --group_by", file=sys.stderr)
    for runs in groups.values():
        first: dict[str, str] = {}
        for run in runs:
            twin = first.setdefault(run.settings, run.name)
            if twin != run.name:
                print(f"warning: {twin} and {run.name} have equal settings and seeds, and both count", file=sys.stderr)
    return [Row(common_name([run.name for run in runs]), runs) for runs in groups.values()]


def marked(results: list[Result], baseline: str | None) -> list[Result]:
    """Results of which those in a folder named `baseline` are the baselines; None: plain DM. Raises UserError."""
    if baseline is None:
        return results
    known = dict.fromkeys(name for result in results for name in (result.name, result.name.split("/")[-1]))
    if baseline not in known:
        raise UserError(f"--baseline {baseline}: no run has this name: {nearest(baseline, known)}")
    return [r._replace(chosen=baseline in (r.name, r.name.split("/")[-1])) for r in results]


def label_of(rows: list[Row]) -> str:
    """What the difference of a row is called: the name of the chosen baselines, or DM."""
    chosen = dict.fromkeys(run.name.split("/")[-1] for row in rows for run in row.runs if run.chosen)
    return " or ".join(chosen) or "DM"


def base_of(result: Result, results: list[Result]) -> Result | None:
    """The baseline that a run is compared with; prints notes on stderr about what differs."""
    if result.is_base:
        return None
    of_data = [base for base in results if base.args["dataset"] == result.args["dataset"]]
    near = [base for base in of_data if base.is_base and base.args["ipc"] == result.args["ipc"]]
    reasons = [mismatches(result, base) for base in near]
    bases = [base for base, why in zip(near, reasons, strict=True) if not why]
    if not bases:
        if near:
            base, why = min(zip(near, reasons, strict=True), key=lambda pair: len(pair[1]))
            print(f"note: {result.name} is not compared with {base.name}: {'; '.join(why)}", file=sys.stderr)
        return None
    base = min(bases, key=lambda base: len(result.other_steps(base)))  # the first with fewest differences
    if result.other_steps(base):
        other = ", ".join(f"--{name}" for name in result.other_steps(base))
        print(f"note: {result.name} and {base.name}, its baseline, differ in {other}", file=sys.stderr)
    return base


def mismatches(result: Result, base: Result) -> list[str]:
    """The reasons why a run can't be compared with a baseline of the same data and ipc; empty if it can."""
    of_budget = () if result.args["recipe"] == "coreset" else BUDGET
    names = [name for name in (*SHARED, *of_budget) if result.value(name) != base.value(name)]
    why = [f"--{name} is {result.value(name) or 'unset'} and {base.value(name) or 'unset'}" for name in names]
    if result.record["protocol"] != base.record["protocol"]:
        why.append("the protocols of evaluation differ")
    if of_budget and result.record.get("unfinished") != base.record.get("unfinished"):
        ends = [progress_text(run.record) or "the end" for run in (result, base)]
        alone = {"Iteration"}.issuperset(names) and len(why) == len(names)  # nothing else differs
        at = common_iteration(result, base) if alone else None
        remedy = "" if at is None else f" (--iteration {at} compares them)"
        why.append(f"the runs have come to {ends[0]} and {ends[1]}{remedy}")
    return why


def common_iteration(result: Result, base: Result) -> int | None:
    """The last iteration with evaluations of a common condensation; None without, or if the runs plan other numbers."""
    if len({run.record.get("unfinished", [run.args["Iteration"]])[-1] for run in (result, base)}) > 1:
        return None
    mine, other = result.curve(result.model), base.curve(base.model)
    return max((at for at in mine.keys() & other.keys() if mine[at].keys() & other[at].keys()), default=None)


def paired(runs: list[tuple[Result, Result]]) -> tuple[list[float], str]:
    """The paired differences of runs and their baselines in percentage points, and the unit of the pairs."""
    finals = [(result.final(), base.final()) for result, base in runs]
    common = [(mine[e], other[e]) for mine, other in finals for e in sorted(mine.keys() & other.keys())]
    if len(common) > 1:
        return [100 * (statistics.fmean(mine) - statistics.fmean(other)) for mine, other in common], "experiments"
    if any(result.args["Iteration"] != base.args["Iteration"] for result, base in runs):
        return [], ""  # the networks differ: their seeds include the iteration
    differences = [100 * (a - b) for mine, other in common for a, b in zip(mine, other, strict=False)]
    return differences, "networks of one experiment"


def compared(row: Row, rows: list[Row]) -> dict[str, str]:
    """The cells of the paired difference to the baseline; empty if there is no run to compare with."""
    label = label_of(rows)
    minus, of = f"minus {label}", f"{label} run"
    cells = dict.fromkeys((minus, "95 % interval", "pairs", of), "")
    results = [run for other in rows for run in other.runs]
    bases = [(run, base) for run in row.runs if (base := base_of(run, results))]
    if row.is_base or not bases:
        return cells
    differences, unit = paired(bases)
    names = " and ".join(dict.fromkeys(other.name for other in rows for _, base in bases if base in other.runs))
    if not differences:
        why = "they have no pairs: make two condensations of each (--num_exp 2), or compare runs of equal --Iteration"
        print(f"note: no difference between {row.name} and {names}: {why}", file=sys.stderr)
        return cells
    half = interval(differences)
    cells[minus] = f"{statistics.fmean(differences):+.2f}"
    cells["95 % interval"] = "" if half is None else f"± {half:.2f}"
    cells["pairs"], cells[of] = f"{len(differences)} {unit}", names
    return cells


def table(rows: list[Row], columns: list[str], grouped: bool = False) -> Cells:
    """One dictionary per row, from column to text. Prints notes on stderr about runs that can't be compared.

    The standard deviation is over the networks of a run. If `grouped`, it is over the means of the runs of a row.
    """
    seeds = all(len({run.args["seed"] for run in row.runs}) == len(row.runs) for row in rows)
    unit = "seeds" if seeds else "runs"  # runs: a row has a seed twice
    cells = []
    for row in rows:
        first = row.runs[0]
        alone = len(row.runs) == 1
        shown = {name: first.value(name) if alone or name not in COSTS else "" for name in columns}
        line = row.label | shown | {"accuracy %": f"{row.mean:.2f}"}
        if grouped:
            std = "" if row.std is None else f"{row.std:.2f}"
            networks = sum(run.record["n"] for run in row.runs)
            line |= {f"std over {unit}": std, unit: str(len(row.runs)), "networks": str(networks)}
        else:
            line |= {"std": f"{100 * first.record['std']:.2f}", "n": str(first.record["n"])}
        for run in row.runs:
            if run.model != run.args["model"]:
                print(f"note: {run.name}: condensed on {run.args['model']}, accuracy of {run.model}", file=sys.stderr)
        cells.append(line | compared(row, rows))
    return cells


# --- formats -------------------------------------------------------------------------------------------------


def markdown(cells: Cells) -> str:
    return drawing.markdown([cells[0], *(row.values() for row in cells)])


def comma_separated(cells: Cells) -> str:
    return drawing.comma_separated([cells[0], *(row.values() for row in cells)]).rstrip("\n")


def latex(cells: Cells) -> str:
    """A LaTeX table in blocks of a data set and ipc, the best of each in bold. The caption has what all rows share."""
    blocks = list(dict.fromkeys((row["dataset"], row["ipc"]) for row in cells))
    cells = sorted(cells, key=lambda row: blocks.index((row["dataset"], row["ipc"])))
    names = list(cells[0])
    settings, minus = names[len(LABELS) : names.index("accuracy %")], names[-4]
    std, count = names[names.index("accuracy %") + 1 :][:2]
    shared = [name for name in ("dataset", "ipc", "made by") if len({row[name] for row in cells}) == 1]
    labels = [name for name in (*LABELS, *settings) if name not in shared]
    without = [name for name in labels if name != "run"]
    if len({tuple(row[name] for name in without) for row in cells}) == len(cells):
        labels = without or labels  # the settings tell the rows apart
    best: dict[tuple[str, str], float] = {}
    for row in cells:
        if row["made by"] != "full":
            block = row["dataset"], row["ipc"]
            best[block] = max(best.get(block, 0.0), float(row["accuracy %"]))

    def accuracy(row: dict[str, str]) -> str:
        spread = row[std] if row[count] != "1" else ""  # one network has no deviation
        text = " \\pm ".join(filter(None, (row["accuracy %"], spread)))
        bold = best.get((row["dataset"], row["ipc"])) == float(row["accuracy %"]) and row["made by"] != "full"
        return rf"$\mathbf{{{text}}}$" if bold else f"${text}$"

    def difference(row: dict[str, str]) -> str:
        half = row["95 % interval"].replace("±", r"\pm")
        return f"${row[minus]} {half}".rstrip() + "$" if row[minus] else ""

    pairs = any(row[minus] for row in cells)
    head = [*map(drawing.escaped, labels), r"accuracy, \%", count] + [drawing.escaped(minus)] * pairs
    lines = [
        [*(drawing.escaped(row[name]) for name in labels), accuracy(row), row[count]] + [difference(row)] * pairs
        for row in cells
    ]
    told = [f"{drawing.escaped(name)} {drawing.escaped(cells[0][name])}" for name in shared]
    over = std.removeprefix("std over ") if std.startswith("std over ") else "networks"
    caption = f"Accuracy in \\% ({', '.join([*told, ''])}mean $\\pm$ population standard deviation over {over})."
    if pairs:
        units = dict.fromkeys(row["pairs"].split(" ", 1)[1] for row in cells if row["pairs"])
        over = " or ".join(CONDENSATIONS[unit] for unit in units)
        what = "mean paired difference with its 95\\,\\% confidence interval (Student's t)"
        caption += f" M{drawing.escaped(minus[1:])}: {what} over {over}."
    return drawing.latex([head, *lines], [(row["dataset"], row["ipc"]) for row in cells], len(labels), caption)


FORMATS = {"markdown": markdown, "csv": comma_separated, "latex": latex}


# --- plots ---------------------------------------------------------------------------------------------------


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def swept(rows: list[Row], names: list[str]) -> str | None:
    """The numeric setting of `names` with most values, the first among equals; None if none has two."""
    values = {name: {number(row.runs[0].value(name)) for row in rows} - {None} for name in names}
    return max((name for name in names if len(values[name]) > 1), key=lambda name: len(values[name]), default=None)


def plot_setting(rows: list[Row], name: str, names: list[str], path: str) -> None:
    """Accuracy over a setting, one line per combination of the others, with the standard deviation over runs.

    A row without a number, such as a coreset, is a horizontal line.
    """
    lines: dict[str, list[tuple[float, float, float]]] = {}
    others = [other for other in dict.fromkeys(("dataset", "ipc", *names)) if other != name]
    others = [other for other in others if len({row.runs[0].value(other) for row in rows}) > 1]
    with drawing.axes(8, 5) as (figure, axes):
        for row in rows:
            run, at = row.runs[0], number(row.runs[0].value(name))
            label = ", ".join([run.made_by, *(f"{other} {run.value(other)}" for other in others if run.value(other))])
            if at is None:
                axes.axhline(row.mean, linestyle="--", color="gray")
                axes.annotate(label, (0.01, row.mean), xycoords=("axes fraction", "data"), va="bottom")
            else:
                lines.setdefault(label, []).append((at, row.mean, row.std or 0.0))
        for label, points in lines.items():
            at, mean, std = zip(*sorted(points), strict=True)
            axes.errorbar(at, mean, std, fmt="o-", markersize=4, capsize=3, label=label)
        positive = [at for points in lines.values() for at, _, _ in points if at > 0]
        if positive and max(positive) >= 10 * min(positive):
            axes.set_xscale("symlog", linthresh=min(positive))  # linear near 0, which a sweep of weights has
            values = sorted({at for points in lines.values() for at, _, _ in points})
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
        axes.set(xlabel=name, ylabel="accuracy of fresh networks, % (bars: std over runs)")
        axes.legend(fontsize="small")
        drawing.save_figure(figure, path, "--plot")


def plot(rows: list[Row], path: str) -> None:
    """Accuracy over iterations, one line per row, with a band of one standard deviation over networks."""
    with drawing.axes(8, 5) as (figure, axes):
        for row in rows:
            curve = row.curve()
            at = sorted(curve)
            drawing.banded(axes, at, [curve[i] for i in at], f"{row.name} ({row.runs[0].args['ipc']} ipc)")
        axes.set(xlabel="condensation iterations", ylabel="accuracy of fresh networks, %")
        axes.legend(fontsize="small")
        drawing.save_figure(figure, path, "--plot")


def write(path: str, text: str, flag: str) -> None:
    try:
        disk.replace(Path(path), text + "\n")
    except OSError as error:
        raise UserError(f"{flag} {path!r} can't be written ({error.strerror})") from None


def run(settings: CollectSettings) -> None:
    """Print the table or write --out; write --csv and --plot. Raises UserError for invalid files and names."""
    results = marked(load(settings.folders, settings.iteration), settings.baseline)
    columns = keys = differing(results)
    rows = [Row(result.name, [result]) for result in results]
    grouped = settings.group_by is not None
    if grouped:
        keys = [name for name in columns if name != "seed"]
        if settings.group_by != "auto":
            keys = names_of(settings.group_by, "--group_by", results)
        columns, rows = keys, averaged(results, keys)
    if settings.columns != "auto":
        columns = [] if settings.columns == "none" else names_of(settings.columns, "--columns", results)
    cells = table(rows, [name for name in columns if name not in LABELS], grouped)
    kind = settings.format or SUFFIXES.get(Path(settings.out or "").suffix, "markdown")
    text = FORMATS[kind](cells)
    if settings.out:
        write(settings.out, text, "--out")
    else:
        print(text)
    if settings.csv:
        write(settings.csv, comma_separated(cells), "--csv")
    if settings.plot:
        axis = swept(rows, [*keys, "ipc"]) if grouped else None
        if axis:
            plot_setting(rows, axis, keys, settings.plot)
        else:
            plot(rows, settings.plot)
