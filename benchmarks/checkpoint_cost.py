"""Share of a run's time that checkpoints take at the default --checkpoint_every.

    python benchmarks/checkpoint.py [--classes 10] [--ipc 10] [--batch_real 256] [--repeats 5]

Takes uncompiled L_MMD steps and checkpoints of a set of this size in turn: `in the loop` is what a step waits for,
`in all` counts the writing in the background too, as if it took a core from the steps all that time.
"""

import argparse
import tempfile
import time
from pathlib import Path

import step
import timing

import DM_KNearest
from ddm import flags
from ddm import memory
from ddm.methods.condense import Run, Synthetic, condensation_step, prepare
from ddm.runs.files import RunFiles, plain
from ddm.interrupt import Interrupts
from ddm.methods.sampling import Random


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("classes", 10), ("ipc", 10), ("batch_real", 256), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        argv = ["--ipc", str(options.ipc), "--batch_real", str(options.batch_real), "--icd_ratio", "0", *step.CPU]
        argv += ["--compile", "off", "--save_path", str(Path(folder) / "run")]
        args = flags.resolve(DM_KNearest.make_parser().parse_args(argv))
        statistics, requested = DM_KNearest.settle(args), plain(args)
        memory.keep_freed_memory()
        data = step.random_data(options.classes, 32, options.batch_real)
        matcher = prepare(data, args, DM_KNearest.objective, statistics)
        with RunFiles(args) as files:
            files.open()
            identity = {"requested": requested, "data": data.digest()}
            run = Run(matcher, args, data, files, Interrupts(), identity, None)
            images = data.normalise(data.x_train.unflatten(0, (options.classes, -1))[:, : options.ipc])
            run.syn_set = Synthetic.start(images.flatten(0, 1), args)
            seconds = {}

            def steps() -> None:
                condensation_step(matcher, run.syn_set, Random(data, args), 0, 1, args).finite.item()

            def checkpoint() -> None:
                began = time.perf_counter()
                run.checkpoint()
                seconds["loop"] = time.perf_counter() - began
                files.wait()

            found = timing.medians({"step": steps, "checkpoint": checkpoint}, options.repeats)
            size = (Path(args.save_path) / "checkpoint.pt").stat().st_size
    between = args.checkpoint_every * found["step"]
    print(f"{timing.settings()}; {options.classes} classes, ipc {options.ipc}, batch_real {options.batch_real}")
    print(f"step {found['step']:.3f} s, checkpoint of {size / 2**20:.1f} MiB every {args.checkpoint_every} steps")
    print(f"in the loop {seconds['loop']:.4f} s = {100 * seconds['loop'] / between:.3f} % of the time")
    print(f"in all      {found['checkpoint']:.4f} s = {100 * found['checkpoint'] / between:.3f} % of the time")


if __name__ == "__main__":
    main()
