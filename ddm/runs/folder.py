"""The files of a run in save_path: training.log, metrics.jsonl, image grids, the set, results.json, the checkpoint."""

import contextlib
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor
from tqdm import tqdm

from ddm import disk, drawing
from ddm.errors import UserError
from ddm.runs import progress
from ddm.runs.boards import BOARDS


def get_time() -> str:
    """'[2026-01-31 12:00:00]', local time."""
    return time.strftime("[%Y-%m-%d %H:%M:%S]", time.localtime())


def set_stem(method: str, dataset: str, model: str, ipc: int | str, zca: bool = False) -> str:
    """The published part of file names, such as DM_CIFAR10_ConvNet_10ipc; a .json file for ipc gives its stem."""
    ipc = Path(ipc).stem if isinstance(ipc, str) else ipc
    return f"{method}_{dataset}{'_ZCA' if zca else ''}_{model}_{ipc}ipc"


def set_size(ipc: int | str) -> str:
    """The size of a set in words, such as '10 images per class'."""
    if isinstance(ipc, str):
        return f"images as in {Path(ipc).name}"
    return f"{ipc} image{'s' * (ipc != 1)} per class"


class NoFolder:
    """The folder of a rank that writes no files: every method does nothing."""

    def __enter__(self) -> "NoFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def open(self, log_bytes: int = 0, metrics_bytes: int | None = 0) -> None: ...
    def damaged(self, sets: list[Tensor]) -> Path | None: ...
    def log(self, line: str) -> None: ...
    def say(self, line: str) -> None: ...
    def warn(self, line: str) -> None: ...
    def metrics(self, kind: str, experiment: int, iteration: int, values: dict[str, float]) -> None: ...
    def hyper_parameters(self, args: dict, summary: dict) -> None: ...
    def save_checkpoint(self, state: "progress.Progress") -> None: ...
    def wait(self) -> None: ...
    def save_grid(self, images: Tensor, counts: tuple[int, ...], experiment: int, iteration: int) -> None: ...
    def save_set(self, sets: list, metadata: dict, accs: dict, name: str = "res_{}") -> None: ...
    def save_results(self, record: dict) -> None: ...


class RunFolder:
    """The files of one run and the lock on their folder: `with RunFolder(...) as files`, then `files.open()`.

    Nothing is written before `open`. Raises UserError if another process uses the folder, or if a write fails.
    """

    def __init__(self, save_path: str, stem: str, boards: Iterable[str] = ()):
        self.folder, self.stem = Path(save_path), stem
        self.shown = repr(str(self.folder)[:80])  # for messages
        self.set_path, self.results_path = self.folder / f"res_{stem}.pt", self.folder / "results.json"
        self._log: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self.boards = [BOARDS[name](self.folder) for name in boards]
        self._lock: disk.Lock | None = None
        self._writer = progress.Writer(self.folder / progress.NAME)

    def __enter__(self) -> "RunFolder":
        with self.refused():
            exists = self.folder.exists()
        if exists:
            self._take()
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()
        for file in (self._log, self._metrics, *self.boards, self._lock):
            if file is not None:
                with contextlib.suppress(OSError):  # failed writes were reported already
                    file.close()

    def open(self, log_bytes: int = 0, metrics_bytes: int | None = 0) -> None:
        """Make the folder and open training.log and metrics.jsonl, cut to sizes, as later lines will be logged again.

        Error lines stay. With metrics_bytes None there is no metrics.jsonl.
        """
        with self.refused():
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._take()
                if (self.folder / progress.NAME).exists() or self.results_path.exists():
                    raise UserError(f"another process has used {self.shown} in the meantime: run the command again")
            log = self.folder / "training.log"
            if log.exists():
                content = log.read_bytes()
                kept, again = content[:log_bytes], content[log_bytes:].splitlines(keepends=True)
                errors = [line for line in again if b"] error: " in line and line.endswith(b"\n")]
                if len(kept) + sum(map(len, errors)) < len(content):
                    self.replace(log, b"".join([kept, *errors]))
            if metrics_bytes is not None:
                metrics = self.folder / "metrics.jsonl"
                if metrics.exists():
                    os.truncate(metrics, min(metrics_bytes, metrics.stat().st_size))
                self._metrics = open(metrics, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - as the log
            # Stays open during the run.
            self._log = open(log, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def _take(self) -> None:
        try:
            self._lock = disk.Lock(self.folder)
        except BlockingIOError:
            raise UserError(f"another process is writing to --save_path {self.shown}: name another") from None
        except OSError as error:
            raise UserError(f"can't use --save_path {self.shown}: {error.strerror}: name another") from None

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        """Inside, an OSError becomes a UserError that names --save_path."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"can't write to --save_path {self.shown}: {error.strerror or error}; when it is writable, run the "
                "same command again to resume from the last checkpoint, if any"
            ) from None

    def replace(self, path: Path, content: Callable[[IO[bytes]], object] | bytes | str) -> None:
        """Write a file of the run with `disk.replace`."""
        with self.refused():
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.replace(path, content)

    def log(self, line: str) -> None:
        """Write a line to training.log."""
        with self.refused():
            self._log.write(f"{get_time()} {line}\n")

    def say(self, line: str) -> None:
        """Write a line to training.log and to the terminal, above the progress bar."""
        self.log(line)
        with contextlib.suppress(OSError):  # the terminal may be closed; the log has the line
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def warn(self, line: str) -> None:
        """Write 'warning: ...' to training.log and to stderr, above the progress bar."""
        self.log(f"warning: {line}")
        with contextlib.suppress(OSError):
            tqdm.write(f"warning: {line}", file=sys.stderr)

    def metrics(self, kind: str, experiment: int, iteration: int, values: dict[str, float]) -> None:
        """Write a line to metrics.jsonl, and scalars for the dashboards."""
        record = {"kind": kind, "experiment": experiment, "iteration": iteration, "time": round(time.time(), 1)}
        with self.refused():
            self._metrics.write(json.dumps(record | values) + "\n")
        for board in self.boards:
            named = {f"{kind}/{name}/exp{experiment}": value for name, value in values.items()}
            board.scalars(named, iteration)

    def hyper_parameters(self, args: dict, summary: dict) -> None:
        """Write settings and accuracy for the dashboards' tables of runs."""
        for board in self.boards:
            board.hyper_parameters(args, {"accuracy/mean": summary["mean"], "accuracy/std": summary["std"]})

    def save_checkpoint(self, state: "progress.Progress") -> None:
        """Write a state in the background; its tensors must not change afterwards."""
        with self.refused():
            os.fsync(self._log.fileno())
            state.log_bytes, state.metrics_bytes = (
                os.fstat(file.fileno()).st_size for file in (self._log, self._metrics)
            )
            self._writer.submit(state)

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        with self.refused():
            self._writer.wait()

    def save_grid(self, images: Tensor, counts: tuple[int, ...], experiment: int, iteration: int) -> None:
        """Write images [N, C, H, W] in [0, 1] as one PNG with one row per class; `counts` are the images per class."""
        path = self.grid_path(experiment, iteration)
        columns, tiles = max(counts), drawing.in_rows(images.cpu(), list(counts))
        self.replace(path, drawing.png(tiles, columns))
        for board in self.boards:
            from torchvision.utils import make_grid  # imported here: it takes two seconds

            board.image(f"images/exp{experiment}", make_grid(tiles, nrow=columns), iteration)

    def grid_path(self, experiment: int, iteration: int) -> Path:
        return self.folder / f"vis_{self.stem}_exp{experiment}_iter{iteration}.png"

    def save_set(
        self, sets: list[list[Tensor]], metadata: dict, accs_all_exps: dict[str, list[float]], name: str = "res_{}"
    ) -> Path:
        """Write the published file {'data': [[images, labels], ...], 'accs_all_exps'} and metadata; return its path."""
        path = self.folder / f"{name.format(self.stem)}.pt"
        content = {"data": sets, "accs_all_exps": accs_all_exps, **metadata}
        self.replace(path, lambda file: torch.save(content, file))
        return path

    def save_results(self, record: dict) -> None:
        """Write results.json with today's date."""
        record = {**record, "date": datetime.date.today().isoformat()}
        self.replace(self.results_path, json.dumps(record, indent=2) + "\n")

    def damaged(self, sets: list[Tensor]) -> Path | None:
        """The path of the set's file or results.json if it is missing or damaged; None if both are valid.

        `sets` are the stored images of all experiments.
        """
        try:
            content = torch.load(self.set_path, map_location="cpu", weights_only=True)
            saved = content.get("stored") or [images for images, _ in content["data"]]
            if not all(torch.equal(a, b) for a, b in zip(saved, sets, strict=True)):
                return self.set_path
        except Exception:  # damaged files raise many kinds of errors
            return self.set_path
        try:
            json.loads(self.results_path.read_text())
        except (OSError, ValueError):
            return self.results_path
        return None
