"""All that only a GPU can measure, in under ten minutes: one command, one table to commit.

    python benchmarks/gpu.py [--out docs/results/gpu.md] [--data_path data] [--parts tests,graphs,...]

Parts: `tests` runs `pytest -m cuda`; `graphs` times a step as a CUDA graph and eager, and compares their images;
`passes` times real images per pass; `plain` times a step and an evaluation beside the plain loop of the published
scripts, on the same GPU; `stacked` times 20 evaluation networks together and one by one; `accuracy` condenses real
CIFAR10 (from --data_path, which is downloaded if it is absent) until 48.9 % and 54.2 %. Without a GPU the script says
so.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import evaluation
import step
import timing
import torch

from ddm import device
from ddm.data.images import ImageData
from ddm.evaluation.protocol import Evaluator
from ddm.evaluation.settings import ProtocolSettings
from ddm.methods import matching

STEPS = 30  # timed after as many unmeasured ones as a capture needs


def seconds_per_step(run: Callable[[int], object], warm_up: int = 6, steps: int = STEPS) -> float:
    for iteration in range(1, warm_up + 1):
        run(iteration)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for iteration in range(warm_up + 1, warm_up + steps + 1):
        run(iteration)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def tests() -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "cuda", "tests"]
    done = subprocess.run(command, cwd=timing.ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:], file=sys.stderr)
    return f"`pytest -m cuda`: {done.stdout.strip().splitlines()[-1]}"


def graphs() -> str:
    lines = [
        "| step | precision | eager ms | graph ms | eager / graph | largest difference of a pixel after 36 steps |"
    ]
    lines.append("|---|---|---|---|---|---|")
    data = step.random_data(10, 32, 500)
    for case in ("MMD", "CM", "best"):
        for precision in ("fp32", "bf16"):
            milliseconds, images = [], []
            for choice in ("off", "auto"):
                options = {"ipc": 10, "precision": precision, "compile": "off", "graphs": choice, "lr_img": 0.01}
                maker = step.started(case, data, device="cuda", **options)
                milliseconds.append(1000 * seconds_per_step(maker.step))
                images.append(maker.images())
                maker.ahead.close()
            eager, graph = milliseconds
            error = (images[0] - images[1]).abs().max().item()
            lines.append(f"| {case} | {precision} | {eager:.2f} | {graph:.2f} | {eager / graph:.2f} | {error:.2g} |")
    return "\n".join(lines)


def passes() -> str:
    lines = ["| real images per pass | ms per step (best, bf16, 10 classes of 256) |", "|---|---|"]
    data = step.random_data(10, 32, 500)
    for images in (128, 256, 512, 1024, 2560):
        with mock.patch.object(matching, "pass_pixels", lambda device, images=images: images * 32 * 32):
            maker = step.started("best", data, device="cuda", precision="bf16", compile="off", class_chunk=10)
            lines.append(f"| {images} | {1000 * seconds_per_step(maker.step):.2f} |")
            maker.ahead.close()
    return "\n".join(lines)


def plain() -> str:
    lines = ["| classes | step | plain loop ms (fp32) | ours ms (bf16, compiled, graph) | plain / ours |"]
    lines.append("|---|---|---|---|---|")
    for classes in (10, 100):
        data = step.random_data(classes, 32, 300)
        there = data.to("cuda")
        for case in ("MMD", "CM"):
            maker = step.started(case, data, device="cuda", ipc=10, compile="on", precision="bf16")
            ours = 1000 * seconds_per_step(maker.step)
            maker.ahead.close()
            images = maker.images().clone().requires_grad_()
            optimizer, settings = torch.optim.SGD([images], lr=1.0, momentum=0.5), maker.plan.settings
            published = 1000 * seconds_per_step(
                lambda it, case=case, images=images, optimizer=optimizer, data=there, settings=settings: (
                    step.plain_step(case, images, optimizer, data, it, settings)
                ),
                warm_up=2,
                steps=5,
            )
            lines.append(f"| {classes} | {case} | {published:.1f} | {ours:.2f} | {published / ours:.1f} |")
    return "\n".join(lines)


def evaluator(data: ImageData, together: bool, networks: int, epochs: int) -> Evaluator:
    settings = ProtocolSettings(num_eval=networks, epoch_eval_train=epochs - 1)
    return Evaluator(data, settings, device.Machine("cuda", "bf16"), together=together)


def stacked() -> str:
    lines = ["| 20 networks, ipc 10 | seconds per network of 1,001 epochs | mean accuracy on random labels % |"]
    lines.append("|---|---|---|")
    data = step.random_data(10, 32, 100).to("cuda")
    images, labels, epochs = data.batch(torch.arange(0, 1000, 10)), data.y_train[::10], 51
    for name, together, networks in (("together", True, 20), ("one by one", False, 2)):
        run = evaluator(data, together, networks, epochs)
        run(images, labels, 0, 0, lambda line: None)  # allocates
        torch.cuda.synchronize()
        began = time.perf_counter()
        accuracies = run(images, labels, 0, 0, lambda line: None)["ConvNet"]
        seconds = (time.perf_counter() - began) / networks * 1001 / epochs
        lines.append(f"| {name} | {seconds:.1f} | {100 * sum(accuracies) / networks:.2f} |")
    return "\n".join(lines)


def plain_evaluation() -> str:
    table = io.StringIO()
    with contextlib.redirect_stdout(table), mock.patch.object(sys, "argv", ["evaluation.py", "--device", "cuda"]):
        evaluation.main()
    return table.getvalue().strip()


def accuracy(data_path: str) -> str:
    """The curve of `best`; seconds of condensing."""
    lines = ["| iterations of 256 | seconds of condensing | accuracy % | n |", "|---|---|---|---|"]
    reached = {48.9: None, 54.2: None}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ddm", "condense", "--preset", "fast,best", "--batch_real", "256"]
        command += ["--dataset", "CIFAR10", "--data_path", data_path, "--save_path", folder, "--num_exp", "1"]
        command += ["--num_eval", "5", "--eval_every", "250", "--Iteration", "1000"]
        done = subprocess.run(command, cwd=timing.ROOT, capture_output=True, text=True)
        if done.returncode:
            return f"not run: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        record = json.loads((Path(folder) / "results.json").read_text())
    for entry in record["evaluations"]:
        if entry["images"] == "condensed":
            seconds, mean = entry["condensing_seconds"], 100 * entry["mean"]
            lines.append(
                f"| {entry['iteration']} | {seconds:.0f} | {mean:.2f} ± {100 * entry['std']:.2f} | {entry['n']} |"
            )
            for target in reached:
                if reached[target] is None and mean >= target:
                    reached[target] = seconds
    told = [f"{target} % " + (f"after {s:.0f} s" if s is not None else "not reached") for target, s in reached.items()]
    return "\n".join([*lines, "", "; ".join(told) + f". Protocol: {record['protocol']}."])


PARTS = {
    "tests": "Tests on the GPU",
    "graphs": "A step: graph against eager",
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
    runs = {"tests": tests, "graphs": graphs, "passes": passes, "plain": plain, "evaluation": plain_evaluation}
    runs |= {"stacked": stacked, "accuracy": lambda: accuracy(options.data_path)}
    began, text = time.perf_counter(), [f"# Measured on a GPU\n\n{timing.settings('cuda')}"]
    for name in options.parts.split(","):
        try:
            result = runs[name]()
        except Exception as error:  # one part that fails must not lose the others
            result = f"failed: {type(error).__name__}: {str(error)[:300]}"
        text.append(f"## {PARTS[name]}\n\n{result}")
        print(text[-1] + "\n", flush=True)
    text.append(f"{time.perf_counter() - began:.0f} s in all.")
    if options.out:
        Path(options.out).write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
