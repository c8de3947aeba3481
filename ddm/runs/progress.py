"""The state of a run, its schema, and its checkpoint, which is written atomically.

A checkpoint is a torch file of {"sha256", "state"}: the digest, and the state as the bytes of another torch file. It is
read back before it replaces the previous one. torch's safe loader can load both files.
"""

import dataclasses
import hashlib
import io
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_type_hints

import numpy as np
import torch
from torch import Tensor

from ddm import disk
from ddm.errors import UserError, first_line

FORMAT = 3  # increased when older code can't read new states, or new code can't read older ones
ENTRY = {"experiment", "iteration", "images", "model"}  # keys of an evaluation
NAME, PREVIOUS = "checkpoint.pt", "checkpoint_previous.pt"


@dataclass(kw_only=True)
class Progress:
    """All values that a run needs to resume. The names and types of the fields are the checkpoint's schema."""

    code: str  # digest of the objective's code
    recipe: str  # the name of the recipe or command
    requested: dict = field(default_factory=dict)  # the settings before values were chosen
    chosen: dict = field(default_factory=dict)  # the chosen values of settings left at their defaults
    versions: dict = field(default_factory=dict)
    earlier_precisions: list = field(default_factory=list)  # {"precision", "experiment", "iteration"}: until then
    data: str  # digest of all images and labels
    counts: list  # images of each class
    experiment: int  # the current experiment
    iteration: int = 0
    images: Tensor | None = None  # [N, C, H, W] of the current experiment
    velocity: Tensor | None = None  # their momentum
    networks: Tensor | None = None  # the networks that train with them; None if there are none
    sets: list = field(default_factory=list)  # the images of finished experiments
    evaluations: list = field(default_factory=list)  # as in results.json
    skipped: list = field(default_factory=list)  # [experiment, iteration] of skipped steps
    concluded: list | None = None  # [num_exp, num_eval] of a finished run
    seconds: float = 0.0
    step_seconds: float = 0.0  # without evaluations
    preparation_seconds: float = 0.0  # that part of them before the first step, such as the training of a pool
    steps: int = 0
    peak_memory: int = 0  # bytes, the largest of the processes so far
    log_bytes: int = 0  # size of training.log at this checkpoint; 0: no checkpoint yet
    metrics_bytes: int = 0  # size of metrics.jsonl at this checkpoint

    @property
    def stepping_seconds(self) -> float:
        """The seconds of the steps alone."""
        return self.step_seconds - self.preparation_seconds

    @property
    def written(self) -> bool:
        return self.log_bytes > 0

    def problem(self) -> str | None:
        """The reason why the state is inconsistent; None if it is consistent."""
        for name, kind in get_type_hints(Progress).items():
            if not isinstance(getattr(self, name), kind):
                return f"it has no valid {name}"
        fits = (
            {"first_exp", "num_exp", "num_eval"} <= self.requested.keys()
            and bool(self.chosen)  # values are chosen before the first checkpoint
            and self.chosen.keys() <= self.requested.keys()
            and all(isinstance(entry, dict) and entry.keys() >= ENTRY for entry in self.evaluations)
            and self.experiment == self.requested["first_exp"] + len(self.sets)
            and 0 <= self.iteration <= self.requested.get("Iteration", 0)
            and (self.iteration == 0 or (self.images is not None and self.velocity is not None))
        )
        if not fits:
            return "its parts do not fit each other"
        images = [x for x in (self.images, self.velocity, self.networks, *self.sets) if x is not None]
        if not all(isinstance(x, Tensor) and x.isfinite().all() for x in images):
            return "its images are not all finite numbers"
        return None


class Unusable(Exception):
    """The reason why a file can't be used as a checkpoint."""


def write(path: Path, state: Progress) -> None:
    """Replace the checkpoint at `path` after the new one was written and read back; keep the previous one beside it.

    If a write fails, raises OSError and leaves the old checkpoint unchanged.
    """
    content = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    payload = _as_bytes({"format": FORMAT, **content})
    state_bytes = torch.from_numpy(np.frombuffer(payload, np.uint8).copy())
    outer = _as_bytes({"sha256": hashlib.sha256(payload).hexdigest(), "state": state_bytes})
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as file:  # a plain write: torch.save raises unclear errors on a full disk
            file.write(outer)
            file.flush()
            os.fsync(file.fileno())
        read(tmp)
        if path.exists() and _is_good(path):  # a damaged checkpoint must not replace a good one
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(tmp, path)
        disk.sync_folder(path.parent)
    except Unusable as error:
        raise OSError(f"the new checkpoint can't be read back: {error}") from None
    finally:
        tmp.unlink(missing_ok=True)


def read(path: Path) -> Progress:
    """The state in a checkpoint. Raises Unusable."""
    try:
        content = torch.load(io.BytesIO(_payload(path)), map_location="cpu", weights_only=True)
    except Unusable:
        raise
    except Exception as error:  # damaged files raise many kinds of errors
        raise Unusable(_first_line(error)) from None
    number = content.pop("format", None) if isinstance(content, dict) else type(content).__name__
    if number != FORMAT:
        raise Unusable(f"its format is {number!r}, this version reads {FORMAT}")
    newer = {"peak_memory": 0, "metrics_bytes": sys.maxsize, "earlier_precisions": []}
    content = newer | content  # states of earlier versions lack them
    try:
        state = Progress(**{f.name: content[f.name] for f in dataclasses.fields(Progress)})
    except KeyError as error:
        raise Unusable(f"it has no {error.args[0]}") from None
    problem = state.problem()
    if problem:
        raise Unusable(problem)
    return state


def newest(folder: Path) -> tuple[Progress | None, list[str]]:
    """The newest valid state in a folder, and one line per invalid newer checkpoint.

    The state is None without checkpoints. Raises UserError if there are checkpoints, but none is valid.
    """
    problems = []
    for name in (NAME, PREVIOUS):
        path = folder / name
        if path.exists():
            try:
                return read(path), problems
            except Unusable as error:
                problems.append(f"{path} can't be used: {error}")
    if problems:
        raise UserError(f"{problems[0]}; to start over, name an empty --save_path")
    return None, []


def _is_good(path: Path) -> bool:
    try:
        return bool(_payload(path))
    except Unusable:
        return False


def _payload(path: Path) -> bytes:
    try:
        outer = torch.load(path, map_location="cpu", weights_only=True)
        payload, digest = outer["state"].numpy().tobytes(), outer["sha256"]
    except Exception as error:  # damaged files raise many kinds of errors
        raise Unusable(_first_line(error)) from None
    if hashlib.sha256(payload).hexdigest() != digest:
        raise Unusable("its content does not match its digest")
    return payload


def _as_bytes(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error, 80)


class Writer:
    """Writes checkpoints in the background, one at a time."""

    def __init__(self, path: Path):
        self.path = path
        self._pool, self._last = ThreadPoolExecutor(1), Future()
        self._last.set_result(None)

    def submit(self, state: Progress) -> None:
        """Write a state whose tensors no longer change. Raises the OSError of the previous write."""
        self.wait()
        self._last = self._pool.submit(write, self.path, state)

    def wait(self) -> None:
        """Wait until all checkpoints are on the disk. Raises the OSError of the last write."""
        self._last.result()

    def close(self) -> None:
        """Wait until all writes have ended, with or without success."""
        self._pool.shutdown()
