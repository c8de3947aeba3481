"""What a run writes into its save_path: training.log, image grids, the condensed set, results.json."""

import contextlib
import json
import os
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy
import scipy
import torch
import torchvision
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

from errors import UserError

VERSION = "0.1.0"
SMALLEST_TILE = 32  # pixels; smaller images are enlarged in the grids, so that a person sees them


def get_time() -> str:
    """'[2026-01-31 12:00:00]', local time."""
    return time.strftime("[%Y-%m-%d %H:%M:%S]", time.localtime())


def versions() -> dict[str, str]:
    """Of everything a result depends on; plain strings."""
    modules = {"torch": torch, "torchvision": torchvision, "numpy": numpy, "scipy": scipy}
    found = {"ddm": VERSION, "python": platform.python_version()}
    return found | {name: str(module.__version__) for name, module in modules.items()}


def hardware(device: str) -> dict[str, str | int]:
    """The device and the number of CPU threads a timing was taken with."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()
    return {"device": device, "name": name, "cpu_threads": torch.get_num_threads()}


def cpu_name() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def plain(args: Namespace) -> dict[str, str | int | float | bool | None]:
    """The arguments that JSON and torch's safe loader can hold."""
    return {k: v for k, v in vars(args).items() if v is None or isinstance(v, str | int | float | bool)}


class RunFiles:
    """The files of one run. Creating it creates the folder; raises UserError where that can't be done."""

    def __init__(self, args: Namespace):
        self.folder = Path(args.save_path)
        self.stem = f"DM_{args.dataset}_{args.model}_{args.ipc}ipc"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            log = self.folder / "training.log"
            # Open for the whole run, and closed with the process.
            self._log = open(log, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"can't write to --save_path {args.save_path!r}: {error.strerror}") from None

    def log(self, line: str) -> None:
        """To training.log alone."""
        self._log.write(f"{get_time()} {line}\n")

    def say(self, line: str) -> None:
        """To training.log and, past the progress bar, to the terminal."""
        self.log(line)
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def save_grid(self, images: Tensor, experiment: int, iteration: int) -> Path:
        """Images [classes, ipc, C, H, W] in [0, 1] as one PNG, a row a class."""
        path = self.folder / f"vis_{self.stem}_exp{experiment}_iter{iteration}.png"
        ipc, images = images.shape[1], images.flatten(0, 1).cpu()
        enlarge = max(1, SMALLEST_TILE // images.shape[-1])
        images = images.repeat_interleave(enlarge, dim=-1).repeat_interleave(enlarge, dim=-2)
        self._replace(path, lambda tmp: save_image(images, tmp, nrow=ipc, format="png"))
        return path

    def save_set(
        self, sets: list[list[Tensor]], accs_all_exps: dict[str, list[float]], about: dict, name: str = "res_{}"
    ) -> Path:
        """The published file, {'data': [[images, labels], ...], 'accs_all_exps'}, and what describes it."""
        path = self.folder / f"{name.format(self.stem)}.pt"
        content = {"data": sets, "accs_all_exps": accs_all_exps, **about}
        self._replace(path, lambda tmp: torch.save(content, tmp))
        return path

    def save_results(self, record: dict) -> Path:
        path = self.folder / "results.json"
        self._replace(path, lambda tmp: tmp.write_text(json.dumps(record, indent=2) + "\n"))
        return path

    @staticmethod
    def _replace(path: Path, write: Callable[[Path], object]) -> None:
        """Write beside `path`, then rename: a reader never sees half a file."""
        tmp = path.with_name(path.name + ".tmp")
        write(tmp)
        os.replace(tmp, path)
