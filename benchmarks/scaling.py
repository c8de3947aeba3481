"""Time per iteration by number of torchrun ranks, and a model of ImageNet-1K on GPUs.

    python benchmarks/scaling.py [--ranks 1,2] [--repeats 3] [--recipe DM_KNearest]
    python benchmarks/scaling.py --model [--gpus 8] [--tflops 100] [--gather_gbs 0.8]

The first command condenses random 32x32 images of 10 classes with one thread per process. The numbers of ranks take
turns. Start-up and evaluation are not timed. The second command is arithmetic, not a measurement; its assumptions are
flags and are printed. 0.8 GB/s is the measured rate of reading a store's pages for the first time (64x64 images).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import timing
import torch

from ddm import device
from ddm.networks import empty_network


def rate(recipe: str, ranks: int, folder: Path, iterations: int, batch_real: int) -> float:
    """Condensation iterations per second with `ranks` processes of one thread."""
    with tempfile.TemporaryDirectory() as out:
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        line += [str(timing.ROOT / f"{recipe}.py"), "--dataset", str(folder / "random.npz"), "--data_path", str(folder)]
        line += ["--ipc", "10", "--batch_real", str(batch_real), "--Iteration", str(iterations), "--num_exp", "1"]
        line += ["--num_eval", "1", "--epoch_eval_train", "0", "--eval_every", "0", "--compile", "off"]
        line += ["--class_chunk", "5", "--save_path", f"{out}/run"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}  # torchrun does not limit the threads of a single process
        done = subprocess.run(line, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads((Path(out) / "run" / "results.json").read_text())["iterations_per_second"]


def measure(options: argparse.Namespace) -> None:
    counts = [int(n) for n in options.ranks.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timing.random_file(folder / "random.npz", 10, 5000, 100)
        rates: dict[int, list[float]] = {n: [] for n in counts}
        for _ in range(options.repeats):
            for n in counts:
                rates[n].append(rate(options.recipe, n, folder, options.iterations, options.batch_real))
    print(timing.settings())
    repeats = f"medians of {options.repeats} runs of {options.iterations} iterations"
    print(f"{options.recipe}, ipc 10, batch_real {options.batch_real}, {repeats}")
    one = statistics.median(rates[counts[0]])
    print("| ranks | classes per rank | seconds per iteration | times as fast |\n|---|---|---|---|")
    for n in counts:
        rate_n = statistics.median(rates[n])
        print(f"| {n} | {10 // n} to {-(-10 // n)} | {1 / rate_n:.3f} | {rate_n / one:.2f} |")


def model(o: argparse.Namespace) -> None:
    """Print the time and memory of a run, computed from the flags."""
    net = empty_network("ConvNet", 3, o.classes, (o.size, o.size), "meta")
    multiplications = []

    def note(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        multiplications.append(output[0].numel() * module.weight[0].numel())

    for layer in net.features:
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(note)
    net(torch.empty(1, 3, o.size, o.size, device="meta"))
    flop = 2 * sum(multiplications)
    classes = -(-o.classes // o.gpus)
    images = classes * (o.batch_real + 3 * o.ipc)  # a gradient costs two more forwards
    compute = images * flop / (o.tflops * 1e12)
    read = classes * o.batch_real * 3 * o.size**2
    sampling = read / (o.gather_gbs * 1e9)
    one_set = classes * o.ipc * 3 * o.size**2 * 4
    chunk = device.class_bytes(net, (3, o.size, o.size), o.batch_real, o.ipc)
    seconds = compute + sampling
    reach = f"{o.tflops:g} TFLOP/s in these convolutions and {o.gather_gbs:g} GB/s of images read and copied"
    print(f"assumed: {o.gpus} GPUs, each with {reach}; batch_real {o.batch_real}; nothing overlaps")
    print(f"ConvNet at {o.size}x{o.size}           {flop / 1e9:.3f} GFLOP per image")
    print(f"classes per rank          {classes}")
    print(f"convolutions              {compute:.3f} s per iteration and rank ({images} image passes)")
    print(f"reading real images       {sampling:.3f} s ({read / 1e6:.0f} MB)")
    print(f"iterations per hour       {3600 / seconds:.0f}")
    print(f"images of a rank          {5 * one_set / 2**30:.2f} GiB: images, momentum, gradient and two copies")
    print(f"a pass of {o.class_chunk} class(es)      {o.class_chunk * chunk / 2**30:.2f} GiB")
    print("bytes per iteration       28 from each rank: whether to stop, save or check, whether all is finite")
    print(f"bytes per checkpoint      {2 * o.gpus * one_set / 1e6:.0f} MB to each rank: images and momentum of all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", default="1,2")
    add("--repeats", type=int, default=3)
    add("--recipe", default="DM_KNearest")
    add("--iterations", type=int, default=10)
    add("--batch_real", type=int, default=None, help="default: 64, with --model 256")
    add("--model", action="store_true", help="print the model, without a measurement")
    add("--gpus", type=int, default=8)
    add("--classes", type=int, default=1000)
    add("--size", type=int, default=64)
    add("--ipc", type=int, default=10)
    add("--class_chunk", type=int, default=5)
    add("--tflops", type=float, default=100)
    add("--gather_gbs", type=float, default=0.8)
    options = parser.parse_args()
    options.batch_real = options.batch_real or (256 if options.model else 64)
    model(options) if options.model else measure(options)


if __name__ == "__main__":
    main()
