"""`ddm collect`: tables and curves of results.json files."""

import csv
import io
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ddm import disk, drawing
from ddm.commands.settings import CollectSettings, roles
from ddm.errors import UserError
from ddm.networks import untapped
from ddm.settings import Role

COLUMNS = ("dataset", "ipc", "run", "made by", "accuracy %", "std", "n", "minus DM", "95 % interval", "pairs", "DM run")
TEXT = {"protocol": str, "dataset": str, "model": str, "recipe": str}
NUMBERS = {"mean": float | int, "std": float | int, "n": int, "seed": int, "Iteration": int}
NEEDED = TEXT | NUMBERS | {"ipc": int | str, "evaluations": list}  # keys of a record or of its arguments
ENTRY = {"model": str, "images": str, "iteration": int, "experiment": int}
# Weights of the terms that recipes add to L_MMD.
TERMS = {"style_ratio", "mm_ratio", "cm_ratio", "icd_ratio"}
BUDGET = ("Iteration", "batch_real", "real_sampling", "init")  # must be equal between recipes; coresets have none
STEPS = ("lr_img", "lr_schedule", "momentum_img", "clip_pixels", "zca")  # may differ, with a note
# Runs that differ only in these settings share a row: experiments, and settings that do not change results. num_eval is
# excluded: experiments with more networks would weigh more.
ALONE = {name for name, role in roles().items() if role is not Role.RESULT} - {"num_eval"} | {"first_exp", "subset"}


class Result(NamedTuple):
    """The content of a results.json."""

    name: str
    record: dict

    @property
    def args(self) -> dict:
        return self.record["args"]

    @property
    def group(self) -> tuple:
        """The values that comparable runs share."""
        a = self.args
        return a["dataset"], a["ipc"], self.record["protocol"], a["seed"], untapped(a["model"]), a.get("res")

    @property
    def settings(self) -> str:
        """All settings that change results, without switches that are off, as older files lack newer switches."""
        values = {name: value for name, value in self.args.items() if name not in ALONE and value not in (None, False)}
        return json.dumps([self.record["protocol"], values], sort_keys=True)

    def comparable(self, base: "Result") -> bool:
        """Whether `base` is a run of plain DM in the same group and, unless this is a coreset, with the same budget."""
        same_budget = all(self.args.get(name) == base.args.get(name) for name in BUDGET)
        return base.is_dm and self.group == base.group and (same_budget or self.args["recipe"] == "coreset")

    def other_steps(self, base: "Result") -> list[str]:
        """The STEPS settings that differ from those of another run; none for a coreset."""
        if self.args["recipe"] == "coreset":
            return []
        return [name for name in STEPS if (self.args.get(name) or None) != (base.args.get(name) or None)]

    @property
    def is_dm(self) -> bool:
        weights = {name: value for name, value in self.args.items() if name.endswith("_ratio")}
        mean_matching = weights.pop("mmd_ratio", 1 if weights.keys() & TERMS else 0)  # recipes without the flag use 1
        return bool(weights) and not any(weights.values()) and mean_matching > 0

    @property
    def made_by(self) -> str:
        return self.args.get("method") or self.args["recipe"]

    def curve(self, model: str) -> dict[int, dict[int, list[float]]]:
        """Iteration -> experiment -> accuracies in [0, 1] of one architecture, without baselines."""
        found: dict[int, dict[int, list[float]]] = {}
        for entry in self.record["evaluations"]:
            if entry["model"] == model and entry["images"] != "random real" and entry.get("accuracies"):
                found.setdefault(entry["iteration"], {})[entry["experiment"]] = entry["accuracies"]
        return found

    @property
    def model(self) -> str:
        """The network of `mean`: the one that made the set, or the first of a pool without it."""
        models = [e["model"] for e in self.record["evaluations"] if e["iteration"] == self.args["Iteration"]]
        return self.args["model"] if self.args["model"] in models or not models else models[0]

    def final(self) -> dict[int, list[float]]:
        """Experiment -> accuracies of `model` after the last iteration."""
        return self.curve(self.model).get(self.args["Iteration"], {})


def load(folders: Iterable[str]) -> list[Result]:
    """All results below some folders, in path order; runs that differ only in their experiments are merged.

    Files of other commands below a folder are skipped with a note. Raises UserError if there are no results, or if a
    named file is from another command.
    """
    results = []
    for folder in map(Path, folders):
        paths = sorted(folder.rglob("results.json")) if folder.is_dir() else [folder]
        if not paths or not paths[0].is_file():
            raise UserError(f"no results.json in {str(folder)!r}: name folders written by recipes or coreset")
        for path in paths:
            try:
                results.append(Result(path.resolve().parent.name, read(path)))
            except UserError as error:
                if not folder.is_dir():
                    raise
                print(f"note: skipped: {error}", file=sys.stderr)
    if not results:
        folders = ", ".join(map(repr, folders))
        raise UserError(f"no results.json of a recipe or coreset in {folders}: name other folders")
    return merged(results)


def read(path: Path) -> dict:
    """The record in a results.json; raises UserError if it is not from a recipe or coreset."""
    try:
        record = json.loads(path.read_text())
        values = dict(record["args"]) | record
        missing = [name for name, kind in NEEDED.items() if not isinstance(values.get(name), kind)]
        entries = record.get("evaluations")
        if not missing and not all(isinstance(e.get(name), kind) for e in entries for name, kind in ENTRY.items()):
            missing = ["valid evaluations"]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not the results.json of a recipe ({type(error).__name__})") from None
    if missing:
        raise UserError(f"{path}: not the results.json of a recipe, it has no {', '.join(missing)}")
    return record


def merged(results: list[Result]) -> list[Result]:
    """Merge runs with the same settings and different experiments, under the name of the first."""
    found: list[Result] = []
    for result in results:
        twin = next((k for k, r in enumerate(found) if r.settings == result.settings), None)
        if twin is None or not result.final() or found[twin].final().keys() & result.final().keys():
            found.append(result)
            continue
        one = found[twin]
        entries = sorted(one.record["evaluations"] + result.record["evaluations"], key=lambda e: e["experiment"])
        whole = Result(one.name, one.record | {"evaluations": entries})
        accs = [acc for _, values in sorted(whole.final().items()) for acc in values]
        numbers = {"mean": statistics.fmean(accs), "std": statistics.pstdev(accs), "n": len(accs)}
        found[twin] = Result(one.name, whole.record | numbers)
        experiments = ", ".join(map(str, sorted(whole.final())))
        print(f"note: {one.name} and {result.name} are merged, experiments {experiments}", file=sys.stderr)
    return found


def paired(result: Result, base: Result) -> tuple[list[float], str]:
    """The paired differences of two runs in percentage points, and the unit of the pairs."""
    mine, other = result.final(), base.final()
    common = sorted(mine.keys() & other.keys())
    if len(common) > 1:
        return [100 * (statistics.fmean(mine[e]) - statistics.fmean(other[e])) for e in common], "experiments"
    if result.args["Iteration"] != base.args["Iteration"]:  # the networks differ: their seeds include the iteration
        return [], ""
    differences = [100 * (a - b) for e in common for a, b in zip(mine[e], other[e], strict=False)]
    return differences, "networks of one experiment"


def interval(differences: list[float]) -> float | None:
    """Half the width of the 95 % confidence interval of the mean, by Student's t; None for fewer than two values."""
    from scipy import stats  # imported here: it takes a second

    n = len(differences)
    return float(stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5) if n > 1 else None


def table(results: list[Result]) -> list[dict[str, str]]:
    """One row per run. Prints notes on stderr about runs that can't be compared."""
    rows = []
    for result in results:
        a, r = result.args, result.record
        row = dict.fromkeys(COLUMNS, "")
        row |= {"dataset": a["dataset"], "ipc": str(a["ipc"]), "run": result.name, "made by": result.made_by}
        row |= {"accuracy %": f"{100 * r['mean']:.2f}", "std": f"{100 * r['std']:.2f}", "n": str(r["n"])}
        if result.model != a["model"]:
            print(f"note: {result.name}: condensed on {a['model']}, accuracy of {result.model}", file=sys.stderr)
        bases = [base for base in results if result.comparable(base)]
        near = [base.name for base in results if base.is_dm and base.group[:2] == result.group[:2]]
        if near and not bases and not result.is_dm:
            why = "budget, initial images, network, seed, resolution or protocol differ"
            print(f"note: {result.name} is not compared with {near[0]}: {why}", file=sys.stderr)
        if bases and not result.is_dm:
            base = min(bases, key=lambda base: len(result.other_steps(base)))  # the first with fewest differences
            if result.other_steps(base):
                other = ", ".join(f"--{name}" for name in result.other_steps(base))
                print(f"note: {result.name} and {base.name}, its DM run, differ in {other}", file=sys.stderr)
            differences, unit = paired(result, base)
            if differences:
                half = interval(differences)
                row["minus DM"] = f"{statistics.fmean(differences):+.2f}"
                row["95 % interval"] = "" if half is None else f"± {half:.2f}"
                row["pairs"], row["DM run"] = f"{len(differences)} {unit}", base.name
            else:
                print(f"note: {result.name} and {base.name} share no experiment and network", file=sys.stderr)
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    return drawing.markdown([COLUMNS, *(row.values() for row in rows)])


def plot(results: list[Result], path: str) -> None:
    """Accuracy over iterations, one line per run, with a band of one standard deviation over networks."""
    with drawing.axes(8, 5) as (figure, axes):
        for result in results:
            curve = result.curve(result.model)
            at = sorted(curve)
            accs = [[100 * acc for values in curve[i].values() for acc in values] for i in at]
            drawing.banded(axes, at, accs, f"{result.name} ({result.args['ipc']} ipc)")
        axes.set(xlabel="condensation iterations", ylabel="accuracy of fresh networks, %")
        axes.legend(fontsize="small")
        drawing.save_figure(figure, path, "--plot")


def run(settings: CollectSettings) -> None:
    """Print the table; write --csv and --plot. Raises UserError for invalid files."""
    results = load(settings.folders)
    rows = table(results)
    print(markdown(rows))
    if settings.csv:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        try:
            disk.replace(Path(settings.csv), buffer.getvalue())
        except OSError as error:
            raise UserError(f"--csv {settings.csv!r} can't be written ({error.strerror})") from None
    if settings.plot:
        plot(results, settings.plot)
