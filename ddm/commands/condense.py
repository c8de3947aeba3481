"""Runs recipes: `ddm condense` is the complete one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import ddm
from ddm import torchrun
from ddm.cli import preset_values
from ddm.commands.settings import DDMSettings, RecipeSettings
from ddm.data.loading import short_name
from ddm.methods import objective, plan
from ddm.methods.condensation import Condensation
from ddm.methods.matching import Needs, Objective
from ddm.runs import experiments
from ddm.runs.folder import set_stem

ddm.terms  # noqa: B018 - recipes use this name; torch.compile needs it imported before it traces them


class Recipe(NamedTuple):
    """An objective, and what follows from its settings."""

    name: str  # in results.json
    objective: Objective
    needs: Callable[[Any], Needs] | None = None  # default: nothing but embeddings
    settle: Callable[[Any], Any] | None = None  # fills in settings that follow from others; refuses

    def settled(self, settings: RecipeSettings) -> RecipeSettings:
        """Check names and fill in what follows from other settings. Raises UserError."""
        settings = plan.settle(settings)
        if settings.eval_every is None:
            settings = settings.but(eval_every=2000 if settings.eval_mode in ("S", "SS") else 0)
        return self.settle(settings) if self.settle else settings

    def needed(self, settings: RecipeSettings) -> Needs:
        return self.needs(settings) if self.needs else Needs()


DDM = Recipe("DM_DDM", objective.objective, objective.needs, objective.settle)


def run(settings: DDMSettings) -> None:
    """`ddm condense`."""
    run_recipe(DDM, settings)


def run_recipe(recipe: Recipe, asked: RecipeSettings) -> None:
    """Run a recipe's experiments, or those that remain. Raises UserError for what the user can correct."""
    settings = recipe.settled(asked)
    if asked.preset and torchrun.rank_and_world()[0] == 0:
        shown = settings.values()
        names = preset_values(type(asked), asked.preset)
        print(f"preset {asked.preset}:", *(f"--{name} {shown[name]}" for name in names))
    needs = recipe.needed(settings)
    experiments.carry_out(
        asked,
        settings,
        recipe.name,
        lambda data, own, digest, group, say: Condensation(data, own, recipe.objective, needs, group, say),
        set_stem("DM", short_name(settings.dataset), settings.model, settings.ipc, settings.zca),
        f"images as {settings.ipc} says" if isinstance(settings.ipc, str) else f"{settings.ipc} image(s) per class",
    )
