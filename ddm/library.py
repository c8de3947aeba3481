"""The library: condense without a command line, load saved sets."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import nn

from ddm import device, extensions, networks
from ddm.commands.condense import DDM, Recipe
from ddm.commands.settings import DDMSettings, RecipeSettings
from ddm.data import loading
from ddm.data.catalogue import Arrays
from ddm.data.images import ImageData
from ddm.errors import UserError, first_line, nearest
from ddm.evaluation import protocol
from ddm.evaluation.sets import CondensedDataset
from ddm.methods.condensation import Condensation, condensed
from ddm.methods.matching import Needs, Objective
from ddm.runs.results import plain, set_content, set_metadata
from ddm.settings import preset_values

# [N, H, W, C] or [N, H, W] uint8 images and integer labels: x_train, y_train, x_test, y_test
Splits = tuple[Any, Any, Any, Any]


def load(path: Any, experiment: int = 0, pixels: bool = False) -> CondensedDataset:
    """Load a saved set: a file of ddm or the DC/DSA/DM family, .npz, .safetensors, or the folder of a run.

    See `CondensedDataset`.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise UserError(f"{path!r} is no path: give the path of a saved set")
    return CondensedDataset(path, experiment, pixels)


def condense(
    settings: RecipeSettings | None = None,
    *,
    data: ImageData | Splits | None = None,
    network: Callable[..., nn.Module] | None = None,
    objective: Objective | None = None,
    needs: Needs | Callable[[Any], Needs] | None = None,
    log: Callable[[str], None] | None = None,
    **changes: Any,
) -> CondensedDataset:
    """Condense one set and evaluate it; writes no files, except downloads, stores and trained networks.

    `settings` is a DDMSettings or a recipe's settings; `changes` are settings by name, such as dataset="CIFAR10",
    ipc=10, preset="fast,dm". `changes` override a preset. Values in `settings` override it if they differ from the
    defaults. `data` replaces --dataset: uint8 images [N, H, W, C] and labels as (x_train, y_train, x_test, y_test).
    `network` replaces --model: (channel, num_classes, im_size) -> a networks.Network. `objective`
    replaces DDM's objective: (real, syn, settings) -> weighted terms by name, each [classes]. `needs` describes the
    feature maps that it reads. The result has images [N, C, H, W] (normalised), labels [N], mean, std, class_names and
    accuracies in [0, 1] by network. Only experiment `first_exp` is run; num_exp and output settings are ignored.
    Raises UserError as the command does.
    """
    settings = with_presets(DDMSettings() if settings is None else settings, changes)
    if log is not None and not callable(log):
        raise UserError(f"log is a {type(log).__name__}: give a function that takes a line, such as print")
    if needs is not None and objective is None:
        raise UserError("needs is of an objective of yours, which is missing: give objective, too")
    recipe = DDM if objective is None else Recipe("library", objective, needs)
    with registered(network) as model, device.restored():
        if model:
            settings = settings.but(model=model)
        if data is not None:
            if settings.res is not None:
                raise UserError("res is for data sets by name: resize the arrays of `data` instead")
            settings = settings.but(dataset="Digits")  # a valid name; the data set is not read
        if settings.imports:
            extensions.run_files(settings.imports)
        requested, settings = settings, recipe.settled(settings)
        if data is None:
            loaded = loading.load(settings.dataset, settings.data_path, settings.res)
        else:
            loaded = data if isinstance(data, ImageData) else image_data(data)
        loaded = loading.split(loaded, settings.eval_split, settings.zca, settings.seed)
        maker = Condensation(
            loaded,
            recipe.fitted(settings, loaded),
            recipe.objective,
            recipe.needed(settings),
            say=log or (lambda line: None),
        )
        maker.prepare()
        images = condensed(maker, settings.first_exp)
        evaluator = protocol.Evaluator(maker.data, settings, maker.plan.machine)
        training_set = maker.training_set(settings.first_exp, images)
        accs = evaluator(*training_set, settings.first_exp, maker.iterations, log or (lambda line: None))
    arguments = plain(maker.arguments()) | {"recipe": recipe.name, "num_exp": 1}
    metadata = set_metadata(arguments, requested, loaded) | {"accs_all_exps": accs}
    if objective is not None:  # the weights of DDM's terms say nothing about it
        metadata["args"]["objective"] = metadata["asked"]["objective"] = getattr(objective, "__name__", "a function")
    if data is not None:
        del metadata["args"]["dataset"], metadata["asked"]["dataset"]
    ((images, labels),), metadata = set_content([images.cpu()], training_set[1].cpu(), maker.plan.factor, metadata)
    return CondensedDataset.from_tensors(images, labels, metadata)


def image_data(data: Splits) -> ImageData:
    """A data set from arrays, lists or tensors. Raises UserError."""
    if not isinstance(data, tuple | list) or len(data) != 4:
        raise UserError("data is not (x_train, y_train, x_test, y_test): give these four arrays")
    try:
        arrays = Arrays(*(np.asarray(x) for x in data))
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU or with gradients
        raise UserError(f"data can't be converted to arrays ({first_line(error)}): give numpy arrays") from None
    data_set = loading.from_arrays(arrays, "data")
    loading.warn(data_set)
    return data_set


def with_presets(settings: RecipeSettings, changes: dict[str, Any]) -> RecipeSettings:
    """Settings with changes by name, and presets for what is at its default. Raises UserError."""
    if not isinstance(settings, RecipeSettings):
        raise UserError(f"settings are a {type(settings).__name__}: give a ddm.DDMSettings or a recipe's settings")
    unknown = changes.keys() - settings.values().keys()
    if unknown:
        name = sorted(unknown)[0]
        raise UserError(f"{type(settings).__name__} has no setting {name!r}: {nearest(name, settings.values())}")
    given, values, defaults = settings.but(**changes), settings.values(), type(settings)().values()
    preset = preset_values(type(settings), given.preset)
    open_values = {name: x for name, x in preset.items() if values[name] == defaults[name]}
    return given.but(**open_values | changes)


@contextlib.contextmanager
def registered(network: Callable[..., nn.Module] | None) -> Iterator[str | None]:
    """Inside, ARCHITECTURES contains the network function; yields its name there, or None without a function."""
    if network is None:
        yield None
        return
    if isinstance(network, nn.Module) or not callable(network):
        raise UserError(f"network is a {type(network).__name__}: give a function, or a name as `model`")
    extensions.check_call(network, "channel", "num_classes", "im_size")
    name = getattr(network, "__name__", "network")
    while name in networks.ARCHITECTURES:
        name += "_yours"

    def build(channel: int, num_classes: int, im_size: tuple[int, int]) -> networks.Network:
        net = network(channel, num_classes, im_size)
        if not isinstance(net, networks.Network):
            kind = type(net).__name__
            raise UserError(f"network returned a {kind}: return a ddm.networks.Network of {num_classes} classes")
        return net

    networks.ARCHITECTURES[name] = build
    try:
        yield name
    finally:
        del networks.ARCHITECTURES[name]
