"""The state of a run on disk: written whole or not at all, read back before it replaces the one before.

A checkpoint is a torch file of {"sha256", "state"}: the state, itself a torch file as bytes, and their digest. All of
it loads with torch's safe loader.
"""

import hashlib
import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ddm.errors import UserError

FORMAT = 2  # raised when an older program could not go on from the state, or this one from an older state
CONTENT = {
    "requested": dict,  # the arguments before anything was chosen, and what was chosen
    "chosen": dict,
    "versions": dict,
    "data": str,  # digest of all images and labels
    "experiment": int,  # where the run is
    "iteration": int,
    "images": torch.Tensor | None,  # of the experiment in progress, [N, C, H, W], and their momentum
    "velocity": torch.Tensor | None,
    "counts": list,  # images of each class
    "sets": list,  # the images of finished experiments
    "evaluations": list,  # as in results.json
    "skipped": list,
    "concluded": list | None,  # [num_exp, num_eval], once all is done
    "seconds": float,
    "step_seconds": float,
    "steps": int,
    "log_bytes": int,  # of training.log when this was written
}
ENTRY = {"experiment", "iteration", "images", "model"}  # keys of an evaluation
CHOSEN = ("class_chunk", "compile", "precision")  # arguments that may be left open
NAME, PREVIOUS = "checkpoint.pt", "checkpoint_previous.pt"


class Unusable(Exception):
    """Why a file is not a checkpoint to go on from."""


def write(path: Path, state: dict) -> None:
    """Replace the checkpoint at `path` by `state`, once it is on the disk and reads back; the old one is kept beside.

    Raises OSError where the disk refuses, and leaves the old one as it was.
    """
    payload = _as_bytes({"format": FORMAT, **state})
    state_bytes = torch.from_numpy(np.frombuffer(payload, np.uint8).copy())
    content = _as_bytes({"sha256": hashlib.sha256(payload).hexdigest(), "state": state_bytes})
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as file:  # a plain write: where the disk is full, torch.save raises whatever
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        read(tmp)
        if path.exists() and _is_good(path):  # a damaged one must not take the place of a good one
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(tmp, path)
        sync_folder(path.parent)
    except Unusable as error:
        raise OSError(f"what was written does not read back: {error}") from None
    finally:
        tmp.unlink(missing_ok=True)


def read(path: Path) -> dict:
    """The state in a checkpoint; raises Unusable."""
    try:
        state = torch.load(io.BytesIO(_payload(path)), map_location="cpu", weights_only=True)
    except Unusable:
        raise
    except Exception as error:  # garbage raises whatever its damage hits
        raise Unusable(_first_line(error)) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise Unusable(f"its format is {found!r}, this program reads {FORMAT}")
    missing = [name for name, kind in CONTENT.items() if name not in state or not isinstance(state[name], kind)]
    if missing:
        raise Unusable(f"it has no good {', '.join(missing[:3])}")
    requested, sets, at = state["requested"], state["sets"], (state["experiment"], state["iteration"])
    fits = (
        state["chosen"].keys() >= set(CHOSEN) & requested.keys()
        and {"first_exp", "Iteration"} <= requested.keys()
        and all(isinstance(entry, dict) and entry.keys() >= ENTRY for entry in state["evaluations"])
        and at[0] == requested["first_exp"] + len(sets)
        and 0 <= at[1] <= requested["Iteration"]
        and (at[1] == 0 or (state["images"] is not None and state["velocity"] is not None))
    )
    if not fits:
        raise Unusable("its parts do not fit each other")
    images = [x for x in (state["images"], state["velocity"], *state["sets"]) if x is not None]
    if not all(isinstance(x, torch.Tensor) and x.isfinite().all() for x in images):
        raise Unusable("its images are not all finite numbers")
    return state


def _is_good(path: Path) -> bool:
    try:
        return bool(_payload(path))
    except Unusable:
        return False


def newest(folder: Path) -> tuple[dict | None, list[str]]:
    """The last good state in a folder and what was wrong with newer ones, one line each.

    None where there has never been a checkpoint. Raises UserError where there are checkpoints, and none is good.
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


def _payload(path: Path) -> bytes:
    try:
        outer = torch.load(path, map_location="cpu", weights_only=True)
        payload, digest = outer["state"].numpy().tobytes(), outer["sha256"]
    except Exception as error:
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
    return ((str(error).strip().splitlines() or [""])[0] or type(error).__name__)[:80]


def sync_folder(folder: Path) -> None:
    """Put a rename on the disk, where the system lets a folder be opened (not on Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Writer:
    """Writes checkpoints in the background, one after the other."""

    def __init__(self, path: Path):
        self.path = path
        self._pool, self._last = ThreadPoolExecutor(1), Future()
        self._last.set_result(None)

    def submit(self, state: dict) -> None:
        """Write a state, of tensors that nobody changes any more; raises the OSError of the one before."""
        self.wait()
        self._last = self._pool.submit(write, self.path, state)

    def wait(self) -> None:
        """Until all is on the disk; raises the OSError of the last one."""
        self._last.result()

    def close(self) -> None:
        """Until all is on the disk, or has failed to get there."""
        self._pool.shutdown()
