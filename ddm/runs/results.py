"""The metadata that both results.json and a set's file record about a run."""

import contextlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddm import __version__, torchrun
from ddm.data.images import ImageData
from ddm.data.partition import decoded
from ddm.device import Machine
from ddm.settings import Role, Settings

TIMES = {"seconds", "iterations_per_second", "peak_memory_bytes", "condensing_seconds", "preparation_seconds", "date"}
TIMES |= {"command", "save_path"}  # differ between equal runs: for tests and benchmarks

Plain = str | int | float | bool | None


def plain(values: Mapping[str, Any]) -> dict[str, Plain]:
    """The values that JSON and torch's safe loader support."""
    return {k: v for k, v in values.items() if v is None or isinstance(v, str | int | float)}


def requested_values(settings: Settings) -> dict[str, Plain]:
    """The requested values of the settings that --like repeats."""
    return plain(settings.values(Role.RESULT, Role.GROWS, Role.MANNER))


def set_metadata(arguments: dict[str, Plain], requested: Settings, data: ImageData) -> dict[str, Any]:
    """The entries of a set's file besides images and accuracies: arguments, normalisation, classes, versions."""
    entries = {"args": arguments, "asked": requested_values(requested), "mean": data.mean, "std": data.std}
    entries |= {"class_names": data.class_names, "seed": arguments["seed"], "versions": versions()}
    return entries | ({"zca": data.normalisation.zca} if data.normalisation.whitened else {})


def set_content(
    stored: list[Tensor], labels: Tensor, factor: int, metadata: dict[str, Any]
) -> tuple[list[list[Tensor]], dict[str, Any]]:
    """The sets of a file, [[images, labels], ..], and its other entries, from stored images [N, C, H, W].

    A partitioned set is decoded, so that any reader can use it; the entries have its stored images too.
    """
    entries = metadata | {"factor": factor, "stored": stored} if factor > 1 else metadata
    return [[decoded(images, factor), labels] for images in stored], entries


def command_line() -> list[str]:
    """The words of this command, to be repeated in a shell: python -m ddm condense ..."""
    program, *words = sys.argv
    spec, ranks = getattr(sys.modules["__main__"], "__spec__", None), torchrun.rank_and_world()[1]
    start = ["torchrun", "--nproc_per_node", str(torchrun.ranks_on_this_host())] if ranks > 1 else ["python"]
    if spec is not None:  # python -m
        return [*start, "-m", spec.name.removesuffix(".__main__"), *words]
    return [*start, program, *words] if program.endswith(".py") else [Path(program).name, *words]


def versions() -> dict[str, str]:
    """The versions of all software that a result depends on."""
    own = {"ddm": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    return own | {name: metadata.version(name) for name in ("torchvision", "numpy", "scipy", "kornia", "scikit-learn")}


def hardware(machine: Machine) -> dict[str, str | int]:
    """The device, the number of CPU threads of a run, and the computer."""
    cuda = machine.device.startswith("cuda")
    name = torch.cuda.get_device_name(machine.device) if cuda else cpu_name()
    device = {"device": machine.device, "name": name, "cpu_threads": torch.get_num_threads()}
    return device | {"cpu_cores": os.cpu_count() or 0, "system": f"{platform.system()} {platform.release()}"}


def cpu_name() -> str:
    """The name of the processor on Linux, else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def accuracies(evaluations: list[dict], kind: str, iteration: int) -> dict[str, list[float]]:
    """The accuracies of all experiments at an iteration, by network."""
    accs: dict[str, list[float]] = {}
    for entry in evaluations:
        if (entry["images"], entry["iteration"]) == (kind, iteration):
            accs.setdefault(entry["model"], []).extend(entry.get("accuracies", []))
    return accs
