"""Kill a run repeatedly at random times, and compare its results with those of a run without kills.

    python benchmarks/kill_resume.py [--kills 50] [--seed 0]

Each round runs `DM_KNearest.py` on Digits for some seconds, with a checkpoint after every step and intermediate
evaluations. It sends SIGKILL after a random time, up to ten times, and starts the same command again each time. Then
the run may finish. Images, accuracies and log lines must equal those of the run without kills. The script prints the
numbers of kills, rounds and losses (rounds with different results).
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timing
import torch

from ddm.runs.results import TIMES

COMMAND = [
    *(sys.executable, str(timing.ROOT / "DM_KNearest.py")),
    *("--dataset", "Digits", "--model", "ConvNetW32", "--ipc", "2", "--batch_real", "16", "--Iteration", "60"),
    *("--num_exp", "2", "--num_eval", "2", "--epoch_eval_train", "10", "--eval_every", "20", "--lr_img", "0.1"),
    *("--checkpoint_every", "1", "--device", "cpu"),
]


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, "--save_path", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def outcome(folder: Path) -> tuple[list[bytes], object, list[str]]:
    """Images, results without times, and log lines without times; lines about resuming and paths are left out."""
    saved = torch.load(next(folder.glob("res_*.pt")))
    log = [re.sub(r"^\[.*?\] |, \d+ s,", "", line) for line in (folder / "training.log").read_text().splitlines()]
    differing = ("resuming from", "command:", "arguments:", "images ", "set ", "results ")
    log = [line.split("; writing")[0] for line in log if not line.startswith(differing)]
    images = [x.numpy().tobytes() for x, _ in saved["data"]]
    return images, timeless(json.loads((folder / "results.json").read_text())), log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments, kills, rounds, losses = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        whole = start(Path(folder) / "whole")
        if whole.wait():
            sys.exit(whole.stderr.read().decode())
        took, expected = time.perf_counter() - began, outcome(Path(folder) / "whole")
        while kills < options.kills:
            rounds += 1
            save_path = Path(folder) / str(rounds)
            for _ in range(min(10, options.kills - kills)):
                process = start(save_path)
                try:
                    process.wait(moments.uniform(0.1, 0.9) * took)
                    break  # it finished first
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills += 1
            last = start(save_path)
            lost = last.wait() != 0 or outcome(save_path) != expected
            losses += lost
            print(f"round {rounds}: {kills} kills, {'LOST' if lost else 'equal'}", flush=True)
    print(f"{timing.settings()}\n{kills} kills in {rounds} rounds of {took:.0f} s; losses: {losses}")
    sys.exit(losses > 0)


if __name__ == "__main__":
    main()
