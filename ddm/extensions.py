"""The user's code: runs the files of --import, which register networks, data sets, ... in the tables of ddm."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType

from ddm.errors import UserError, first_line


def run_files(files: str) -> None:
    """Run Python files, joined by commas, as modules; code under `if __name__ == "__main__"` does not run.

    Modules beside a file can be imported by it. Raises UserError for a file that is missing or raises an error.
    """
    for file in files.split(","):
        path = Path(file)
        if path.suffix != ".py" or not path.is_file():
            raise UserError(f"--import {file!r}: there is no such Python file: check the path")
        name = f"ddm_import_{path.stem}"  # not that of a package, such as datasets
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        if str(path.parent.resolve()) not in sys.path:
            sys.path.append(str(path.parent.resolve()))
        try:
            spec.loader.exec_module(module)
        except SystemExit:
            text = 'it ends the program: put its last lines under if __name__ == "__main__"'
            raise UserError(f"--import {file!r}: {text}") from None
        except Exception as error:  # it is any code
            text = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"--import {file!r} raises {text}: correct the file") from None


def check_call(function: Callable[..., object], *arguments: str) -> None:
    """Raise UserError if a function can't be called with that many positional arguments, which the message names."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise UserError(f"{name} is called as {name}({', '.join(arguments)}): {error}") from None
    except ValueError:  # a function without a signature
        return


def code_text(code: CodeType) -> str:
    """The instructions, names and constants of a function; not its line numbers and comments."""
    constants = [constant_text(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def constant_text(value: object) -> str:
    """A constant of code as text, equal in all processes: the order in a frozenset of texts is not."""
    if isinstance(value, CodeType):
        return code_text(value)
    if isinstance(value, frozenset):
        return f"frozenset({sorted(map(repr, value))})"
    if isinstance(value, tuple) and any(isinstance(x, frozenset | tuple) for x in value):
        return f"({', '.join(map(constant_text, value))})"
    return repr(value)
