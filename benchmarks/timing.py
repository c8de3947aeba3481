"""What the benchmarks share: interleaved repeats in one process, and the settings beside the figures."""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddm.runs.files import hardware, versions


def settings(device: str = "cpu") -> str:
    """Versions, processor and threads in one line."""
    found = versions() | hardware(device)
    return ", ".join(f"{name} {value}" for name, value in found.items()) + f", {time.strftime('%Y-%m-%d')}"


def medians(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate; after one unmeasured round, rounds take them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}
