"""Resumes a command from the checkpoint in its save_path."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ddm import device
from ddm.data.images import ImageData
from ddm.errors import UserError
from ddm.runs import progress
from ddm.runs.progress import Progress
from ddm.runs.results import versions
from ddm.runs.settings import RunSettings
from ddm.settings import Role, declarations

S = TypeVar("S", bound=RunSettings)


def find(settings: RunSettings, recipe: str, code: str) -> Progress | None:
    """The state to resume from according to --resume; None for a fresh start.

    Raises UserError if the checkpoint is damaged, belongs to another command, or is missing with --resume must. Also
    raises it for other files in save_path with --resume never.
    """
    folder = Path(settings.save_path)
    if settings.resume == "never":
        if _entries(folder):
            raise UserError(f"--resume never: {settings.save_path!r} is not empty; name another --save_path")
        return None
    state, problems = progress.newest(folder)
    for problem in problems:
        print(f"warning: {problem}; resuming from {progress.PREVIOUS}", file=sys.stderr)
    if state is None:
        if settings.resume == "must":
            raise UserError(f"--resume must: no {progress.NAME} in {settings.save_path!r}: use --resume auto")
        results = [name for name in _entries(folder) if name == "results.json" or name.startswith("res_")]
        if results:
            raise UserError(
                f"{settings.save_path!r} has {results[0]} of another run, and no {progress.NAME} to resume from: "
                "name another --save_path"
            )
        return None
    accept(state, settings, recipe, code)
    return state


def _entries(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(path.name for path in folder.iterdir())
    return []


def with_chosen(settings: S, state: Progress | None) -> S:
    """The settings with the values chosen in the first part of the run, unless they were changed since."""
    if state is None:
        return settings
    requested = settings.values()
    chosen = {name: value for name, value in state.chosen.items() if requested[name] == state.requested[name]}
    if chosen.get("compile") == "on" and device.compiler_problem(settings.device):
        del chosen["compile"]  # another machine: a warning says that the run goes on uncompiled
    if settings.precision is None:  # unset keeps it, also where it was requested before
        chosen["precision"] = state.chosen["precision"]
    return replace(settings, **chosen)


def accept(state: Progress, settings: RunSettings, recipe: str, code: str) -> None:
    """Raise UserError if settings that change the result differ from the checkpoint's; print notes on other changes.

    The precision may differ, since not every machine computes bf16 fast: the run records that. `code` replaces the
    checkpoint's before the first step, and after a change of Python.
    """
    if state.recipe != recipe:
        raise UserError(f"the checkpoint was written by {state.recipe}, this is {recipe}: name another --save_path")
    before, requested = state.requested, settings.values()
    roles = {name: setting.role for name, setting in declarations(type(settings)).items()}
    free = {"precision"} | {name for name, role in roles.items() if role in (Role.MANNER, Role.PLACE)}
    differing = {k for k in before.keys() | requested.keys() if before.get(k) != requested.get(k)}
    # A setting that is newer than the checkpoint changes nothing at its default.
    defaults = type(settings).__dataclass_fields__
    differing -= {k for k in differing if k not in before and requested[k] == defaults[k].default}
    grown = {k for k in differing if roles.get(k) is Role.GROWS and requested[k] > before[k]}
    refused = sorted(differing - free - grown)
    if refused:
        shown = changes(refused, before, requested)
        raise UserError(f"the checkpoint is of other arguments ({shown}): repeat them, or name another --save_path")
    for k in sorted(differing - {"resume", "save_path", "precision"}):
        print(f"note: --{k} was {before.get(k)}, is {requested.get(k)}; results stay comparable", file=sys.stderr)
    changed = [k for k, v in versions().items() if state.versions.get(k, v) != v]
    begun = bool(state.iteration or state.sets)
    if begun and code != state.code and "python" not in changed:  # another Python compiles the same code differently
        print(
            "warning: the objective's code is not the code that the checkpoint was made with: for a new result, name "
            "another --save_path",
            file=sys.stderr,
        )
    if not begun or "python" in changed:
        state.code = code
    if changed:
        print(f"note: the versions of {', '.join(changed)} have changed: last digits may differ", file=sys.stderr)


def changes(names: Sequence[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The values of the first settings that differ, before and now, and the number of the others."""
    shown = ", ".join(f"--{name} {before.get(name)} there, {now.get(name)} now" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_data(state: Progress | None, digest: str, data: ImageData, counts: Any) -> None:
    """Raise UserError if the data differ from those of the checkpoint, or its images do not fit the data."""
    if state is None:
        return
    if state.data != digest:
        raise UserError(f"the {data.name} files are not the data that the checkpoint was made with: restore them")
    if state.counts != list(counts):
        raise UserError("the .json file of --ipc is not what it was for the checkpoint: restore it")
    shape = (sum(counts), *data.shape)
    for images in (state.images, state.velocity, *state.sets):
        if images is not None and (len(images), *images.shape[-3:]) != shape:
            raise UserError(
                f"the checkpoint's images are {list(images.shape)}, {data.name} needs {list(shape)}: name another "
                "--save_path"
            )
