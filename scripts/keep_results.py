"""Copy results.json files into docs/results, without the paths of their machine and without learning curves.

    python scripts/keep_results.py results/ablation/ipc10 docs/results/ablation/ipc10

They reproduce the numbers of docs/results.md: `--like docs/results/ablation/ipc10/dm/results.json`.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddm.commands.export import shared
from ddm.evaluation.sets import progress_text

PLACES = {"save_path": "result", "data_path": "data"}  # in place of the paths of this machine


def cleaned(record: dict) -> dict:
    for name in ("args", "asked"):
        kept = shared(record, name)
        record[name] = {key: kept.get(key, PLACES.get(key)) for key in record[name]}
    for entry in record["evaluations"] if isinstance(record.get("evaluations"), list) else ():
        entry.pop("curves", None)
        if "set" in entry:
            entry["set"] = Path(entry["set"]).name
    program, *words = record["command"]
    command = ["ddm" if Path(program).name == "__main__.py" else Path(program).name]
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for before, word in zip(["", *words], words, strict=False):
        usual = PLACES.get(before.removeprefix("--"), word) if before.startswith("--") else word
        command.append(Path(word).name if usual == word and Path(word).is_absolute() else usual)
    return record | {"command": command}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of runs")
    parser.add_argument("target", type=Path, help="folder for the copies")
    source, target = vars(parser.parse_args()).values()
    for path in sorted(source.rglob("results.json")):
        out = target / path.relative_to(source)
        out.parent.mkdir(parents=True, exist_ok=True)
        record = cleaned(json.loads(path.read_text()))
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(out, progress_text(record))


if __name__ == "__main__":
    main()
