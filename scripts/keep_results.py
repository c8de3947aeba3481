"""Copy results.json files into docs/results, without the paths of their machine and without learning curves.

    python scripts/keep_results.py results/ablation/ipc10 docs/results/ablation/ipc10

They reproduce the numbers of docs/results.md: `--like docs/results/ablation/ipc10/dm/results.json`.
"""

import argparse
import json
from pathlib import Path

from ddm.evaluation.sets import progress_text

PATHS = {"save_path": "result", "data_path": "data", "network_cache": None, "proxy_cache": None}


def cleaned(record: dict) -> dict:
    for args in (record["args"], record["asked"]):
        args.update({key: value for key, value in PATHS.items() if key in args})
    for entry in record["evaluations"] if isinstance(record.get("evaluations"), list) else ():
        entry.pop("curves", None)
        if "set" in entry:
            entry["set"] = Path(entry["set"]).name
    program, *words = record["command"]
    command = ["ddm" if Path(program).name == "__main__.py" else Path(program).name]
    for before, word in zip(["", *words], words, strict=False):
        usual = PATHS.get(before.removeprefix("--"), word) if before.startswith("--") else word
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
