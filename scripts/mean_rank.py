"""Print the table of scripts/choose_presets.sh: accuracies, their mean rank, and the worst difference from plain DM.

    python scripts/mean_rank.py results/choose

The folder has DATASET/ipcN/ROW/results.json. A set counts for the ranks if every row has a result on it.
"""

import argparse
import json
from pathlib import Path

from scipy.stats import rankdata

from ddm import drawing


def accuracies(folder: Path) -> dict[str, dict[str, float]]:
    """Set, such as CIFAR10/10 -> row -> accuracy in %."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("*/ipc*/*/results.json")):
        dataset, ipc, row = path.parts[-4:-1]
        record = json.loads(path.read_text())
        if "mean" in record and "unfinished" not in record:
            found.setdefault(f"{dataset}/{ipc.removeprefix('ipc')}", {})[row] = 100 * record["mean"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = accuracies(folder)
    if not found:
        parser.error(f"{folder} has no DATASET/ipcN/ROW/results.json: name the --out of choose_presets.sh")
    rows = sorted({row for by_row in found.values() for row in by_row})
    whole = {name: by_row for name, by_row in found.items() if by_row.keys() == set(rows)}
    ranks = [rankdata([-by_row[row] for row in rows]) for by_row in whole.values()]
    lines = []
    for i, row in enumerate(rows):
        gains = [by_row[row] - by_row["dm"] for by_row in found.values() if {"dm", row} <= by_row.keys()]
        mean = f"{sum(own[i] for own in ranks) / len(ranks):.2f}" if ranks else ""
        worst = f"{min(gains):+.2f}" if gains else ""
        cells = [f"{by_row[row]:.2f}" if row in by_row else "" for by_row in found.values()]
        lines.append(((float(mean or 0), row), [row, *cells, mean, worst]))
    header = ["row", *found, f"mean rank over {len(whole)} sets", "least gain over dm"]
    print(drawing.markdown([header, *(cells for _, cells in sorted(lines))]))


if __name__ == "__main__":
    main()
