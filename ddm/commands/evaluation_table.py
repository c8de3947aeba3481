"""The tables of `ddm evaluate`: accuracies of sets by network, and their paired differences."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ddm import drawing
from ddm.evaluation import protocol
from ddm.evaluation.settings import PEERS

# The settings that separate measurements of one set by one network. A new value adds a row to the table.
PROTOCOL = ("epoch_eval_train", "lr_net", "batch_train", "dsa_strategy", "eval_split", "seed")
MANNER = ("precision", "compile", "eval_protocol")  # other settings that separate measurements
DIGESTS = ("data", "digest")  # of the real images and of the set
SETTINGS = (*PROTOCOL, *MANNER, "dataset")
OF_SET = ("experiment", "iteration", *DIGESTS)

Accuracies = dict[tuple[int, int], list[float]]  # by (experiment, iteration), which seed the networks


class Row(NamedTuple):
    """A row of the table: a set, or all sets of a file."""

    name: str
    set: str  # the set, or the file of all sets, without what tells rows of one name apart
    settings: tuple[str, ...]  # those that differ in the table, and their values
    by_model: dict[str, Accuracies]

    @property
    def title(self) -> str:
        return ", ".join([self.name, *self.settings])

    @property
    def sets(self) -> int:
        return max(len(by_set) for by_set in self.by_model.values())


def rows_of(evaluations: list[dict]) -> list[Row]:
    """One row per set and settings, then one for all sets of a file, unless a set's name stands for several.

    Rows name the settings that differ in the table, and what differs between sets of one name. They do not name
    settings of the networks, which are in the head (see `of_networks`).
    """
    order, in_head = list(dict.fromkeys(entry["set"] for entry in evaluations)), of_networks(evaluations)
    rows: dict[tuple, Row] = {}
    files: dict[tuple, Row] = {}
    own_by_set = {name: varying([e for e in evaluations if e["set"] == name], OF_SET) for name in order}
    ambiguous = {entry.get("file") for entry in evaluations if own_by_set[entry["set"]]}
    for entry in sorted(evaluations, key=lambda entry: order.index(entry["set"])):
        # Settings of the two protocols are not compared: rows are labelled with the protocol.
        alike = [e for e in evaluations if e["eval_protocol"] == entry["eval_protocol"]]
        differing = [name for name in varying(alike, SETTINGS) if name not in in_head]
        if entry["eval_protocol"] == PEERS or len(alike) < len(evaluations):  # rows of peers are always labelled
            differing.append("eval_protocol")
        settings = tuple(f"{name} {entry[name]}" for name in differing)
        own = own_by_set[entry["set"]]
        own = [f"{name} {entry[name][:8] if name in DIGESTS else entry[name]}" for name in own]
        places = [(rows, ", ".join([entry["set"], *own]), entry["set"])]
        if entry.get("file") and entry["file"] not in ambiguous:
            places.append((files, f"{entry['file']}, all sets", entry["file"]))
        for table, name, of in places:
            row = table.setdefault((name, settings), Row(name, of, settings, {}))
            by_set = row.by_model.setdefault(entry["model"], {})
            by_set[entry["experiment"], entry["iteration"]] = entry["accuracies"]
    whole = [
        row._replace(by_model={model: by_set for model, by_set in row.by_model.items() if len(by_set) == row.sets})
        for row in files.values()
        if row.sets > 1
    ]
    return [*rows.values(), *whole]


def of_networks(evaluations: list[dict]) -> list[str]:
    """The settings that differ between networks, such as their epochs, but not between the entries of any network."""
    columns = [[e for e in evaluations if e["model"] == model] for model in {e["model"] for e in evaluations}]
    within = {name for column in columns for name in varying(column, SETTINGS)}
    return [name for name in varying(evaluations, SETTINGS) if name not in within]


def varying(entries: list[dict], names: Sequence[str]) -> list[str]:
    """The names whose values are not equal in all entries."""
    return [name for name in names if any(entry[name] != entries[0][name] for entry in entries)]


def cell(by_set: Accuracies) -> str:
    """The mean and deviation over all networks, in %; empty without accuracies, which are in [0, 1]."""
    accuracies = [acc for accs in by_set.values() for acc in accs]
    if not accuracies:
        return ""
    s = protocol.summary(accuracies)
    return f"{drawing.mean_std(100 * s['mean'], 100 * s['std'], s['n'])} (n {s['n']})"


def difference(mine: Accuracies, base: Accuracies) -> str:
    """The paired difference in percentage points with its 95 % interval; empty without pairs.

    Pairs are sets of equal experiments, which start from the same images. For a single set they are the networks with
    the same weights and batches.
    """
    if len(mine) > 1 and len(base) > 1:
        of_base = {experiment: statistics.fmean(accs) for (experiment, _), accs in base.items() if accs}
        pairs = [statistics.fmean(accs) - of_base[e] for (e, _), accs in mine.items() if accs and e in of_base]
        unit = "set"
    else:
        pairs = [a - b for key in mine.keys() & base.keys() for a, b in zip(mine[key], base[key], strict=False)]
        unit = "network"
    if not pairs:
        return ""
    points = [100 * pair for pair in pairs]
    half = protocol.interval(points)
    text = f"{statistics.fmean(points):+.2f}" + ("" if half is None else f" ± {half:.2f}")
    return f"{text} ({len(points)} {unit}{'s' if len(points) > 1 else ''})"


def minus(row: Row, base: Row) -> dict[str, str]:
    """Network -> the difference to a row with the same settings, where there are pairs."""
    if row.settings != base.settings:
        return {}
    found = {m: difference(by_set, base.by_model.get(m, {})) for m, by_set in row.by_model.items()}
    return {m: text for m, text in found.items() if text}


def tables(evaluations: list[dict]) -> list[list[list[str]]]:
    """A table in % with one column per network, and one or two of the differences to the first set, if there are any.

    The first row for all sets of a file is what others of this kind are compared with. If the first set has several
    rows, it is the one with most pairs.
    """
    models = list(dict.fromkeys(entry["model"] for entry in evaluations))
    rows = rows_of(evaluations)
    first = {model: next(entry for entry in evaluations if entry["model"] == model) for model in models}
    titles = [", ".join([m, *(f"{name} {first[m][name]}" for name in of_networks(evaluations))]) for m in models]
    lines = [["set", *titles], *([row.title, *(cell(row.by_model.get(m, {})) for m in models)] for row in rows)]
    found = [lines]
    for single in (True, False):
        kind = [row for row in rows if (row.sets == 1) == single]
        compared, bases = [], [row for row in kind if row.set == kind[0].set]
        base = max(bases, key=lambda one: sum(bool(minus(row, one)) for row in kind), default=None)
        for row in kind:
            if row is not base and minus(row, base):
                compared.append([row.title, *(minus(row, base).get(model, "") for model in models)])
        if compared:
            head = [f"minus {base.title}, with 95 % interval", *titles]
            found.append([head, *compared])
    return found
