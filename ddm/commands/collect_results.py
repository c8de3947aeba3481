"""`ddm collect`: tables and curves from results.json files."""

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
NEEDED = TEXT | NUMBERS | {"ipc": int | str, "evaluations": list}  # of a record or of its arguments
ENTRY = {"model": str, "images": str, "iteration": int, "experiment": int}
# Weights of the terms that recipes add to L_MMD.
TERMS = {"mm_ratio", "cm_ratio", "icd_ratio"}
BUDGET = ("Iteration", "batch_real", "real_sampling", "init")  # must be equal between recipes; coresets have none
STEPS = ("lr_img", "lr_schedule", "momentum_img", "clip_pixels", "zca")  # may differ, with a note
# Runs that differ only in these are one row: which experiments, and what does not change results. num_eval does not
# count among them: experiments with more networks would weigh more.
ALONE = {name for name, role in roles().items() if role is not Role.RESULT} - {"num_eval"} | {"first_exp", "subset"}


class Result(NamedTuple):
    """A results.json."""

    name: str
    record: dict

    @property
    def args(self) -> dict:
        return self.record["args"]

    @property
    def group(self) -> tuple:
        """Runs that may be compared have these in common."""
        a = self.args
        return a["dataset"], a["ipc"], self.record["protocol"], a["seed"], untapped(a["model"]), a.get("res")

    @property
    def settings(self) -> str:
        """All settings that change results, without switches that are off: older files lack newer ones."""
        found = {name: value for name, value in self.args.items() if name not in ALONE and value not in (None, False)}
        return json.dumps([self.record["protocol"], found], sort_keys=True)

    def comparable(self, base: "Result") -> bool:
        """With a run of plain DM: the same group and, if it condensed too, the same budget."""
        same_budget = all(self.args.get(name) == base.args.get(name) for name in BUDGET)
        return base.is_dm and self.group == base.group and (same_budget or self.args["recipe"] == "coreset")

    def other_steps(self, base: "Result") -> list[str]:
        """Settings of the optimisation that another run, of a recipe too, has otherwise."""
        if self.args["recipe"] == "coreset":
            return []
        return [name for name in STEPS if (self.args.get(name) or None) != (base.args.get(name) or None)]

    @property
    def is_dm(self) -> bool:
        weights = {name: value for name, value in self.args.items() if name.endswith("_ratio")}
        mean_matching = weights.pop("mmd_ratio", 1 if weights.keys() & TERMS else 0)  # the single-term recipes have it
        return bool(weights) and not any(weights.values()) and mean_matching > 0

    @property
    def made_by(self) -> str:
        return self.args.get("method") or self.args["recipe"]

    def curve(self, model: str) -> dict[int, dict[int, list[float]]]:
        """Iteration -> experiment -> accuracies in [0, 1] of one network architecture, baselines left out."""
        found: dict[int, dict[int, list[float]]] = {}
        for entry in self.record["evaluations"]:
            if entry["model"] == model and entry["images"] != "random real" and entry.get("accuracies"):
                found.setdefault(entry["iteration"], {})[entry["experiment"]] = entry["accuracies"]
        return found

    @property
    def model(self) -> str:
        """The network of `mean`: the one that made the set, or the pool's first where it has not that one."""
        models = [e["model"] for e in self.record["evaluations"] if e["iteration"] == self.args["Iteration"]]
        return self.args["model"] if self.args["model"] in models or not models else models[0]

    def final(self) -> dict[int, list[float]]:
        """Experiment -> accuracies after the last iteration, of `model`."""
        return self.curve(self.model).get(self.args["Iteration"], {})


def load(folders: Iterable[str]) -> list[Result]:
    """All results below some folders, in the order of their paths, those of one run with other experiments as one.

    Files of other commands below a folder are passed over with a note. Raises UserError where there are none, or a file
    that was named is another's.
    """
    results = []
    for folder in map(Path, folders):
        paths = sorted(folder.rglob("results.json")) if folder.is_dir() else [folder]
        if not paths or not paths[0].is_file():
            raise UserError(f"no results.json in {str(folder)!r}: name folders that recipes or coreset wrote")
        for path in paths:
            try:
                results.append(Result(path.resolve().parent.name, read(path)))
            except UserError as error:
                if not folder.is_dir():
                    raise
                print(f"note: passed over, {error}", file=sys.stderr)
    if not results:
        raise UserError(f"no results.json of a recipe or coreset in {', '.join(map(repr, folders))}")
    return merged(results)


def read(path: Path) -> dict:
    """The record in a results.json; raises UserError where it is not one of a recipe or coreset."""
    try:
        record = json.loads(path.read_text())
        values = dict(record["args"]) | record
        missing = [name for name, kind in NEEDED.items() if not isinstance(values.get(name), kind)]
        entries = record.get("evaluations")
        if not missing and not all(isinstance(e.get(name), kind) for e in entries for name, kind in ENTRY.items()):
            missing = ["good evaluations"]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not the results.json of a recipe ({type(error).__name__})") from None
    if missing:
        raise UserError(f"{path}: not the results.json of a recipe, it has no {', '.join(missing)}")
    return record


def merged(results: list[Result]) -> list[Result]:
    """Runs with the same settings and different experiments as one, under the name of the first."""
    found: list[Result] = []
    for result in results:
        twin = next((k for k, r in enumerate(found) if r.settings == result.settings), None)
        if twin is None or not result.final() or found[twin].final().keys() & result.final().keys():
            found.append(result)
            continue
        one = found[twin]
        entries = sorted(one.record["evaluations"] + result.record["evaluations"], key=lambda e: e["experiment"])
        whole = Result(one.name, one.record | {"evaluations": entries})
        accs = [acc for _, own in sorted(whole.final().items()) for acc in own]
        numbers = {"mean": statistics.fmean(accs), "std": statistics.pstdev(accs), "n": len(accs)}
        found[twin] = Result(one.name, whole.record | numbers)
        experiments = ", ".join(map(str, sorted(whole.final())))
        print(f"note: {one.name} and {result.name} are one run, of experiments {experiments}", file=sys.stderr)
    return found


def paired(result: Result, base: Result) -> tuple[list[float], str]:
    """Differences in points of what two runs have in common, and what that is."""
    mine, other = result.final(), base.final()
    common = sorted(mine.keys() & other.keys())
    if len(common) > 1:
        return [100 * (statistics.fmean(mine[e]) - statistics.fmean(other[e])) for e in common], "experiments"
    if result.args["Iteration"] != base.args["Iteration"]:  # other networks, as their seeds have the iteration
        return [], ""
    differences = [100 * (a - b) for e in common for a, b in zip(mine[e], other[e], strict=False)]
    return differences, "networks of one experiment"


def interval(differences: list[float]) -> float | None:
    """Half the width of the 95 % confidence interval of their mean, by Student's t; None for fewer than two."""
    from scipy import stats  # imported here: it takes a second

    n = len(differences)
    return float(stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5) if n > 1 else None


def table(results: list[Result]) -> list[dict[str, str]]:
    rows = []
    for result in results:
        a, r = result.args, result.record
        row = dict.fromkeys(COLUMNS, "")
        row |= {"dataset": a["dataset"], "ipc": str(a["ipc"]), "run": result.name, "made by": result.made_by}
        row |= {"accuracy %": f"{100 * r['mean']:.2f}", "std": f"{100 * r['std']:.2f}", "n": str(r["n"])}
        if result.model != a["model"]:
            print(f"note: {result.name} was made on {a['model']}, its accuracy is of {result.model}", file=sys.stderr)
        bases = [base for base in results if result.comparable(base)]
        near = [base.name for base in results if base.is_dm and base.group[:2] == result.group[:2]]
        if near and not bases and not result.is_dm:
            why = "other budget, start, network, seed, resolution or protocol"
            print(f"note: {result.name} is not compared with {near[0]}: {why}", file=sys.stderr)
        if bases and not result.is_dm:
            base = min(bases, key=lambda base: len(result.other_steps(base)))  # the likest; of several the first
            if result.other_steps(base):
                other = ", ".join(f"--{name}" for name in result.other_steps(base))
                print(f"note: {result.name} and {base.name}, its DM run, have another {other}", file=sys.stderr)
            differences, unit = paired(result, base)
            if differences:
                half = interval(differences)
                row["minus DM"] = f"{statistics.fmean(differences):+.2f}"
                row["95 % interval"] = "" if half is None else f"± {half:.2f}"
                row["pairs"], row["DM run"] = f"{len(differences)} {unit}", base.name
            else:
                print(f"note: {result.name} has no experiment and network in common with {base.name}", file=sys.stderr)
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
            accs = [[100 * acc for own in curve[i].values() for acc in own] for i in at]
            drawing.banded(axes, at, accs, f"{result.name} ({result.args['ipc']} ipc)")
        axes.set(xlabel="iterations of condensation", ylabel="accuracy of fresh networks, %")
        axes.legend(fontsize="small")
        drawing.save_figure(figure, path, "--plot")


def run(settings: CollectSettings) -> None:
    """Print the table. Raises UserError for what the user can correct."""
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
