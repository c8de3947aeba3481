"""Shared by the benchmarks: interleaved repeats in one process, and a line of settings."""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddm.device import Machine
from ddm.runs.results import hardware, versions

ROOT = Path(__file__).resolve().parents[1]


def settings(device: str = "cpu") -> str:
    """Versions, processor, threads and date in one line."""
    values = versions() | hardware(Machine(device))
    return ", ".join(f"{name} {value}" for name, value in values.items()) + f", {time.strftime('%Y-%m-%d')}"


def medians(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate; the candidates take turns, after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def random_file(path: Path, classes: int, train: int, test: int) -> None:
    """Write an .npz data set of random 32x32 images."""
    generator, arrays = np.random.default_rng(0), {}
    for split, n in (("train", train), ("test", test)):
        arrays[f"x_{split}"] = generator.integers(0, 256, (n, 32, 32, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % classes
    np.savez(path, **arrays)
