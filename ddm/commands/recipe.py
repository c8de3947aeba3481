"""Runs a recipe's script: parses the command line, then imports torch."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ddm import cli
from ddm.commands.settings import RecipeSettings

S = TypeVar("S", bound=RecipeSettings)


def recipe(
    name: str,
    cls: type[S],
    objective: Callable[[Any, Any, S], dict] | None = None,
    needs: Any = None,
    settle: Callable[[S], S] | None = None,
    argv: list[str] | None = None,
) -> None:
    """Run a recipe from the command line; the DM_*.py scripts are examples.

    `name` is recorded in results.json. `cls` declares the flags. `objective(real, syn, settings)` returns the weighted
    terms by name, each [classes]; None is the complete objective of DDM. `needs` describes the feature maps that it
    reads: methods.matching.Needs, or a function of the settings that returns it (default: none). `settle(settings)`
    fills in values that depend on others.
    """

    def run(settings: S) -> None:
        from ddm.commands import condense  # imports torch, which --help and errors in flags do not need

        own = condense.DDM if objective is None else condense.Recipe(name, objective, needs, settle)
        condense.run_recipe(own, settings)

    cli.main(cls, run, argv, description=sys.modules["__main__"].__doc__ or "", recipe=name)
