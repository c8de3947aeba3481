"""A resumable command without a checkpoint: its results.json is its state, kept after each part of the work."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from ddm.device import Machine
from ddm.errors import UserError
from ddm.interrupt import Interrupts
from ddm.runs import progress
from ddm.runs.folder import RunFolder
from ddm.runs.results import hardware, plain, requested, versions
from ddm.settings import Role, Settings


class Session:
    """The files of such a command and the record that its results.json holds."""

    def __init__(self, files: RunFolder, settings: Any):
        self.files, self.settings = files, settings
        self.record: dict[str, Any] = {}

    def earlier(self, **more: Any) -> dict[str, Any] | None:
        """The record of a stopped session with the same key; None if there is none.

        The key is every setting that changes the result, and `more`. Raises UserError where results.json is of other
        settings or can't be read.
        """
        key = json.loads(json.dumps(self.settings.values(Role.RESULT) | more))
        self.record = {"key": key}
        path = self.files.results_path
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read ({type(error).__name__}): name another --save_path") from None
        if found.get("key") != key:
            raise UserError(f"{path} is of other arguments: repeat them, or name another --save_path")
        return found

    def open(self, machine: Machine, asked: Settings, again: bool, **content: Any) -> None:
        """Open the folder; `again`: the session is resumed, and its log continues.

        Raises UserError where the folder has a run's checkpoint, whose log would be lost.
        """
        with self.files.refused():
            if (self.files.folder / progress.NAME).exists():
                raise UserError(f"--save_path {self.files.shown} has the run of a recipe or coreset: name another")
            log = self.files.folder / "training.log"
            size = log.stat().st_size if again and log.exists() else None
        self.files.open(size)
        self.files.log(f"command: {' '.join(sys.argv)}")
        arguments = self.settings.values()
        arguments |= {name: getattr(machine, name) for name in ("precision", "compile") if name in arguments}
        self.record |= {"command": sys.argv, "args": plain(arguments), "asked": requested(asked)}
        self.record |= {"hardware": hardware(machine), "versions": versions(), **content}

    def save(self) -> None:
        """Write results.json."""
        self.files.save_results(self.record)


@contextlib.contextmanager
def session(settings: Any, stem: str) -> Iterator[Session]:
    """Inside, the folder is locked and a signal stops the work anywhere; the same command resumes it."""
    with (
        RunFolder(settings.save_path, stem) as files,
        Interrupts().installed() as interrupts,
        interrupts.anywhere(),
    ):
        yield Session(files, settings)
