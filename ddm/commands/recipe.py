"""From a recipe's script to its run: the command line first, torch afterwards."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ddm import cli
from ddm.commands.settings import RecipeSettings

S = TypeVar("S", bound=RecipeSettings)


def recipe(
    name: str,
    cls: type[S],
    objective: Callable[[Any, Any, S], dict],
    needs: Callable[[S], Any] | None = None,
    settle: Callable[[S], S] | None = None,
    argv: list[str] | None = None,
) -> None:
    """Run a recipe from the command line; the scripts of the repository's root are its examples.

    `name` is recorded in results.json. `cls` declares the flags. `objective(real, syn, settings)` returns the weighted
    terms by name, each [classes]. `needs(settings)` returns what it reads of feature maps (methods.matching.Needs;
    default: nothing). `settle(settings)` fills in values that follow from others.
    """

    def run(settings: S) -> None:
        from ddm.commands import condense  # imports torch, which --help and errors in flags do not need

        condense.run_recipe(condense.Recipe(name, objective, needs, settle), settings)

    cli.main(cls, run, argv, description=sys.modules["__main__"].__doc__ or "")
