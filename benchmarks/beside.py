"""Seconds of steps and evaluations of this checkout beside those of another one, such as the commit before a change.

    git worktree add ../before 351706d
    python benchmarks/beside.py ../before [--rounds 4] [--threads 2]

The checkouts take turns, each in a process of its own; a round is one process of each. Steps are eager and in float32,
on random images of CIFAR10's shape. The table has means over the rounds of each process's median.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import timing

STEPS = {  # name -> settings, steps
    "step, 256 random images": ({"batch_real": 256}, 8),
    "step, 32 balanced images": ({"batch_real": 32, "real_sampling": "balanced"}, 25),
}
# Runs in either checkout, so it uses only what both have. It prints a list of seconds.
PROGRAM = """
import json, statistics, sys, time
root, threads, steps = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
sys.path[:0] = [root, root + "/benchmarks"]
import step, torch
from ddm.device import Machine
from ddm.evaluation.protocol import Evaluator
from ddm.evaluation.settings import ProtocolSettings
torch.set_num_threads(threads)
data, seconds = step.random_data(10, 32, 300), []
for changes, count in steps:
    maker, times = step.started("MMD", data, ipc=10, compile="off", precision="fp32", **changes), []
    for iteration in range(1, count + 1):
        began = time.perf_counter()
        maker.step(iteration)
        maker.check()
        times.append(time.perf_counter() - began)
    seconds.append(statistics.median(times[2:]))
evaluator = Evaluator(data, ProtocolSettings(num_eval=1, epoch_eval_train=15), Machine())
images, times = data.batch(torch.arange(0, 3000, 30)), []
for iteration in range(3):
    began = time.perf_counter()
    evaluator(images, data.y_train[::30], 0, iteration, lambda line: None)
    times.append(time.perf_counter() - began)
print(json.dumps([*seconds, statistics.median(times)]))
"""


def measured(root: Path, threads: int) -> list[float]:
    command = [sys.executable, "-c", PROGRAM, str(root), str(threads), json.dumps(list(STEPS.values()))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    roots = {"before": options.before.resolve(), "here": timing.ROOT}
    runs = {name: [] for name in roots}
    for _ in range(options.rounds):
        for name, root in roots.items():
            runs[name].append(measured(root, options.threads))
    print(f"{timing.settings()}; {options.rounds} rounds, {options.threads} threads\n")
    print("| | before s | here s | here / before |\n|---|---|---|---|")
    for k, what in enumerate([*STEPS, "evaluation, 16 epochs of 100 images and a test of 3,000"]):
        before, here = (statistics.fmean(run[k] for run in runs[name]) for name in roots)
        print(f"| {what} | {before:.3f} | {here:.3f} | {here / before:.2f} |")


if __name__ == "__main__":
    main()
