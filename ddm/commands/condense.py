"""Runs recipes; `ddm condense` runs DDM's complete objective."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ddm
from ddm import cli, torchrun
from ddm.commands.settings import DDMSettings, RecipeSettings
from ddm.data.images import ImageData
from ddm.data.loading import short_name
from ddm.errors import UserError
from ddm.extensions import check_call, code_text
from ddm.methods import objective, plan
from ddm.methods.condensation import Condensation
from ddm.methods.matching import Needs, Objective
from ddm.methods.settings import CompleteSettings, CondensingSettings
from ddm.runs import experiments
from ddm.runs.folder import set_size, set_stem
from ddm.settings import preset_values

ddm.terms  # noqa: B018 - recipes use this name; torch.compile needs it imported before it traces them


class Recipe(NamedTuple):
    """An objective, and functions of its settings."""

    name: str  # in results.json
    objective: Objective
    needs: Needs | Callable[[Any], Needs] | None = None  # default: only embeddings
    settle: Callable[[Any], Any] | None = None  # fills in settings that depend on others; may raise UserError

    def settled(self, settings: RecipeSettings) -> RecipeSettings:
        """Check names and fill in settings that depend on others. Raises UserError."""
        check_call(self.objective, "real", "syn", "settings")
        settings = plan.settle(settings)
        if settings.eval_every is None:
            settings = settings.but(eval_every=2000 if settings.eval_mode in ("S", "SS") else 0)
        return self._settle(settings)

    def fitted(self, settings: RecipeSettings, data: ImageData) -> RecipeSettings:
        """Fill in --factor, on which other settings depend. Raises UserError."""
        return self._settle(plan.with_factor(settings, data))

    def _settle(self, settings: RecipeSettings) -> RecipeSettings:
        if self.settle is None and isinstance(settings, CompleteSettings):  # a user's objective of DDM's terms and more
            return objective.settle_neighbours(settings, settings.icd_ratio)
        return self.settle(settings) if self.settle else settings

    def needed(self, settings: RecipeSettings) -> Needs:
        needs = Needs() if self.needs is None else self.needs
        if callable(needs) and not isinstance(needs, type):
            needs = needs(settings)
        if not isinstance(needs, Needs):
            given = needs.__name__ if isinstance(needs, type) else type(needs).__name__
            raise UserError(f"the needs of {self.name} are a {given}: give Needs(...), or its function")
        return needs

    @property
    def code(self) -> str:
        """A digest of the code of `objective` and `needs`, without the functions that they call."""
        functions = [f.__code__ for f in (self.objective, self.needs) if hasattr(f, "__code__")]
        return hashlib.blake2b("".join(map(code_text, functions)).encode(), digest_size=16).hexdigest()


DDM = Recipe("DM_DDM", objective.objective, objective.needs, objective.settle)


def print_preset(settings: CondensingSettings) -> None:
    """One line with the flags that the preset of settled settings stands for."""
    if settings.preset and torchrun.rank_and_world()[0] == 0:
        values = {name: settings.values()[name] for name in preset_values(type(settings), settings.preset)}
        flags = [cli.spelled(name, value) for name, value in values.items() if value is not None]
        open_ones = [f"--{name}" for name, value in values.items() if value is None]
        print(f"preset {settings.preset}:", *flags, *([f"({', '.join(open_ones)}: the data decide)"] * bool(open_ones)))


def run(settings: DDMSettings) -> None:
    """`ddm condense`."""
    run_recipe(DDM, settings)


def run_recipe(recipe: Recipe, requested: RecipeSettings) -> None:
    """Run the remaining experiments of a recipe. Raises UserError for invalid settings, data or files."""
    settings = recipe.settled(requested)
    print_preset(settings)
    needs = recipe.needed(settings)
    experiments.carry_out(
        requested,
        settings,
        recipe.name,
        recipe.code,
        lambda data, s, group, say: Condensation(data, recipe.fitted(s, data), recipe.objective, needs, group, say),
        set_stem("DM", short_name(settings.dataset), settings.model, settings.ipc, settings.zca),
        set_size(settings.ipc),
    )
