"""What a run writes into its save_path: training.log, image grids, the condensed set, results.json."""

import contextlib
import datetime
import io
import json
import os
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddm.runs import checkpoint
from ddm.data.data import short_name
from ddm.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, which has no lock of this kind
    fcntl = None

VERSION = "0.1.0"
SMALLEST_TILE = 32  # pixels; smaller images are enlarged in the grids, so that a person sees them


def get_time() -> str:
    """'[2026-01-31 12:00:00]', local time."""
    return time.strftime("[%Y-%m-%d %H:%M:%S]", time.localtime())


def versions() -> dict[str, str]:
    """Of everything a result depends on; plain strings."""
    found = {"ddm": VERSION, "python": platform.python_version(), "torch": str(torch.__version__)}
    return found | {name: metadata.version(name) for name in ("torchvision", "numpy", "scipy")}


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


def tensorboard(folder: Path) -> Any:
    """A writer into a folder of the run, made at its first line; raises UserError without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return Lazy(lambda: SummaryWriter(str(folder / "tensorboard")))


class Lazy:
    """An object that is made when it is first used."""

    def __init__(self, make: Callable[[], Any]):
        self._make, self._made = make, None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = self._make()
        return getattr(self._made, name)

    def close(self) -> None:
        if self._made is not None:
            self._made.close()


def in_rows(images: Tensor, counts: list[int], smallest: int = SMALLEST_TILE) -> Tensor:
    """Images [N, C, H, W], classes one after the other, as tiles of a grid: [classes * max(counts), C, h, w].

    A class that has fewer is filled up with white; images below `smallest` pixels are enlarged.
    """
    rows = torch.ones(len(counts), max(counts), *images.shape[1:])
    for row, own in zip(rows, images.split(counts), strict=True):
        row[: len(own)] = own
    enlarge = max(1, smallest // images.shape[-1])
    return rows.flatten(0, 1).repeat_interleave(enlarge, dim=-1).repeat_interleave(enlarge, dim=-2)


class NoFiles:
    """What a rank has that does not write: a RunFiles that does nothing."""

    def __enter__(self) -> "NoFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


class RunFiles:
    """The files of one run, and the lock on their folder: `with RunFiles(args) as files`, then `files.open()`.

    Nothing is written before `open`. Raises UserError where another process has the folder, and, once it is open,
    where the disk refuses a write.
    """

    def __init__(self, args: Namespace):
        self.folder = Path(args.save_path)
        self.shown = repr(str(self.folder)[:80])  # in messages
        ipc = Path(args.ipc).stem if isinstance(args.ipc, str) else args.ipc
        zca = "_ZCA" if getattr(args, "zca", False) else ""
        self.stem = f"{getattr(args, 'method', 'DM')}_{short_name(args.dataset)}{zca}_{args.model}_{ipc}ipc"
        self.set_path, self.results_path = self.folder / f"res_{self.stem}.pt", self.folder / "results.json"
        self._log: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self.board = tensorboard(self.folder) if getattr(args, "tensorboard", False) else None
        self._lock: int | None = None
        self._writer = checkpoint.Writer(self.folder / checkpoint.NAME)

    def __enter__(self) -> "RunFiles":
        with self._refused():
            exists = self.folder.exists()
        if exists:
            self._take()
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()
        if self._log is not None:
            with contextlib.suppress(OSError):  # what could not be written has been said
                self._log.close()
        for file in (self._metrics, self.board):
            if file is not None:
                file.close()
        if self._lock is not None:
            os.close(self._lock)  # and with it the lock

    def earlier(self, name: str, key: object) -> dict | None:
        """The results.json of a stopped run of the same command, whose record[name] is `key`; None if there is none.

        Raises UserError where it is another command's.
        """
        try:
            record = json.loads(self.results_path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            what = f"{self.results_path} can't be read ({type(error).__name__})"
            raise UserError(f"{what}: name another --save_path") from None
        if record.get(name) != key:
            raise UserError(f"{self.results_path} is of other arguments: repeat them, or name another --save_path")
        return record

    def open_beside_no_run(self, again: bool) -> None:
        """`open` for a command that keeps no checkpoint; `again`: it goes on, and so does its log.

        Raises UserError where the folder has a run's checkpoint, whose log would be lost.
        """
        with self._refused():
            if (self.folder / checkpoint.NAME).exists():
                raise UserError(f"--save_path {self.shown} has the run of a recipe or of coreset.py: name another")
            log = self.folder / "training.log"
            size = log.stat().st_size if again and log.exists() else None
        self.open(size)

    def open(self, log_bytes: int | None = None, at: tuple[int, int] = (0, 0)) -> None:
        """Make the folder and open training.log, cut to its first `log_bytes`: what follows is done, and logged, again.

        Lines that say an error stay. metrics.jsonl keeps what is not after `at`, an experiment and iteration.
        """
        with self._refused():
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._take()
                if (self.folder / checkpoint.NAME).exists():
                    raise UserError(f"another process has used {self.shown} meanwhile: run the command again")
            log = self.folder / "training.log"
            if log.exists():
                content = log.read_bytes()
                kept, again = content[: log_bytes or 0], content[log_bytes or 0 :].splitlines(keepends=True)
                errors = [line for line in again if b"] error: " in line and line.endswith(b"\n")]
                if len(kept) + sum(map(len, errors)) < len(content):
                    self._replace(log, lambda file: file.writelines([kept, *errors]))
            self._open_metrics(at)
            # Open for the whole run, and closed with the process.
            self._log = open(log, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def _open_metrics(self, at: tuple[int, int]) -> None:
        path, kept = self.folder / "metrics.jsonl", []
        if path.exists():
            for line in path.read_text().splitlines(keepends=True):
                with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line, of a process that was killed
                    record = json.loads(line)
                    if (record["experiment"], record["iteration"]) <= at:
                        kept.append(line)
            self._replace(path, lambda file: file.write("".join(kept).encode()))
        self._metrics = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - as the log

    def _take(self) -> None:
        if fcntl is None:
            return
        try:
            self._lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing to --save_path {self.shown}: name another") from None
        except OSError as error:
            raise UserError(f"can't use --save_path {self.shown}: {error.strerror}") from None

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"can't write to --save_path {self.shown}: {error.strerror or error}; once it can be written, "
                "the same command goes on from the last checkpoint, if there is one"
            ) from None

    def log(self, line: str) -> None:
        """To training.log alone."""
        with self._refused():
            self._log.write(f"{get_time()} {line}\n")

    def say(self, line: str) -> None:
        """To training.log and, past the progress bar, to the terminal."""
        self.log(line)
        with contextlib.suppress(OSError):  # a terminal that went away; the log has the line
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def metrics(self, kind: str, experiment: int, iteration: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl and, with --tensorboard, scalars."""
        record = {"kind": kind, "experiment": experiment, "iteration": iteration, "time": round(time.time(), 1)}
        with self._refused():
            self._metrics.write(json.dumps(record | values) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}/exp{experiment}", value, iteration)

    def hyper_parameters(self, args: dict, found: dict) -> None:
        """For TensorBoard's table of runs."""
        if self.board is not None:
            values = {key: value if value is not None else "unset" for key, value in args.items()}
            self.board.add_hparams(values, {"accuracy/mean": found["mean"], "accuracy/std": found["std"]}, run_name=".")

    def save_checkpoint(self, state: dict) -> None:
        """In the background; a state's tensors must not change any more."""
        with self._refused():
            os.fsync(self._log.fileno())
            self._writer.submit(state | {"log_bytes": os.fstat(self._log.fileno()).st_size})

    def wait(self) -> None:
        """Until the last checkpoint is on the disk."""
        with self._refused():
            self._writer.wait()

    def save_grid(self, images: Tensor, counts: list[int], experiment: int, iteration: int) -> Path:
        """Images [N, C, H, W] in [0, 1] as one PNG, a row a class; `counts` says how many each class has."""
        from torchvision.utils import (
            make_grid,
            save_image,
        )  # imported here: it takes two seconds, and errors come earlier

        path = self.folder / f"vis_{self.stem}_exp{experiment}_iter{iteration}.png"
        ipc, images = max(counts), in_rows(images.cpu(), counts)
        self._replace(path, lambda file: save_image(images, file, nrow=ipc, format="png"))
        if self.board is not None:
            self.board.add_image(f"images/exp{experiment}", make_grid(images, nrow=ipc), iteration)
        return path

    def save_set(
        self, sets: list[list[Tensor]], accs_all_exps: dict[str, list[float]], about: dict, name: str = "res_{}"
    ) -> Path:
        """The published file, {'data': [[images, labels], ...], 'accs_all_exps'}, and what describes it."""
        path = self.folder / f"{name.format(self.stem)}.pt"
        content = {"data": sets, "accs_all_exps": accs_all_exps, **about}
        self._replace(path, lambda file: torch.save(content, file))
        return path

    def save_tensors(self, path: Path, content: object) -> None:
        """Anything that torch's safe loader reads, into a folder of the run."""
        with self._refused():
            path.parent.mkdir(exist_ok=True)
        self._replace(path, lambda file: torch.save(content, file))

    def save_results(self, record: dict) -> None:
        """Write a record, with the day it was written on."""
        record = {**record, "date": datetime.date.today().isoformat()}
        self._replace(self.results_path, lambda file: file.write((json.dumps(record, indent=2) + "\n").encode()))

    def damaged(self, sets: list[Tensor]) -> Path | None:
        """The first of a finished run's files that is gone or not what was written; None where both are good."""
        try:
            saved = [images for images, _ in torch.load(self.set_path, map_location="cpu", weights_only=True)["data"]]
            if not all(torch.equal(a, b) for a, b in zip(saved, sets, strict=True)):
                return self.set_path
        except Exception:  # garbage raises whatever its damage hits
            return self.set_path
        try:
            json.loads(self.results_path.read_text())
        except (OSError, ValueError):
            return self.results_path
        return None

    def _replace(self, path: Path, write: Callable[[IO[bytes]], object]) -> None:
        """Write beside `path`, then rename: a reader never sees half a file."""
        buffer = io.BytesIO()  # torch.save to a full disk raises whatever; a plain write says what it is
        write(buffer)
        tmp = path.with_name(path.name + ".tmp")
        with self._refused():
            try:
                tmp.write_bytes(buffer.getbuffer())
                os.replace(tmp, path)
            finally:
                tmp.unlink(missing_ok=True)
