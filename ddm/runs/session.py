"""Resumable commands without a checkpoint: results.json is the state, written after each part of the work."""

import contextlib
import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ddm import drawing
from ddm.device import Machine, keep_freed_memory, memory_named
from ddm.errors import UserError
from ddm.interrupt import Interrupts
from ddm.runs import progress
from ddm.runs.folder import RunFolder
from ddm.runs.results import command_line, hardware, plain, requested_values, versions
from ddm.runs.resume import changes
from ddm.settings import Role, Settings


class Session:
    """The files of such a command, and the content of its results.json."""

    def __init__(self, files: RunFolder, settings: Any):
        self.files, self.settings = files, settings
        self.record: dict[str, Any] = {}
        self.resumed = False  # whether there is the record of an earlier session

    def earlier(self, **more: Any) -> dict[str, Any] | None:
        """The record of an earlier session with the same settings that change the result, and the same `more`."""
        return self.record_of({"command": self.settings.COMMAND} | self.settings.values(Role.RESULT) | more)

    def record_of(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The record of an earlier session with the same key, whose `command` names it; None without results.json.

        Raises UserError if results.json has another key or can't be read.
        """
        key = json.loads(json.dumps(key))
        self.record = {"key": key}
        path = self.files.results_path
        try:
            record = dict(json.loads(path.read_text()))
            theirs = dict(record.get("key", {}))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} can't be read ({type(error).__name__}): name another --save_path") from None
        defaults = type(self.settings).__dataclass_fields__
        usual = {"command": key["command"]} | {k: defaults[k].default for k in key if k in defaults}  # in older files
        if not theirs.keys() & key.keys() or (usual | theirs)["command"] != key["command"]:
            raise UserError(f"{path} is of another command: name another --save_path")
        theirs = usual | theirs
        differing = sorted(k for k in key.keys() | theirs.keys() if theirs.get(k) != key.get(k))
        if differing:
            digests = [k for k in differing if k in key and k not in defaults]
            shown = [f"the {k} changed" if k in theirs else f"it does not record the {k}" for k in digests]
            shown += filter(None, [changes([k for k in differing if k in defaults], theirs, key)])
            shown = ", ".join(shown) or "of another version"
            raise UserError(f"{path} is of other arguments ({shown}): repeat them, or name another --save_path")
        self.resumed = True
        return record

    def open(self, machine: Machine, requested: Settings, printed: Sequence[str] = (), **content: Any) -> None:
        """Open the folder; if it has the record of an earlier session, its log continues.

        The lines `printed` before are logged. Raises UserError if the folder has the checkpoint of a run, whose log
        would be lost.
        """
        with self.files.refused():
            if (self.files.folder / progress.NAME).exists():
                raise UserError(f"--save_path {self.files.shown} has the run of a recipe or coreset: name another")
            log = self.files.folder / "training.log"
            size = log.stat().st_size if self.resumed and log.exists() else 0
        self.files.open(size, metrics_bytes=None)
        self.files.log(f"command: {shlex.join(command_line())}")
        for line in printed:
            self.files.log(line)
        arguments = self.settings.values()
        arguments |= {name: getattr(machine, name) for name in ("precision", "compile") if name in arguments}
        self.record |= {"command": command_line(), "args": plain(arguments), "asked": requested_values(requested)}
        self.record |= {"hardware": hardware(machine), "versions": versions(), **content}

    def save(self) -> None:
        """Write results.json."""
        self.files.save_results(self.record)

    def save_tables(self, tables: Sequence[Sequence[Sequence[str]]], caption: str) -> None:
        """Print tables, and write them as table.md, table.tex and table.csv (see drawing.table_files)."""
        files = drawing.table_files(tables, caption)
        print(files["table.md"], end="")
        for name, text in files.items():
            self.files.replace(self.files.folder / name, text)


@contextlib.contextmanager
def locked_session(settings: Any, stem: str) -> Iterator[Session]:
    """Inside, the folder is locked and a signal stops the work immediately; the same command resumes it."""
    if settings.device == "cpu":
        keep_freed_memory()
    with (
        memory_named("choose a smaller --model or batch, or another --device"),
        RunFolder(settings.save_path, stem) as files,
        Interrupts().installed() as interrupts,
        interrupts.immediate(),
    ):
        yield Session(files, settings)
