"""Peak memory of condensation steps by ipc and number of classes, each in a new process.

    python benchmarks/peak_memory.py [--case CM] [--classes 10,100] [--ipc 1,10,50] [--batch_real 256] [--compile on]

Each process takes two steps on random 32x32 images. `before` is its peak memory after loading libraries and data,
`peak` is its peak memory after the steps.
"""

import argparse
import subprocess
import sys

import step
import timing

from ddm import device


def row(case: str, classes: int, ipc: int, batch_real: int, compile: str) -> str:
    """Take two steps; return a row of the table."""
    data = step.random_data(classes, 32, batch_real)
    maker = step.started(case, data, ipc=ipc, batch_real=batch_real, compile=compile)
    before = device.peak_memory("cpu")
    for iteration in (1, 2):
        maker.step(iteration)
    peak, chunk = device.peak_memory("cpu"), maker.plan.settings.class_chunk
    return f"| {case} | {classes} | {ipc} | {chunk} | {before / 2**30:.2f} | {peak / 2**30:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="CM", choices=list(step.CASES))
    parser.add_argument("--classes", default="10,100")
    parser.add_argument("--ipc", default="1,10,50")
    parser.add_argument("--batch_real", type=int, default=256)
    parser.add_argument("--compile", default="on", choices=("on", "off"))
    parser.add_argument("--row", action="store_true", help="measure in this process, print one row")
    options = parser.parse_args()
    counts = [(c, i) for c in options.classes.split(",") for i in options.ipc.split(",")]
    if options.row:
        print(row(options.case, *map(int, counts[0]), options.batch_real, options.compile))
        return
    print(f"{timing.settings()}; batch_real {options.batch_real}, compile {options.compile}\n")
    print("| terms | classes | ipc | class_chunk | before GiB | peak GiB |\n|---|---|---|---|---|---|", flush=True)
    for classes, ipc in counts:
        argv = ["--row", "--case", options.case, "--classes", classes, "--ipc", ipc, "--compile", options.compile]
        argv += ["--batch_real", str(options.batch_real)]
        done = subprocess.run([sys.executable, __file__, *argv], capture_output=True, text=True, check=True)
        print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
