"""All that only a GPU can measure: one command, planned for ten minutes, one table to commit.

    python benchmarks/gpu.py [--out docs/results/gpu.md] [--data_path data] [--parts tests,graphs,...]

Parts:
    tests       tests/test_cuda.py; needs requirements-test.txt
    graphs      a step eager, as a CUDA graph, and compiled; the difference of the images
    kernels     the kernels that take most of a step
    draws       the host's draws for an iteration
    passes      a step by the real images in a pass
    plain       a step beside the plain loop of the published scripts
    evaluation  an evaluation beside the plain loop
    stacked     evaluation networks that train together and one by one: losses, times
    accuracy    real CIFAR10 (from --data_path, downloaded if absent), 1,000 iterations of `best`: the accuracy every
                250, and the first one of at least 48.9 % and 54.2 %

Each line is written when it is measured. Without a GPU the script says so.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import draws
import evaluation
import step
import timing
import torch
from torch.profiler import ProfilerActivity, profile

from ddm import device
from ddm.data.images import ImageData
from ddm.evaluation.protocol import Evaluator, Trained, TrainingSet
from ddm.evaluation.settings import ProtocolSettings
from ddm.methods import matching
from ddm.methods.condensation import Condensation

STEPS = 30  # timed after as many unmeasured ones as a capture needs


def seconds_per_step(run: Callable[[int], object], warm_up: int = 6, steps: int = STEPS, first: int = 1) -> float:
    for iteration in range(first, first + warm_up):
        run(iteration)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for iteration in range(first + warm_up, first + warm_up + steps):
        run(iteration)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def milliseconds_of(maker: Condensation, first: int = 1) -> float:
    """The times of one step. Raises RuntimeError if steps should be replayed, and their capture has failed."""
    milliseconds = 1000 * seconds_per_step(maker.step, first=first)
    maker.ahead.close()
    if maker.plan.settings.graphs == "auto" and not maker.replayed:
        raise RuntimeError("the capture of a CUDA graph failed, see the warning above")
    return milliseconds


def tests() -> Iterator[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "cuda", "tests/test_cuda.py"]
    done = subprocess.run(command, cwd=timing.ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:], file=sys.stderr)
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    yield f"`pytest -m cuda`: {lines[-1]}"


def graphs() -> Iterator[str]:
    yield (
        "| step | precision | eager ms | graph ms | compiled graph ms | eager / compiled "
        "| its first step, s (compiles, unless in torch's cache) "
        "| largest difference of a pixel, graph and eager, after 37 steps |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    data = step.random_data(10, 32, 500)
    for case in ("MMD", "CM", "best"):
        for precision in ("fp32", "bf16"):
            milliseconds, images = [], []
            for choice, compile in (("off", "off"), ("auto", "off"), ("auto", "on")):
                options = {"ipc": 10, "precision": precision, "compile": compile, "graphs": choice, "lr_img": 0.01}
                maker = step.started(case, data, device="cuda", **options)
                began = time.perf_counter()
                maker.step(1)
                maker.check()
                first = time.perf_counter() - began
                milliseconds.append(milliseconds_of(maker, first=2))
                images.append(maker.images())
            eager, graph, compiled = milliseconds
            error = (images[0] - images[1]).abs().max().item()
            times = f"{eager:.2f} | {graph:.2f} | {compiled:.2f} | {eager / compiled:.2f} | {first:.1f}"
            yield f"| {case} | {precision} | {times} | {error:.2g} |"


def kernels() -> Iterator[str]:
    yield "| compile | kernel | ms per step (CM, bf16) |"
    yield "|---|---|---|"
    data, steps = step.random_data(10, 32, 500), 3
    for compile in ("off", "on"):
        maker = step.started("CM", data, device="cuda", ipc=10, precision="bf16", compile=compile)
        milliseconds_of(maker)
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for iteration in range(100, 100 + steps):
                maker.step(iteration)
            torch.cuda.synchronize()
        maker.ahead.close()
        events = sorted(recorded.key_averages(), key=lambda event: -event.self_device_time_total)
        for event in events[:15]:
            yield f"| {compile} | `{event.key[:80]}` | {event.self_device_time_total / 1000 / steps:.2f} |"


def passes() -> Iterator[str]:
    yield "| real images per pass | ms per step (best, bf16, 10 classes of 256) |"
    yield "|---|---|"
    data = step.random_data(10, 32, 500)
    for images in (128, 256, 512, 1024, 2560):
        with mock.patch.object(matching, "pass_pixels", lambda device, images=images: images * 32 * 32):
            maker = step.started("best", data, device="cuda", precision="bf16", compile="off", class_chunk=10)
            yield f"| {images} | {milliseconds_of(maker):.2f} |"


def plain() -> Iterator[str]:
    yield "| classes | step | plain loop ms (TF32) | ours ms (bf16, compiled, graph) | plain / ours |"
    yield "|---|---|---|---|---|"
    for classes in (10, 100):
        data = step.random_data(classes, 32, 300)
        there = data.to("cuda")
        for case in ("MMD", "CM"):
            maker = step.started(case, data, device="cuda", ipc=10, compile="on", precision="bf16")
            ours = milliseconds_of(maker)
            images = maker.images().clone().requires_grad_()
            optimizer, settings = torch.optim.SGD([images], lr=1.0, momentum=0.5), maker.plan.settings
            published = 1000 * seconds_per_step(
                lambda it, case=case, images=images, optimizer=optimizer, data=there, settings=settings: (
                    step.plain_step(case, images, optimizer, data, it, settings)
                ),
                warm_up=2,
                steps=5,
            )
            yield f"| {classes} | {case} | {published:.1f} | {ours:.2f} | {published / ours:.1f} |"


def evaluator(data: ImageData, together: bool, networks: int, epochs: int) -> Evaluator:
    settings = ProtocolSettings(num_eval=networks, epoch_eval_train=epochs - 1)
    return Evaluator(data, settings, device.Machine("cuda", "bf16"), together=together)


def trained(data: ImageData, together: bool, networks: int, epochs: int) -> tuple[list[Trained], float]:
    """Networks of the set of every 10th image, and the seconds of their training and test."""
    run = evaluator(data, together, networks, epochs)
    what = TrainingSet(data.batch(torch.arange(0, 1000, 10)), data.y_train[::10], 0, 0)
    torch.cuda.synchronize()
    began = time.perf_counter()
    found = run.trained("ConvNet", what, range(networks), lambda line: None)
    return found, time.perf_counter() - began


def stacked() -> Iterator[str]:
    data = step.random_data(10, 32, 100).to("cuda")
    together, alone = (trained(data, choice, 4, 11)[0] for choice in (True, False))
    losses = torch.tensor([[[loss for loss, _ in one.curve] for one in found] for found in (together, alone)])
    yield (
        f"4 networks after 11 epochs, together and alone: training losses differ by at most "
        f"{(losses[0] / losses[1] - 1).abs().max():.2g} of their value; accuracies on random labels "
        f"{[round(one.accuracy, 3) for one in together]} and {[round(one.accuracy, 3) for one in alone]}.\n"
    )
    yield "| ipc 10 | seconds of training per network of 1,001 epochs |"
    yield "|---|---|"
    for name, choice, networks in (("20 together", True, 20), ("one by one", False, 2)):
        # The difference of two trainings leaves out what happens once, such as the test.
        short, long = (trained(data, choice, networks, epochs)[1] for epochs in (51, 151))
        yield f"| {name} | {(long - short) / networks * 1001 / 100:.1f} |"


def plain_evaluation() -> Iterator[str]:
    table = io.StringIO()
    with contextlib.redirect_stdout(table), mock.patch.object(sys, "argv", ["evaluation.py", "--device", "cuda"]):
        evaluation.main()
    yield table.getvalue().strip()


def accuracy(data_path: str) -> Iterator[str]:
    """The curve of `best`; seconds of condensing."""
    reached = {48.9: None, 54.2: None}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ddm", "condense", "--preset", "fast,best", "--batch_real", "256"]
        command += ["--dataset", "CIFAR10", "--data_path", data_path, "--save_path", folder, "--num_exp", "1"]
        command += ["--num_eval", "5", "--eval_every", "250", "--Iteration", "1000"]
        done = subprocess.run(command, cwd=timing.ROOT, capture_output=True, text=True)
        if done.returncode:
            yield f"not run: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
            return
        record = json.loads((Path(folder) / "results.json").read_text())
    yield "| iterations of 256 | seconds of condensing | accuracy % | n |"
    yield "|---|---|---|---|"
    for entry in record["evaluations"]:
        if entry["images"] == "condensed":
            seconds, mean = entry["condensing_seconds"], 100 * entry["mean"]
            yield f"| {entry['iteration']} | {seconds:.0f} | {mean:.2f} ± {100 * entry['std']:.2f} | {entry['n']} |"
            for target in reached:
                if reached[target] is None and mean >= target:
                    reached[target] = seconds
    told = [f"{target} % " + (f"after {s:.0f} s" if s is not None else "not reached") for target, s in reached.items()]
    yield f"\n{'; '.join(told)}. Protocol: {record['protocol']}."


PARTS = {
    "tests": "Tests on the GPU",
    "graphs": "A step: eager, as a graph, compiled",
    "kernels": "Kernels of a step",
    "draws": "Draws of the host",
    "passes": "Real images per pass",
    "plain": "A step beside the plain loop",
    "evaluation": "An evaluation epoch and test beside the plain loop",
    "stacked": "Evaluation networks together and one by one",
    "accuracy": "Accuracy over seconds, real CIFAR10",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=None, help="file of the table; without it, it is only printed")
    parser.add_argument("--data_path", default="data")
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False; nothing was measured")
        return
    runs = {
        "tests": tests,
        "graphs": graphs,
        "kernels": kernels,
        "draws": partial(draws.table, "cuda"),
        "passes": passes,
        "plain": plain,
    }
    runs |= {"evaluation": plain_evaluation, "stacked": stacked, "accuracy": lambda: accuracy(options.data_path)}
    parts = options.parts.split(",")
    if unknown := [name for name in parts if name not in runs]:
        parser.error(f"unknown part {unknown[0]}: choose from {','.join(runs)}")
    began, text = time.perf_counter(), []

    def tell(line: str) -> None:
        """Print a line, and write all so far: a part that hangs, or a limit of time, must not lose the others."""
        text.append(line)
        print(line, flush=True)
        if options.out:
            Path(options.out).write_text("\n".join(text) + "\n")

    tell(f"# Measured on a GPU\n\n{timing.settings('cuda')}")
    for name in parts:
        tell(f"\n## {PARTS[name]}\n")
        try:
            for line in runs[name]():
                tell(line)
        except Exception as error:  # one part that fails must not lose the others
            tell(f"failed: {type(error).__name__}: {str(error)[:300]}")
    tell(f"\n{time.perf_counter() - began:.0f} s in all.")


if __name__ == "__main__":
    main()
