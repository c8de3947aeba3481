"""Seconds of condensation until the set reaches a test accuracy, without evaluation time.

    python benchmarks/time_to_accuracy.py 48.9 DM_GramMatching.py --ipc 10 --eval_every 100 --num_eval 3 ...

The script runs the recipe with the given flags (one experiment; other settings at their defaults) and prints the curve
in results.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import timing


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    target, recipe, *argv = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(timing.ROOT / recipe), *argv, "--num_exp", "1"]
        if "--save_path" not in argv:
            command += ["--save_path", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        save_path = Path(argv[argv.index("--save_path") + 1]) if "--save_path" in argv else Path(folder)
        record = json.loads((save_path / "results.json").read_text())
    print(f"{timing.settings(record['hardware']['device'])}\n{recipe} {' '.join(argv)}\n{record['protocol']}\n")
    print("| iteration | seconds | accuracy % | std | n |\n|---|---|---|---|---|")
    reached = None
    for entry in record["evaluations"]:
        if entry["images"] == "condensed":
            seconds, mean = entry["condensing_seconds"], 100 * entry["mean"]
            print(f"| {entry['iteration']} | {seconds:.0f} | {mean:.2f} | {100 * entry['std']:.2f} | {entry['n']} |")
            if reached is None and mean >= float(target):
                reached = seconds
    print(f"\n{target} % " + ("not reached" if reached is None else f"after {reached:.0f} s of condensation"))


if __name__ == "__main__":
    main()
