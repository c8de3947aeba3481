"""Tables and curves from results.json files.

    python collect_results.py results/ablation [--csv table.csv] [--plot curves.png]

Prints a Markdown table: a row a run, with mean, (population) standard deviation and n over networks, and the paired
difference to the plain-DM run of the same data set, ipc and evaluation split with its 95 % confidence interval. Pairs
are experiments of the same number and seed, which start from the same images: of each the mean over its networks counts
once (Student's t). Where there is only one experiment, pairs are its networks (of recipes with as many iterations),
which says nothing of other condensations; the table names what was paired, and with which run. Herding and the other
rules that look at a network choose the same images in every experiment.
"""

import argparse
import csv
import json
import statistics
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from errors import UserError
from flags import Parser
from networks import untapped

COLUMNS = ("dataset", "ipc", "run", "made by", "accuracy %", "std", "n", "minus DM", "95 % interval", "pairs", "DM run")
NEEDED = {"dataset", "ipc", "seed", "model", "recipe", "Iteration"}
BUDGET = ("Iteration", "batch_real", "real_sampling")  # what recipes must have in common; coresets have none


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
        return a["dataset"], a["ipc"], self.record["protocol"], a["seed"], untapped(a["model"])

    def comparable(self, base: "Result") -> bool:
        """With a run of plain DM: the same group and, if it condensed too, the same budget."""
        same_budget = all(self.args.get(name) == base.args.get(name) for name in BUDGET)
        return base.is_dm and self.group == base.group and (same_budget or self.args["recipe"] == "coreset")

    @property
    def is_dm(self) -> bool:
        weights = [value for name, value in self.args.items() if name.endswith("_ratio") and name != "mmd_ratio"]
        return bool(weights) and not any(weights) and self.args.get("mmd_ratio", 1) > 0

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

    def final(self) -> dict[int, list[float]]:
        """Experiment -> accuracies after the last iteration, of the network that made the set."""
        return self.curve(self.args["model"]).get(self.args["Iteration"], {})


def load(folders: list[str]) -> list[Result]:
    """All results below some folders, in the order of their paths; raises UserError where there are none."""
    results = []
    for folder in map(Path, folders):
        paths = sorted(folder.rglob("results.json")) if folder.is_dir() else [folder]
        if not paths or not paths[0].is_file():
            raise UserError(f"no results.json in {str(folder)!r}: name folders that recipes or coreset.py wrote")
        for path in paths:
            try:
                record = json.loads(path.read_text())
                missing = {"args", "protocol", "evaluations", "mean", "std", "n"} - record.keys()
                missing = missing or NEEDED - dict(record["args"]).keys()
            except (OSError, ValueError, AttributeError, TypeError) as error:
                raise UserError(f"{path}: not a results.json ({type(error).__name__})") from None
            if missing:
                raise UserError(f"{path}: not a results.json, it has no {', '.join(sorted(missing))}")
            results.append(Result(path.resolve().parent.name, record))
    return results


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
        bases = [base for base in results if result.comparable(base)]
        near = [base.name for base in results if base.is_dm and base.group[:2] == result.group[:2]]
        if near and not bases and not result.is_dm:
            why = "other budget, network, seed or protocol"
            print(f"note: {result.name} is not compared with {near[0]}: {why}", file=sys.stderr)
        if bases and not result.is_dm:
            differences, unit = paired(result, bases[0])
            if differences:
                half = interval(differences)
                row["minus DM"] = f"{statistics.fmean(differences):+.2f}"
                row["95 % interval"] = "" if half is None else f"± {half:.2f}"
                row["pairs"], row["DM run"] = f"{len(differences)} {unit}", bases[0].name
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(results: list[Result], path: str) -> None:
    """Accuracy over iterations, a line a run, with a band of one standard deviation over networks."""
    import matplotlib  # imported here: only plots need it

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for result in results:
        curve = result.curve(result.args["model"])
        at = sorted(curve)
        accs = [[100 * acc for own in curve[i].values() for acc in own] for i in at]
        means, stds = ([f(a) for a in accs] for f in (statistics.fmean, statistics.pstdev))
        axes.errorbar(at, means, fmt="o-", markersize=4, label=f"{result.name} ({result.args['ipc']} ipc)")
        low, high = ([m + sign * s for m, s in zip(means, stds, strict=True)] for sign in (-1, 1))
        axes.fill_between(at, low, high, alpha=0.2)
    axes.set(xlabel="iterations of condensation", ylabel="accuracy of fresh networks, %")
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path!r} can't be written ({error})") from None
    finally:
        plt.close(figure)


def main() -> None:
    parser = Parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", nargs="+", metavar="DIR", help="searched for results.json, at any depth")
    parser.output.add_argument("--csv", default=None, help="write the table there, too")
    parser.output.add_argument("--plot", default=None, help="draw accuracy over iterations there (.png, .pdf, .svg)")
    args: Namespace = parser.parse_args()
    try:
        results = load(args.folders)
        rows = table(results)
        print(markdown(rows))
        if args.csv:
            try:
                with open(args.csv, "w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    writer.writeheader()
                    writer.writerows(rows)
            except OSError as error:
                raise UserError(f"--csv {args.csv!r} can't be written ({error.strerror})") from None
        if args.plot:
            plot(results, args.plot)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
