"""Command lines of settings classes: flags, presets, --config, --like, and one-line errors."""

import argparse
import errno
import inspect
import json
import os
import shlex
import shutil
import sys
import textwrap
from argparse import SUPPRESS
from collections.abc import Callable
from dataclasses import MISSING
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ddm import __version__, extensions, torchrun
from ddm.errors import UserError, closest
from ddm.interrupt import Stopped
from ddm.settings import Role, Setting, Settings, a_path, annotations, checked, declarations, optional, preset_values

S = TypeVar("S", bound=Settings)

GROUPS = ("objective", "optimisation", "data", "evaluation", "machine", "output")  # their order in --help


def groups(declared: dict[str, Setting]) -> list[str]:
    """The groups of settings in the order of --help; those that only a recipe has are the last."""
    return [*GROUPS, *sorted({setting.group for setting in declared.values()} - set(GROUPS))]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser for a settings class, with one-line errors."""

    def __init__(self, cls: type[Settings], prog: str | None, description: str):
        declared = declarations(cls)
        words = [setting.metavar.replace("...", " [..]") for setting in declared.values() if setting.positional]
        super().__init__(
            prog=prog,
            usage=" ".join(["%(prog)s", *words, "[--flag value ..]"]),
            description=wrapped(inspect.cleandoc(description or cls.__doc__ or "")),
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=28),
            allow_abbrev=False,
            argument_default=SUPPRESS,  # return explicit values only; the class has the defaults
        )
        self.add_argument("--help-all", action=HelpAll, help="explain all flags, also the rare ones")
        self.add_argument("--version", action="version", version=f"ddm {__version__}")
        self.add_argument("--config", metavar="FILE", help="read settings from a .yaml or .json file; flags override")
        self.add_argument("--print_config", action="store_true", help="print all settings as YAML, and exit")
        self.cls, self.rare = cls, {}
        for group in groups(declared):
            members = {name: setting for name, setting in declared.items() if setting.group == group}
            heading = self.add_argument_group(group) if members else self
            for name, setting in members.items():
                action = add(self if setting.positional else heading, cls, name)
                if setting.rare and not setting.hidden:
                    self.rare[action], action.help = action.help, SUPPRESS
        if self.rare:
            self.epilog = f"{len(self.rare)} more flags: --help-all"

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            rest = message.removeprefix("unrecognized arguments: ")
            wrong = (rest.split() or [rest])[0]
            message = f"unknown argument {wrong!r}{hint(self.cls, wrong)}"
        self.exit(2, f"error: {message} (see --help)\n")


def wrapped(text: str) -> str:
    """Paragraphs wrapped to the terminal, as argparse wraps the flags; indented lines and tables as they are."""
    width = max(40, shutil.get_terminal_size().columns - 2)
    parts = text.split("\n\n")
    return "\n\n".join(part if part[:1] in (" ", "|") else textwrap.fill(part, width) for part in parts)


class HelpAll(argparse.Action):
    """--help-all: --help with the rare flags."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any):
        super().__init__(option_strings, SUPPRESS, nargs=0, **options | {"default": SUPPRESS})

    def __call__(self, parser: Any, *parsed: Any) -> NoReturn:
        for action, text in parser.rare.items():
            action.help = text
        parser.epilog = None
        parser.print_help()
        parser.exit()


def flags_of(cls: type[Settings]) -> list[str]:
    """The names of all flags of a class, without dashes."""
    flags = {name: setting for name, setting in declarations(cls).items() if not setting.positional}
    return [word for name, setting in flags.items() for word in (name, *setting.spellings)]


def hint(cls: type[Settings], wrong: str) -> str:
    """A hint for an unknown flag, with a leading colon: the flag here, or the commands that have it; or ''."""
    word = wrong.removeprefix("--").split("=")[0].replace("-", "_")
    flags = flags_of(cls)
    close = closest(word, flags, cutoff=0.7)
    if word in cls.HINTS:
        return f": {cls.HINTS[word]}"
    others = commands_with(word) if close is None or close.lower() != word.lower() else []
    if others:
        return f": it is a flag of {', '.join(others)}, not of {cls.COMMAND or 'this command'}"
    return f": did you mean '--{close}'?" if close else ""


def commands_with(flag: str) -> list[str]:
    """The commands that have a flag, as far as their settings classes are imported."""
    classes = [Settings]
    for cls in classes:
        classes += [one for one in cls.__subclasses__() if one not in classes]
    return [cls.COMMAND for cls in classes if vars(cls).get("COMMAND") and flag in flags_of(cls)]


def add(parser: Any, cls: type[Settings], name: str) -> argparse.Action:
    """Add one setting of a class to a parser."""
    declaration, default = declarations(cls)[name], cls.__dataclass_fields__[name].default

    def value(text: str) -> Any:
        try:
            return declaration.check(text) if declaration.check else text
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    text = declaration.help.replace("%", "%%")
    if cls.PRESETS and name == "preset":
        text = f"{', '.join(cls.PRESETS)}: {text}"
    if default is not MISSING and default is not None and default != "":
        text += f" (default: {default})"
    if declaration.hidden:
        text = SUPPRESS
    if declaration.positional:
        many = {"nargs": "+"} if declaration.metavar and declaration.metavar.endswith("...") else {}
        return parser.add_argument(
            name, metavar=(declaration.metavar or name.upper()).removesuffix("..."), type=value, help=text, **many
        )
    if isinstance(default, bool):
        return parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
    words = [f"--{word}" for word in (name, *declaration.spellings)]
    kind, word = annotations(cls)[name], "PATH" if declaration.check is a_path else "NAME"
    shown = {int: "N", float: "X"}
    numbers = [shown[number] for number in shown if kind in (number, number | None, number | str)]
    metavar = declaration.metavar or next(iter(numbers), None if declaration.choices else word)
    return parser.add_argument(*words, dest=name, type=value, help=text, choices=declaration.choices, metavar=metavar)


def spelled(name: str, value: str | int | float | bool) -> str:
    """A setting as words of a command line: --ipc 10, --zca, --no-zca."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {shlex.quote(str(value))}"


def parse(
    cls: type[S],
    argv: list[str] | None = None,
    prog: str | None = None,
    description: str = "",
    recipe: str | None = None,
) -> S:
    """Parse a command line into settings.

    Explicit flags override --preset, which overrides --config, then the preset in that file, then --like. `recipe` is
    the name of a command that makes sets: --like warns if the file is another recipe's. Exits with status 2 and one
    line on stderr for an invalid command line.
    """
    parser = Parser(cls, prog, description)
    explicit = vars(parser.parse_args(argv))
    path, show = explicit.pop("config", None), explicit.pop("print_config", False)
    try:
        config = {} if path is None else read_config(path, cls)
        given = config | explicit
        layers = [  # the first override the others
            ("", explicit),
            ("--preset", preset_values(cls, explicit.get("preset"))),
            ("--config", config),
            ("--config", preset_values(cls, config.get("preset"))),
        ]
        if given.get("like") is not None:
            above = set().union(*(layer for _, layer in layers))
            layers.append(("--like", arguments_of(given["like"], cls, above, recipe)))
        values: dict[str, Any] = {}
        for source, layer in layers:
            values |= allowed(cls, layer, values, source)
        values = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        fields = cls.__dataclass_fields__
        missing = [name for name in declarations(cls) if name not in values and fields[name].default is MISSING]
        if missing:
            raise UserError(f"the following arguments are required: {', '.join(f'--{name}' for name in missing)}")
        settings = cls(**values)
    except UserError as error:
        parser.error(str(error))
    if show:
        print(config_text(settings, parser.prog), end="")
        parser.exit()
    return settings


def allowed(cls: type[Settings], layer: dict[str, Any], above: dict[str, Any], source: str) -> dict[str, Any]:
    """The settings of a source without those that `above`, which overrides it, has or excludes.

    Raises UserError for two settings of the source that exclude each other. With --like the last one counts, because a
    run records both.
    """
    words = {name: setting.exclusive for name, setting in declarations(cls).items() if setting.exclusive}
    taken = {words[name] for name, value in above.items() if name in words and value is not None}
    left = {name: value for name, value in layer.items() if name not in above and words.get(name) not in taken}
    last: dict[str, str] = {}  # word -> setting
    for name in [name for name, value in left.items() if name in words and value is not None]:
        rival = last.get(words[name])
        if rival is not None and source != "--like":
            raise UserError(
                f"argument {source or f'--{name}'}: --{rival} and --{name} exclude each other: leave one out"
            )
        if rival is not None:
            del left[rival]
        last[words[name]] = name
    return left


def read_config(path: str, cls: type[Settings]) -> dict[str, Any]:
    """The settings in a .yaml or .json file, a mapping of name to value. Raises UserError."""
    shown = f"argument --config: {path[:80]!r}"
    try:
        text = Path(path).read_text()
        if path.endswith(".json"):
            content = json.loads(text)
        else:
            import yaml  # an optional package

            content = yaml.safe_load(text) or {}
    except ImportError:
        raise UserError(f"{shown} needs the package PyYAML: pip install pyyaml, or write a .json file") from None
    except Exception as error:  # damaged files raise many kinds of errors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise UserError(f"{shown} is not a readable .yaml or .json file ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{shown} is a {type(content).__name__}: write lines of the form `name: value`")
    declared, values = declarations(cls), {}
    spelt = {word: name for name, setting in declared.items() for word in setting.spellings}
    for word, value in content.items():
        name = spelt.get(word, word)
        if name not in declared:
            raise UserError(f"{shown} has the unknown setting {str(word)!r}{hint(cls, str(word))}")
        if declared[name].positional:
            raise UserError(f"{shown} has {name!r}: give it on the command line instead")
        if isinstance(value, str):  # YAML leaves the two halves of JSON's \\u escapes apart
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if isinstance(value, bool) and {"on", "off"} & {*(declared[name].choices or ())}:
            value = "on" if value else "off"  # YAML reads these words as true and false
        try:
            values[name] = checked(cls, name, value)
        except UserError as error:
            raise UserError(f"{shown} has {error}") from None
    return values


def config_text(settings: Settings, prog: str) -> str:
    """All settings as YAML, by group; --config reads it. A JSON scalar is a YAML scalar, so no package is needed."""
    declared = declarations(type(settings))
    values = settings.values() | {"like": None}  # the values in the file of --like are written out here
    lines = [f"# {prog}, ddm {__version__}"]
    for group in groups(declared):
        members = [name for name, setting in declared.items() if setting.group == group and not setting.positional]
        shown = [f"{name}: {json.dumps(values[name])}" for name in members if not declared[name].hidden]
        lines += ["", f"# {group}", *shown] if shown else []
    return "\n".join(lines) + "\n"


def _safetensors_record(path: Path) -> dict:
    with open(path, "rb") as file:  # 8 bytes: the length of the JSON header that follows
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    entries = header["__metadata__"]
    return {name: json.loads(entries[name]) for name in ("args", "asked") if name in entries}


def arguments_of(path: str, cls: type[Settings], explicit: Any, recipe: str | None = None) -> dict[str, Any]:
    """The settings in the file of a run that a command can repeat. Raises UserError.

    Prints a note on stderr about flags that only the file or only the command has. `explicit` are the names of flags
    and presets that override the file.
    """
    shown = repr(path[:80])
    requested, final = recorded(path, shown)
    theirs = final.get("recipe")
    if recipe and theirs and recipe != theirs:
        print(f"warning: --like {shown}: it is a run of {theirs}, this command runs {recipe}", file=sys.stderr)
    declared = declarations(cls)
    spelt = {word: name for name, setting in declared.items() for word in setting.spellings}
    requested = {spelt.get(name, name): value for name, value in requested.items()}
    known = {name for name, setting in declared.items() if setting.role is Role.PLACE or setting.positional}
    repeated = {name for name, setting in declared.items() if name not in known and not setting.hidden}
    if theirs and "dataset" in repeated - requested.keys() - explicit:  # a set of arrays
        raise UserError(f"argument --like: {shown} does not name its data set: give --dataset")
    values = {}
    for name in (name for name in declared if name in repeated & requested.keys() - explicit):
        value = requested[name]
        if value is None and not optional(cls, name):  # another command, or rr_ratio before 0.3.0, can be unset
            value = final.get(name)
        if value is None and not optional(cls, name):
            continue
        try:
            values[name] = checked(cls, name, value)
        except UserError as error:
            raise UserError(f"argument --like: {shown} has {error}") from None
    for names, what in (
        (requested.keys() - repeated - known, "this command has no"),
        (repeated - requested.keys() - explicit, "defaults are used, as the file has none:"),
    ):
        if names:
            print(f"note: --like {shown}: {what} {', '.join(f'--{name}' for name in sorted(names))}", file=sys.stderr)
    return values


def recorded(path: str, shown: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The requested and the final arguments in the file of a run. Raises UserError.

    Requested ones may be unset, and then follow the data again. Files without them have final ones only.
    """
    try:
        file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
        if file.suffix == ".json":
            content = json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            content = _safetensors_record(file)
        else:
            import torch  # imported here: it takes seconds, and few command lines need it

            content = torch.load(file, map_location="cpu", weights_only=True)
        final = dict(content["args"])
        requested = dict(content.get("asked", final))
    except Exception as error:  # damaged files raise many kinds of errors
        raise UserError(
            f"argument --like: {shown} is no results.json, res_*.pt or .safetensors of a run ({type(error).__name__})"
        ) from None
    if requested.get("precision") is None and "precision" in final:
        requested["precision"] = final["precision"]  # the machine determined it, and it changes the result
    if "dataset" in final:
        requested["dataset"] = final["dataset"]  # version 0.1.0 had a second spelling, --subset
    return {name: value for name, value in requested.items() if name not in ("subset", "recipe")}, final


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
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout has no encoding
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may have bytes that can't be encoded
    rank, world = torchrun.rank_and_world()
    try:
        imports = settings.values().get("imports")
        if imports:
            extensions.run_files(imports)
        run(settings)
        sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`; stdout must not be flushed again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        print(f"error: {f'rank {rank} of {world}: ' if world > 1 else ''}{error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        name = str(error.filename)
        text = f"{name[:200]!r} can't be used ({error.strerror}): check the path and its permissions"
        if error.errno == errno.ENAMETOOLONG:
            text = f"{name[:60]!r}... is too long for a file name: shorten it"
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"stopped by {stopped}; run the same command again to resume", file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)
