"""From settings classes to command lines: flags, presets, --like, and errors in one line."""

import argparse
import inspect
import json
import sys
from argparse import SUPPRESS
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ddm import __version__, torchrun
from ddm.errors import UserError, nearest
from ddm.interrupt import Stopped
from ddm.settings import Role, Setting, Settings, checked, declarations, optional

S = TypeVar("S", bound=Settings)

GROUPS = ("objective", "optimisation", "data", "evaluation", "machine", "output")  # their order in --help


class Parser(argparse.ArgumentParser):
    """An ArgumentParser for a settings class, whose errors are one line."""

    def __init__(self, cls: type[Settings], prog: str | None, description: str):
        declared = declarations(cls)
        words = [own.metavar.replace("...", " [..]") for own in declared.values() if own.positional]
        super().__init__(
            prog=prog,
            usage=" ".join(["%(prog)s", *words, "[--flag value ..]"]),
            description=inspect.cleandoc(description or cls.__doc__ or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=SUPPRESS,  # only explicit values come out; defaults are the class's
        )
        self.add_argument("--version", action="version", version=f"ddm {__version__}")
        self.flags = [f"--{word}" for name, own in declared.items() for word in (name, *own.spellings)]
        exclusive: dict[str, Any] = {}
        for group in (*GROUPS, *sorted({own.group for own in declared.values()} - set(GROUPS))):
            members = {name: own for name, own in declared.items() if own.group == group}
            heading = self.add_argument_group(group) if members else self
            for name, own in members.items():
                place = heading
                if own.exclusive:
                    if own.exclusive not in exclusive:
                        exclusive[own.exclusive] = heading.add_mutually_exclusive_group()
                    place = exclusive[own.exclusive]
                add(self if own.positional else place, name, own, cls.__dataclass_fields__[name].default)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            wrong = message.removeprefix("unrecognized arguments: ").split()[0]
            message = f"unknown argument {wrong!r}: {nearest(wrong, self.flags)}"
        self.exit(2, f"error: {message} (see --help)\n")


def add(parser: Any, name: str, own: Setting, default: Any) -> None:
    """One setting as an argument of a parser."""

    def value(text: str) -> Any:
        try:
            return own.check(text) if own.check else text
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    text = own.help.replace("%", "%%")
    if default is not MISSING and default is not None and default != "":
        text += f" (default: {default})"
    if own.hidden:
        text = SUPPRESS
    if own.positional:
        many = {"nargs": "+"} if own.metavar and own.metavar.endswith("...") else {}
        parser.add_argument(
            name, metavar=(own.metavar or name.upper()).removesuffix("..."), type=value, help=text, **many
        )
    elif isinstance(default, bool):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
    else:
        words = [f"--{word}" for word in (name, *own.spellings)]
        rest = {"choices": own.choices, "metavar": own.metavar, "required": default is MISSING}
        parser.add_argument(*words, dest=name, type=value, help=text, **rest)


def parse(cls: type[S], argv: list[str] | None = None, prog: str | None = None, description: str = "") -> S:
    """The settings of a command line. Explicit flags override presets, presets override --like.

    Exits with status 2 and one line on stderr for what can't be parsed.
    """
    parser = Parser(cls, prog, description)
    given = vars(parser.parse_args(argv))
    declared = declarations(cls)
    try:
        values = preset_values(cls, given.get("preset"))
        if given.get("like"):
            values = arguments_of(given["like"], cls, given.keys()) | values
        found = {name: tuple(x) if isinstance(x, list) else x for name, x in (values | given).items()}
        return cls(**{name: value for name, value in found.items() if name in declared})
    except UserError as error:
        parser.error(str(error))


def preset_values(cls: type[Settings], names: str | None) -> dict[str, Any]:
    """What presets, joined by commas, set; where two set the same, the later one counts. Raises UserError."""
    values: dict[str, Any] = {}
    for name in names.split(",") if names else ():
        if name not in cls.PRESETS:
            raise UserError(f"argument --preset: {name!r} is none of {', '.join(cls.PRESETS)}")
        values |= cls.PRESETS[name]
    return values


def arguments_of(path: str, cls: type[Settings], given: Any) -> dict[str, Any]:
    """The settings in a results.json or res_*.pt that a command can repeat. Raises UserError.

    Says on stderr what the command does not know, and what the file does not say. Takes what was requested, not what
    it came to: a k that follows ipc goes on following it. `given` names the explicit flags.
    """
    shown = repr(path[:80])
    try:
        if path.endswith(".json"):
            content = json.loads(Path(path).read_text())
        else:
            import torch  # imported here: it takes seconds, and few command lines need it

            content = torch.load(path, map_location="cpu", weights_only=True)
        ran, found = dict(content["args"]), dict(content.get("asked", content["args"]))
    except Exception as error:  # damaged files raise many kinds of errors
        raise UserError(
            f"argument --like: {shown} is not a results.json or res_*.pt ({type(error).__name__})"
        ) from None
    if found.get("precision") is None and "precision" in ran:
        found["precision"] = ran["precision"]  # it followed from the machine, and is part of the number
    if "dataset" in ran:
        found["dataset"] = ran["dataset"]  # version 0.1.0 had a second spelling, --subset
    found.pop("subset", None)
    declared = declarations(cls)
    spelt = {word: name for name, own in declared.items() for word in own.spellings}
    found = {spelt.get(name, name): value for name, value in found.items()}
    known = {name for name, own in declared.items() if own.role is Role.PLACE or own.positional}
    repeated = {name for name, own in declared.items() if name not in known and not own.hidden}
    values = {}
    for name in (name for name in declared if name in repeated & found.keys()):
        if found[name] is None and not optional(cls, name):  # another command may leave it unset
            continue
        try:
            values[name] = checked(cls, name, found[name])
        except UserError as error:
            raise UserError(f"argument --like: {shown} has {error}") from None
    for names, what in (
        (found.keys() - repeated - known, "this command has no"),
        (repeated - found.keys(), "at its default, as the file has none:"),
    ):
        if names:
            print(f"note: --like {shown}: {what} {', '.join(f'--{name}' for name in sorted(names))}", file=sys.stderr)
    for name in [name for name in values if declared[name].exclusive]:  # of rivals, the last stays
        rivals = [k for k, own in declared.items() if own.exclusive == declared[name].exclusive and k != name]
        if any(rival in given or values.get(rival) is not None for rival in rivals):
            del values[name]
    return values


def main(
    cls: type[S],
    run: Callable[[S], None],
    argv: list[str] | None = None,
    prog: str | None = None,
    description: str = "",
) -> None:
    """Parse, run, and turn a UserError into one line on stderr and exit status 2."""
    settings = parse(cls, argv, prog, description)
    sys.stdout.reconfigure(errors="backslashreplace")  # a path may have bytes that no text encoding has
    rank, world = torchrun.rank_and_world()
    try:
        run(settings)
    except UserError as error:
        print(f"error: {f'rank {rank} of {world}: ' if world > 1 else ''}{error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"stopped by {stopped}; run the same command again to resume", file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)
