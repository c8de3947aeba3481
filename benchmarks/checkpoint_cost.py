"""Share of a run's time for checkpoints at the default --checkpoint_every.

    python benchmarks/checkpoint_cost.py [--classes 10] [--ipc 10] [--batch_real 256] [--repeats 5]

The script runs uncompiled L_MMD steps on random 32x32 images, with a checkpoint after each step. The next step waits
for it. `in the loop` is the time that a step of an ordinary run waits. `in all` includes the writing in the background,
as if it used a core of the steps all that time.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import timing

from ddm.commands.condense import DDM, run_recipe
from ddm.commands.settings import DDMSettings
from ddm.runs.experiments import Run
from ddm.runs.progress import NAME


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("classes", 10), ("ipc", 10), ("batch_real", 256), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    in_loop, in_all, sizes = [], [], []
    write = Run.checkpoint

    def timed(run: Run) -> None:
        began = time.perf_counter()
        write(run)
        seconds = time.perf_counter() - began
        run.files.wait()
        if run.in_progress and run.state.iteration:
            in_loop.append(seconds)
            in_all.append(time.perf_counter() - began)
            sizes.append((run.files.folder / NAME).stat().st_size)

    Run.checkpoint = timed
    with tempfile.TemporaryDirectory() as folder:
        path, save_path = Path(folder) / "random.npz", Path(folder) / "run"
        timing.random_file(path, options.classes, options.classes * options.batch_real, options.classes)
        values = {"dataset": str(path), "data_path": folder, "save_path": str(save_path), "device": "cpu"}
        values |= {"ipc": options.ipc, "batch_real": options.batch_real, "Iteration": options.repeats}
        values |= {"checkpoint_every": 1, "compile": "off", "num_exp": 1, "num_eval": 1, "epoch_eval_train": 0}
        with contextlib.redirect_stdout(io.StringIO()):
            run_recipe(DDM, DDMSettings(**DDMSettings.PRESETS["dm"] | values))
        step = 1 / json.loads((save_path / "results.json").read_text())["iterations_per_second"]
    every = DDMSettings().checkpoint_every
    print(f"{timing.settings()}; {options.classes} classes, ipc {options.ipc}, batch_real {options.batch_real}")
    print(f"step {step:.3f} s, checkpoint of {sizes[-1] / 2**20:.1f} MiB every {every} steps")
    for where, seconds in (("in the loop", in_loop), ("in all", in_all)):
        median = statistics.median(seconds)
        print(f"{where:<11} {median:.4f} s = {100 * median / (every * step):.3f} % of the time")


if __name__ == "__main__":
    main()
