"""The library: condense without a command line, and read saved sets."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ddm import networks
from ddm.cli import preset_values
from ddm.commands.condense import DDM, Recipe
from ddm.commands.settings import DDMSettings, RecipeSettings
from ddm.data.catalogue import Arrays
from ddm.data.images import ImageData
from ddm.data.loading import from_arrays, load_split
from ddm.errors import UserError
from ddm.evaluation import protocol
from ddm.evaluation.sets import CondensedDataset
from ddm.methods.condensation import Condensation, condensed
from ddm.methods.matching import Needs, Objective
from ddm.runs.results import plain, requested, versions

# [N, H, W, C] or [N, H, W] uint8 images and integer labels: x_train, y_train, x_test, y_test
Splits = tuple[Any, Any, Any, Any]


def load(path: Any, experiment: int = 0, pixels: bool = False) -> CondensedDataset:
    """A saved set: of ours, of the DC/DSA/DM family, .npz or .safetensors; see `CondensedDataset`."""
    return CondensedDataset(path, experiment, pixels)


def condense(
    settings: RecipeSettings | None = None,
    *,
    data: ImageData | Splits | None = None,
    network: Callable[..., nn.Module] | None = None,
    objective: Objective | None = None,
    needs: Needs | None = None,
    log: Callable[[str], None] | None = None,
    **changes: Any,
) -> CondensedDataset:
    """Condense one set and evaluate it; writes no files.

    `settings` are a DDMSettings or a recipe's own class; `changes` are settings by name, such as dataset="CIFAR10",
    ipc=10, preset="fast,dm". `data` replaces --dataset: uint8 images [N, H, W, C] and labels as (x_train, y_train,
    x_test, y_test). `network` replaces --model: (channel, num_classes, im_size) -> a networks.Network. `objective`
    replaces the complete one: (real, syn, settings) -> weighted terms by name, each [classes]; `needs` is what it reads
    of feature maps. The result has images [N, C, H, W] (normalised), labels [N], mean, std, class_names and accuracies
    in [0, 1] by network. Experiment --first_exp is made; num_exp and the settings of files are not used. Raises
    UserError as the command does.
    """
    settings = with_presets(settings or DDMSettings(), changes)
    recipe = DDM if objective is None else Recipe("library", objective, lambda own: needs or Needs())
    with registered(network) as model:
        if model:
            settings = settings.but(model=model)
        if data is not None:
            settings = settings.but(dataset="Digits")  # not read, but a name that exists
        settings = recipe.settled(settings)
        s = settings
        if data is None:
            found, _ = load_split(s.dataset, s.data_path, s.res, s.eval_split, s.zca, s.seed)
        else:
            found = data if isinstance(data, ImageData) else from_arrays(Arrays(*data), "data")
        maker = Condensation(found, settings, recipe.objective, recipe.needed(settings), say=log or (lambda line: None))
        maker.prepare()
        images = condensed(maker, settings.first_exp)
        evaluator = protocol.Evaluator(maker.data, settings, maker.plan.machine)
        scored = maker.scored(settings.first_exp, images)
        accs = evaluator(*scored, settings.first_exp, maker.iterations, log or (lambda line: None))
    told = {"args": plain(maker.arguments()) | {"recipe": recipe.name, "num_exp": 1}, "asked": requested(settings)}
    if data is not None:
        del told["args"]["dataset"], told["asked"]["dataset"]
    told |= {"mean": found.mean, "std": found.std, "class_names": found.class_names, "seed": settings.seed}
    told |= {"accs_all_exps": accs, "versions": versions()}
    if found.normalisation.whitened:
        told["zca"] = found.normalisation.zca
    return CondensedDataset.made(images.cpu(), maker.labels.cpu(), told)


def with_presets(settings: RecipeSettings, changes: dict[str, Any]) -> RecipeSettings:
    """Settings with changes by name; those of a preset count less than explicit ones."""
    unknown = changes.keys() - settings.values().keys()
    if unknown:
        raise UserError(f"{type(settings).__name__} has no setting {sorted(unknown)[0]!r}")
    return settings.but(**preset_values(type(settings), changes.get("preset")) | changes)


@contextlib.contextmanager
def registered(network: Callable[..., nn.Module] | None) -> Iterator[str | None]:
    """Inside, a network function is a row of ARCHITECTURES; its name, or None without one."""
    if network is None:
        yield None
        return
    name = getattr(network, "__name__", "network")
    while name in networks.ARCHITECTURES:
        name += "_yours"
    networks.ARCHITECTURES[name] = lambda channel, num_classes, im_size: network(channel, num_classes, im_size)
    try:
        yield name
    finally:
        del networks.ARCHITECTURES[name]
