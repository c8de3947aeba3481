"""Command lines of settings classes: flags, presets, --like, and one-line errors."""

import argparse
import inspect
import json
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ddm import __version__, extensions, torchrun
from ddm.errors import UserError, nearest
from ddm.interrupt import Stopped
from ddm.settings import Role, Setting, Settings, checked, declarations, optional, preset_values

S = TypeVar("S", bound=Settings)

GROUPS = ("objective", "optimisation", "data", "evaluation", "machine", "output")  # their order in --help


class Parser(argparse.ArgumentParser):
    """An ArgumentParser for a settings class, with one-line errors."""

    def __init__(self, cls: type[Settings], prog: str | None, description: str):
        declared = declarations(cls)
        words = [own.metavar.replace("...", " [..]") for own in declared.values() if own.positional]
        super().__init__(
            prog=prog,
            usage=" ".join(["%(prog)s", *words, "[--flag value ..]"]),
            description=inspect.cleandoc(description or cls.__doc__ or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=SUPPRESS,  # return explicit values only; the class has the defaults
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
                add(self if own.positional else place, name, own, cls.__dataclass_fields__[name].default, cls.PRESETS)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            rest = message.removeprefix("unrecognized arguments: ")
            wrong = (rest.split() or [rest])[0]
            message = f"unknown argument {wrong!r}: {nearest(wrong, self.flags)}"
        self.exit(2, f"error: {message} (see --help)\n")


def add(parser: Any, name: str, declaration: Setting, default: Any, presets: Iterable[str] = ()) -> None:
    """Add one setting to a parser; `presets` are the names that --preset takes."""

    def value(text: str) -> Any:
        try:
            return declaration.check(text) if declaration.check else text
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    text = declaration.help.replace("%", "%%")
    if presets and name == "preset":
        text = f"{', '.join(presets)}: {text}"
    if default is not MISSING and default is not None and default != "":
        text += f" (default: {default})"
    if declaration.hidden:
        text = SUPPRESS
    if declaration.positional:
        many = {"nargs": "+"} if declaration.metavar and declaration.metavar.endswith("...") else {}
        parser.add_argument(
            name, metavar=(declaration.metavar or name.upper()).removesuffix("..."), type=value, help=text, **many
        )
    elif isinstance(default, bool):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
    else:
        words = [f"--{word}" for word in (name, *declaration.spellings)]
        rest = {"choices": declaration.choices, "metavar": declaration.metavar, "required": default is MISSING}
        parser.add_argument(*words, dest=name, type=value, help=text, **rest)


def parse(
    cls: type[S],
    argv: list[str] | None = None,
    prog: str | None = None,
    description: str = "",
    recipe: str | None = None,
) -> S:
    """Parse a command line into settings. Explicit flags override presets, presets override --like.

    `recipe` is the name of a command that makes sets: --like warns if the file is another recipe's. Exits with status 2
    and one line on stderr for an invalid command line.
    """
    parser = Parser(cls, prog, description)
    explicit = vars(parser.parse_args(argv))
    declared = declarations(cls)
    try:
        values = preset_values(cls, explicit.get("preset"))
        if explicit.get("like") is not None:
            values = arguments_of(explicit["like"], cls, explicit.keys(), recipe) | values
        found = {name: tuple(x) if isinstance(x, list) else x for name, x in (values | explicit).items()}
        return cls(**{name: value for name, value in found.items() if name in declared})
    except UserError as error:
        parser.error(str(error))


def arguments_of(path: str, cls: type[Settings], explicit: Any, recipe: str | None = None) -> dict[str, Any]:
    """The settings in a results.json or res_*.pt that a command can repeat. Raises UserError.

    Prints a note on stderr about flags that only the file or only the command has. Reads requested values, not the
    chosen ones: an unset k still follows ipc. `explicit` holds the names of the explicit flags.
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
    theirs = ran.get("recipe")
    if recipe and theirs and recipe != theirs:
        print(f"warning: --like {shown}: it is a run of {theirs}, this command runs {recipe}", file=sys.stderr)
    if found.get("precision") is None and "precision" in ran:
        found["precision"] = ran["precision"]  # the machine determined it, and it changes the result
    if "dataset" in ran:
        found["dataset"] = ran["dataset"]  # version 0.1.0 had a second spelling, --subset
    found.pop("subset", None)
    declared = declarations(cls)
    spelt = {word: name for name, own in declared.items() for word in own.spellings}
    found = {spelt.get(name, name): value for name, value in found.items()}
    known = {name for name, own in declared.items() if own.role is Role.PLACE or own.positional}
    repeated = {name for name, own in declared.items() if name not in known and not own.hidden}
    values = {}
    for name in (name for name in declared if name in repeated & found.keys() - explicit):
        if found[name] is None and not optional(cls, name):  # another command may leave it unset
            continue
        try:
            values[name] = checked(cls, name, found[name])
        except UserError as error:
            raise UserError(f"argument --like: {shown} has {error}") from None
    for names, what in (
        (found.keys() - repeated - known, "this command has no"),
        (repeated - found.keys(), "defaults are used, as the file has none:"),
    ):
        if names:
            print(f"note: --like {shown}: {what} {', '.join(f'--{name}' for name in sorted(names))}", file=sys.stderr)
    for name in [name for name in values if declared[name].exclusive]:  # keep the last of exclusive settings
        rivals = [k for k, own in declared.items() if own.exclusive == declared[name].exclusive and k != name]
        if any(rival in explicit or values.get(rival) is not None for rival in rivals):
            del values[name]
    return values


def main(
    cls: type[S],
    run: Callable[[S], None],
    argv: list[str] | None = None,
    prog: str | None = None,
    description: str = "",
    recipe: str | None = None,
) -> None:
    """Parse and run a command; a UserError becomes one line on stderr and exit status 2."""
    settings = parse(cls, argv, prog, description, recipe or cls.RECIPE)
    sys.stdout.reconfigure(errors="backslashreplace")  # a path may have bytes that can't be encoded
    rank, world = torchrun.rank_and_world()
    try:
        imports = settings.values().get("imports")
        if imports:
            extensions.run_files(imports)
        run(settings)
    except UserError as error:
        print(f"error: {f'rank {rank} of {world}: ' if world > 1 else ''}{error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"stopped by {stopped}; run the same command again to resume", file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)
