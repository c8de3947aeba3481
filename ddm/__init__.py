"""Decomposed Distribution Matching: condense an image training set to a few synthetic images per class.

    import ddm
    made = ddm.condense(dataset="Digits", ipc=10, preset="fast,dm", Iteration=100, num_eval=2)
    made.images, made.labels, made.mean, made.std, made.accuracies
    train = ddm.load("result/res_DM_CIFAR10_ConvNet_10ipc.pt")

Everything is imported when it is first used, so that `ddm --help` needs no torch.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

# name -> module that has it
_EXPORTS = {
    "CondensedDataset": "ddm.evaluation.sets",
    "RecipeSettings": "ddm.commands.settings",
    "DDMSettings": "ddm.commands.settings",
    "UserError": "ddm.errors",
    "condense": "ddm.library",
    "load": "ddm.library",
    "recipe": "ddm.commands.recipe",
}
_MODULES = {
    "augment": "ddm.augment",
    "losses": "ddm.losses",
    "networks": "ddm.networks",
    "terms": "ddm.methods.objective",  # the losses under the choices of their settings
}

__all__ = ["__version__", *_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        found = getattr(importlib.import_module(_EXPORTS[name]), name)
    elif name in _MODULES:
        found = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'ddm' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
