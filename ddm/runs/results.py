"""What results.json and a set's file record about a run; both are written from the same objects."""

import contextlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ddm import __version__
from ddm.device import Machine
from ddm.settings import Role, Settings

Plain = str | int | float | bool | None


def plain(values: Mapping[str, Any]) -> dict[str, Plain]:
    """The values that JSON and torch's safe loader can hold."""
    return {k: v for k, v in values.items() if v is None or isinstance(v, str | int | float)}


def requested(settings: Settings) -> dict[str, Plain]:
    """The settings that --like repeats, as they were given."""
    return plain(settings.values(Role.RESULT, Role.GROWS, Role.MANNER))


def versions() -> dict[str, str]:
    """The versions of everything that a result depends on."""
    found = {"ddm": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    return found | {name: metadata.version(name) for name in ("torchvision", "numpy", "scipy")}


def hardware(machine: Machine) -> dict[str, str | int]:
    """The device and the number of CPU threads that a timing was taken with."""
    cuda = machine.device.startswith("cuda")
    name = torch.cuda.get_device_name(machine.device) if cuda else cpu_name()
    return {"device": machine.device, "name": name, "cpu_threads": torch.get_num_threads()}


def cpu_name() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def accuracies(evaluations: list[dict], kind: str, iteration: int) -> dict[str, list[float]]:
    """All experiments' accuracies at an iteration, by network."""
    accs: dict[str, list[float]] = {}
    for entry in evaluations:
        if (entry["images"], entry["iteration"]) == (kind, iteration):
            accs.setdefault(entry["model"], []).extend(entry.get("accuracies", []))
    return accs
