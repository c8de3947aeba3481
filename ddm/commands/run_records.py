"""Reads the results.json files of many runs, names the runs by their paths, and merges experiments run apart."""

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ddm.commands.settings import defaults, roles
from ddm.errors import UserError
from ddm.evaluation.protocol import headline_model, summary
from ddm.evaluation.sets import progress_text
from ddm.methods.settings import PLAIN, CondensingSettings, WeightSettings
from ddm.networks import untapped
from ddm.settings import Role, declarations

TEXT = {"protocol": str, "dataset": str, "model": str, "recipe": str}
NUMBERS = {"mean": float | int, "std": float | int, "n": int, "seed": int, "Iteration": int}
NEEDED = TEXT | NUMBERS | {"ipc": int | str, "evaluations": list}  # keys of a record or of its arguments
OF_RECORD = {"protocol", "mean", "std", "n", "evaluations"}  # the others are among the arguments
ENTRY = {"model": str, "images": str, "iteration": int, "experiment": int}
# Weights of the terms that recipes add to L_MMD; style_ratio is the weight in the recipes at the root.
TERMS = {name for name in declarations(WeightSettings) if name.endswith("_ratio")} - {"mmd_ratio"} | {"style_ratio"}
SHARED = ("dataset", "ipc", "seed", "model", "res")  # equal in all comparable runs, as is the protocol
BUDGET = ("Iteration", "batch_real", "real_sampling", "init")  # must be equal between recipes; coresets have none
CHANGING = {name for name, own in declarations(CondensingSettings).items() if own.role is Role.RESULT}
STEPS = sorted(CHANGING - {*SHARED, *BUDGET})  # may differ, with a note
# Runs that differ only in these settings share a row: experiments, and settings that do not change results. num_eval is
# excluded: experiments with more networks would weigh more.
ALONE = {name for name, role in roles().items() if role is not Role.RESULT} - {"num_eval"} | {"first_exp", "subset"}
# Arguments of this code, and at the end those of older versions. Others are settings of a user's recipe.
OURS = {*roles(), *TERMS, "recipe", "dsa", "needs_all_classes", "proxy_cache", "subset"}
# Entries of a results.json that `ddm collect --columns` shows, beside settings.
COSTS = ("seconds", "preparation_seconds", "iterations_per_second", "peak_memory_bytes", "date")
# Arguments without a column of their own: `method` and `recipe` are in "made by".
UNLISTED = ALONE | {"num_eval", "dataset", "ipc", "method", "recipe"}


# results.json of `ddm evaluate`: its `key`, and the names of its baselines by flag.
EVALUATION = {"command": "evaluate"}
BASELINES = {"random": "random real images", "whole": "whole training set"}


class Result(NamedTuple):
    """The content of a results.json."""

    name: str
    record: dict
    chosen: bool | None = None  # whether others are compared with it; None: if it is plain DM

    @property
    def args(self) -> dict:
        return self.record["args"]

    @property
    def settings(self) -> str:
        """All settings that change results, without switches that are off, as older files lack newer switches."""
        values = {name: value for name, value in self.args.items() if name not in ALONE and value not in (None, False)}
        return json.dumps([self.record["protocol"], values, self.record.get("unfinished")], sort_keys=True)

    @property
    def listed(self) -> list[str]:
        """The settings that change results and may have a column."""
        return [name for name in self.record.get("asked") or self.args if name not in UNLISTED and name in self.args]

    def value(self, name: str) -> str:
        """A setting as text; empty if it is unset, off, or not a setting of this run."""
        if name in COSTS:
            value = self.record.get(name)
        else:
            value = self.args.get(name) if name in (*self.listed, *UNLISTED) else None
        if name == "model" and value is not None:
            return untapped(value)
        if isinstance(value, bool):
            return "yes" if value else ""
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    def other_steps(self, base: "Result") -> list[str]:
        """The STEPS settings that differ from those of another run; none for a coreset."""
        if self.args["recipe"] == "coreset":
            return []
        usual = defaults() | PLAIN  # of settings that are newer than a file
        values = [{name: run.args.get(name, usual.get(name)) or None for name in STEPS} for run in (self, base)]
        return [name for name in STEPS if values[0][name] != values[1][name]]

    @property
    def is_dm(self) -> bool:
        """Whether this is plain DM: L_MMD alone. All settings of a user's recipe are 0, as one may be a weight."""
        if any(value for name, value in self.args.items() if name not in OURS):
            return False
        weights = {name: value for name, value in self.args.items() if name.endswith("_ratio")}
        mean_matching = weights.pop("mmd_ratio", 1 if weights.keys() & TERMS else 0)  # recipes without the flag use 1
        plain = all(self.args.get(name) in (None, value) for name, value in PLAIN.items())
        return plain and bool(weights) and not any(weights.values()) and mean_matching > 0

    @property
    def is_base(self) -> bool:
        return self.is_dm if self.chosen is None else self.chosen

    @property
    def title(self) -> str:
        """The name, with the iterations or experiments if the run has not ended."""
        return ", ".join(filter(None, (self.name, progress_text(self.record))))

    @property
    def made_by(self) -> str:
        """The coreset's method or the recipe."""
        return self.args.get("method") or self.args["recipe"]

    def curve(self, model: str) -> dict[int, dict[int, list[float]]]:
        """Iteration -> experiment -> accuracies in [0, 1] of one architecture, without baselines."""
        by_iteration: dict[int, dict[int, list[float]]] = {}
        for entry in self.record["evaluations"]:
            if entry["model"] == model and entry["images"] != "random real" and entry.get("accuracies"):
                by_iteration.setdefault(entry["iteration"], {})[entry["experiment"]] = entry["accuracies"]
        return by_iteration

    @property
    def model(self) -> str:
        """The network of `mean`: the one that made the set, or the first of a pool without it."""
        models = [e["model"] for e in self.record["evaluations"] if e["iteration"] == self.args["Iteration"]]
        return headline_model(self.args["model"], models)

    def final(self) -> dict[int, list[float]]:
        """Experiment -> accuracies of `model` after the last iteration."""
        return self.curve(self.model).get(self.args["Iteration"], {})

    def truncated(self, iteration: int) -> "Result | None":
        """The result as it was after an earlier iteration, without its COSTS. A coreset has no iterations and is kept.

        None if the sets were not evaluated then.
        """
        if self.args["recipe"] == "coreset" or iteration == self.args["Iteration"]:
            return self
        if iteration not in self.curve(self.model):
            return None
        _, whole = self.record.get("unfinished", (0, self.args["Iteration"]))
        record = {name: value for name, value in self.record.items() if name not in COSTS}
        record["evaluations"] = [e for e in self.record["evaluations"] if e["iteration"] <= iteration]
        part = self._replace(record=record | {"args": self.args | {"Iteration": iteration}})
        accs = [acc for values in part.final().values() for acc in values]
        return part._replace(record=part.record | summary(accs) | {"unfinished": [iteration, whole]})


def truncated(results: list[Result], iteration: int) -> list[Result]:
    """Results as they were after an iteration; runs without an evaluation then are left out, with a note on stderr.

    Raises UserError if no run has one.
    """
    earlier = [result.truncated(iteration) for result in results]
    condensed = [result for result in results if result.args["recipe"] != "coreset"]
    known = sorted({i for result in condensed for i in result.curve(result.model)})
    where = f"--iteration {iteration}"
    if not condensed:
        raise UserError(f"{where}: coresets have no iterations: leave it out")
    if iteration not in known:
        raise UserError(f"{where}: no run was evaluated then, but after {', '.join(map(str, known))}")
    for result, then in zip(results, earlier, strict=True):
        if then is None:
            print(f"note: {where}: {result.name} was not evaluated then", file=sys.stderr)
    return [result for result in earlier if result]


def load(folders: Iterable[str], iteration: int | None = None) -> list[Result]:
    """All results below some folders, in path order; runs that differ only in their experiments are merged.

    With `iteration`, the results as they were after it, see `truncated`.

    A run is named by its relative path, as far as it tells runs apart. Files of other commands below a folder are
    skipped with a note. Raises UserError if there are no results, or if a named file is from another command.
    """
    records: dict[Path, dict] = {}
    for folder in map(Path, folders):
        paths = sorted(folder.rglob("results.json"), key=numeric) if folder.is_dir() else [folder]
        if not paths or not paths[0].is_file():
            raise UserError(f"no results.json in {str(folder)!r}: name folders written by recipes or coreset")
        for path in paths:
            try:
                records.setdefault(path.resolve(), read(path))
            except UserError as error:
                if not folder.is_dir():
                    raise
                print(f"note: skipped: {error}", file=sys.stderr)
    if not records:
        folders = ", ".join(map(repr, folders))
        raise UserError(f"no results.json of a recipe or coreset in {folders}: name other folders")
    results = [Result(*pair) for pair in zip(short_names(list(records)), records.values(), strict=True)]
    return merged(results if iteration is None else truncated(results, iteration))


def numeric(path: Path) -> list[str | float]:
    """A key that sorts paths by the numbers in them: ratio_5 before ratio_10."""
    return [float(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", str(path)))]


def read(path: Path) -> dict:
    """The record in a results.json; raises UserError if it is not from a recipe or coreset."""
    other = f"{path}: not the results.json of a recipe or coreset"
    try:
        record = json.loads(path.read_text())
        places = {name: record if name in OF_RECORD else dict(record["args"]) for name in NEEDED}
        missing = [name for name, kind in NEEDED.items() if not isinstance(places[name].get(name), kind)]
        entries = record.get("evaluations")
        if not missing and not all(isinstance(e.get(name), kind) for e in entries for name, kind in ENTRY.items()):
            missing = ["valid evaluations"]
    except FileNotFoundError:
        raise UserError(f"no results.json in {path.parent}: name the --save_path of a run") from None
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{other} ({type(error).__name__}): name the --save_path of a run") from None
    if missing and "key" in record and (path.parent / "table.md").exists():  # of evaluate or continual
        raise UserError(f"{path}: its table is beside it, in table.md, table.tex and table.csv")
    if missing:
        raise UserError(f"{other}, it has no {', '.join(missing)}: name the --save_path of a run")
    return record


def short_names(paths: list[Path]) -> list[str]:
    """The names of runs: the paths of their folders without the first and the last parts that all have in common."""
    folders = [path.parent if path.name == "results.json" else path.with_suffix("") for path in paths]
    if len(folders) == 1:
        return [folders[0].name]
    first = len(Path(os.path.commonpath([folder.parent for folder in folders])).parts)
    parts = [folder.parts[first:] for folder in folders]
    while all(len(own) > 1 for own in parts) and len({own[-1] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    return ["/".join(own) for own in parts]


def experiments_of(*records: dict) -> dict[str, dict]:
    """The arguments of merged records, with the sum of their numbers of experiments."""
    parts = {}
    for part in ("args", "asked"):
        numbers = [record.get(part, {}).get("num_exp") for record in records]
        if None not in numbers:
            parts[part] = records[0][part] | {"num_exp": sum(numbers)}
    return parts


def merged(results: list[Result]) -> list[Result]:
    """Merge runs with the same settings and different experiments, under the name of the first."""
    rows: list[Result] = []
    for result in results:
        twin = next((k for k, r in enumerate(rows) if r.settings == result.settings), None)
        if twin is None or not result.final() or rows[twin].final().keys() & result.final().keys():
            rows.append(result)
            continue
        one = rows[twin]
        entries = sorted(one.record["evaluations"] + result.record["evaluations"], key=lambda e: e["experiment"])
        shared = {name: value for name, value in one.record.items() if name not in COSTS}
        whole = Result(one.name, shared | {"evaluations": entries} | experiments_of(one.record, result.record))
        accs = [acc for _, values in sorted(whole.final().items()) for acc in values]
        rows[twin] = Result(one.name, whole.record | summary(accs))
        experiments = ", ".join(map(str, sorted(whole.final())))
        print(f"note: {one.name} and {result.name} are merged, experiments {experiments}", file=sys.stderr)
    return rows


def differing(results: list[Result]) -> list[str]:
    """The settings that change results and differ between the runs that have them, in the order of their files.

    Files of older versions lack newer settings, so unset, 0 and absent are equal within a recipe. A setting of a user's
    recipe counts as 0 in other recipes.
    """
    known: dict[str, set[str]] = {}  # recipe -> its settings
    for result in results:
        known.setdefault(result.args["recipe"], set()).update(result.listed)
    names = dict.fromkeys(name for result in results for name in result.listed)
    values = {
        name: {
            r.value(name) if r.args.get(name) else ""
            for r in results
            if name in known[r.args["recipe"]] or name not in OURS
        }
        for name in names
    }
    return [name for name, kinds in values.items() if len(kinds) > 1]
