"""The declaration of settings: default, help text, check and role of each flag.

A settings class is a frozen, keyword-only dataclass whose fields are created by `setting`. Its field names are the
flags. Commands inherit the classes they need, so that all flags are on one level. This module imports no torch, because
`--help` must be fast.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from enum import Enum
from functools import cache, partial
from types import NoneType
from typing import Any, ClassVar, dataclass_transform, get_args, get_type_hints

from ddm.errors import UserError


class Role(Enum):
    """The role of a setting when a run is compared, repeated or resumed."""

    RESULT = "changes the result: must be equal on resume"
    GROWS = "may grow on resume: more experiments, more networks"
    MANNER = "changes the behaviour of a run, not its numbers: free on resume, repeated by --like"
    PLACE = "paths and device: free on resume, not repeated by --like"


@dataclass(frozen=True)
class Setting:
    """The declaration of one setting, stored in the metadata of its dataclass field."""

    help: str
    check: Callable[[str], Any] | None = None  # text -> value; raises UserError. None: any text, or a switch
    choices: tuple[str, ...] | None = None
    role: Role = Role.RESULT
    group: str = "options"  # its heading in --help
    # The default is replaced by a chosen value; a resumed run keeps that value.
    chosen: bool = False
    follows: str | None = None  # the argument of a set's run that replaces an unset value
    exclusive: str | None = None  # settings with the same word exclude each other
    positional: bool = False
    hidden: bool = False  # from --help and --help-all
    rare: bool = False  # shown by --help-all only
    metavar: str | None = None
    spellings: tuple[str, ...] = ()  # other flags for the same setting


def setting(default: Any = MISSING, help: str = "", **declaration: Any) -> Any:
    """A dataclass field that declares a setting; without a default the flag is required."""
    return field(default=default, metadata={"setting": Setting(help, **declaration)})


def grouped(group: str) -> Callable[..., Any]:
    """The function `setting` for one group of flags."""
    return partial(setting, group=group)


def altered(base: type["Settings"], name: str, **changes: Any) -> Any:
    """The setting of a base class with a different default, help, ... for a class that inherits it."""
    old = base.__dataclass_fields__[name]
    default = changes.pop("default", old.default)
    return field(default=default, metadata={"setting": dataclasses.replace(old.metadata["setting"], **changes)})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting, altered))
class Settings:
    """The base of all settings classes. Values are checked as on the command line.

    Raises UserError for an invalid value.
    """

    RECIPE: ClassVar[str | None] = None  # the command's name in results.json, if it makes sets
    COMMAND: ClassVar[str | None] = None  # the command of this class, such as "ddm condense"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}  # name -> setting -> value; explicit flags override them
    HINTS: ClassVar[dict[str, str]] = {}  # flag that users expect here -> the hint they get

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for name in declarations(type(self)):
            object.__setattr__(self, name, checked(type(self), name, getattr(self, name)))
            if name == "preset":
                preset_values(type(self), self.preset)

    def but(self, **changes: Any) -> Any:
        """The same settings with some values changed."""
        return dataclasses.replace(self, **changes)

    def values(self, *roles: Role) -> dict[str, Any]:
        """Name -> value of the settings with some roles (default: all)."""
        declared = declarations(type(self))
        return {name: getattr(self, name) for name in declared if not roles or declared[name].role in roles}


def declarations(cls: type[Settings]) -> dict[str, Setting]:
    """Name -> declaration of all settings of a class."""
    fields = getattr(cls, "__dataclass_fields__", {})
    return {name: f.metadata["setting"] for name, f in fields.items() if "setting" in f.metadata}


def preset_values(cls: type[Settings], names: str | None) -> dict[str, Any]:
    """The settings of presets, joined by commas; later presets override earlier ones. Raises UserError."""
    values: dict[str, Any] = {}
    for name in names.split(",") if names is not None else ():
        if name not in cls.PRESETS:
            raise UserError(f"argument --preset: {name!r} is none of {', '.join(cls.PRESETS)}")
        values |= cls.PRESETS[name]
    return values


def optional(cls: type[Settings], name: str) -> bool:
    """Whether a setting may be None ("unset")."""
    return NoneType in get_args(annotations(cls)[name])


@cache
def annotations(cls: type[Settings]) -> dict[str, Any]:
    """The types of all settings of a class, also where a module writes them as text."""
    return get_type_hints(cls)


def checked(cls: type[Settings], name: str, value: Any) -> Any:
    """The value of a setting, checked and converted. Raises UserError for an invalid value."""
    declared, default = declarations(cls)[name], cls.__dataclass_fields__[name].default
    if value is None and optional(cls, name):
        return value
    if isinstance(value, tuple) and declared.positional:
        return tuple(checked(cls, name, item) for item in value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    if isinstance(default, bool) or isinstance(value, bool):
        if not (isinstance(default, bool) and isinstance(value, bool)):
            raise UserError(f"argument --{name}: {value!r} is not a valid value")
        return value
    if not isinstance(value, str | int | float):
        raise UserError(f"argument --{name}: {value!r} is not a valid value")
    if declared.choices is not None and value not in declared.choices:
        raise UserError(f"argument --{name}: {value!r} is none of {', '.join(declared.choices)}")
    kind = annotations(cls)[name]
    check = declared.check or next((of for number, of in NUMBERS.items() if kind in (number, number | None)), str)
    try:
        return check(str(value))
    except UserError as error:
        raise UserError(f"argument --{name}: {error}") from None


# --- checks: text -> value, or UserError ---------------------------------------------------------------------


def integer(text: str) -> int:
    """A check for an integer."""
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"{text!r} is not an integer") from None
    if value >= 2**63:
        raise UserError(f"{text[:20]} is 2**63 or more")
    return value


def number(text: str) -> float:
    """A check for a finite number."""
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{text!r} is not a number") from None
    if not abs(value) < 1e38:  # the range of float32; false for NaN
        raise UserError(f"{text} is not a finite number")
    return value


NUMBERS = {int: integer, float: number}  # the checks of settings that declare none


def within(check: Callable[[str], Any], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """A check for a number in [low, high]; `check` is `integer` or `number`."""

    def checked_range(text: str) -> Any:
        value = check(text)
        if value < low:
            raise UserError(f"{text} is below {low}")
        if value > high:
            raise UserError(f"{text} is above {high}")
        return value

    return checked_range


at_least = partial(within, integer)  # a check for an integer >= a number
non_negative = within(number, 0)
up_to_one = within(number, 0, 1)
resolution = within(integer, 1, 4096)  # an image side in pixels


def below_one(text: str) -> float:
    """A check for a number in [0, 1)."""
    value = non_negative(text)
    if value >= 1:
        raise UserError(f"{text} is not below 1")
    return value


def images_per_class(text: str) -> int | str:
    """A check for a number, or the path of a .json file."""
    return text if text.endswith(".json") else at_least(1)(text)


def a_path(text: str) -> str:
    """A check for a path; an empty path would mean the working folder."""
    if not text.strip():
        raise UserError("the path is empty")
    if "\0" in text:
        raise UserError("the path has a NUL character")
    return text


def layer_numbers(text: str) -> str:
    """A check for 'all' or distinct layer numbers joined by commas."""
    parts = text.split(",")
    if text != "all" and (len(set(parts)) < len(parts) or not all(p.isdecimal() and len(p) < 4 for p in parts)):
        raise UserError(f"{text!r} is neither 'all' nor distinct layer numbers such as 0,2")
    return text


# --- settings of the machine and the seed --------------------------------------------------------------------

machine = grouped("machine")


class SeedSettings(Settings):
    """The seed."""

    seed: int = setting(0, "seed of all random numbers", check=at_least(0), group="optimisation")


class DeviceSettings(Settings):
    """The device of networks."""

    device: str = machine("auto", "auto (cuda, then mps, then cpu) or a torch device", role=Role.PLACE)


class MachineSettings(DeviceSettings):
    """The device, precision and compilation of networks."""

    precision: str | None = machine(
        None,
        "precision of networks; unset: bf16 if the run is compiled and bf16 is fast on the device, else tf32 on CUDA, "
        "fp32 elsewhere; fp32 never uses TF32",
        choices=("fp32", "tf32", "bf16"),
        chosen=True,
        rare=True,
    )
    compile: str = machine(
        "auto",
        "use torch.compile; auto: if the run is long enough and a compiler works",
        choices=("auto", "on", "off"),
        chosen=True,
        rare=True,
    )
