"""Decomposed Distribution Matching: condense an image training set to a few synthetic images per class.

    import ddm
    synset = ddm.condense(dataset="Digits", ipc=10, preset="fast,dm", Iteration=100, num_eval=2)
    synset.images, synset.labels, synset.mean, synset.std, synset.accuracies
    train = ddm.load("result/res_DM_CIFAR10_ConvNet_10ipc.pt")

Names are imported when first used, so that `ddm --help` needs no torch.
"""

import importlib
import os
from typing import Any

__version__ = "0.11.0"

# Torch's threads wait for each other in a busy loop. On a machine with other work that wastes most of the time, as the
# awaited thread may not be running. GNU OpenMP reads this once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# name -> its module
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
    "terms": "ddm.methods.objective",  # the losses, configured by settings
}

__all__ = ["__version__", *_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'ddm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
