"""What the tests share: the reference values, a tiny CIFAR-shaped data set, and the recipes' command lines."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ddm import __main__ as entry
from ddm import cli
from ddm.commands import condense
from ddm.commands.settings import RecipeSettings
from ddm.data.images import ImageData
from ddm.methods.condensation import Condensation
from ddm.settings import Settings

# pytest runs two processes; and results are equal bit for bit only where the number of threads is, too.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
SMALL = Path(__file__).parent / "reference"
# The whole set of reference values; where it is absent, the committed part stands in for it.
FULL = Path(os.environ.get("DDM_REFERENCE", ROOT.parent / "shared" / "reference"))

RECIPES = {
    "DM_GramMatching": "ConvNet_gram",
    "DM_MeanStd_Matching": "ConvNet_gram",
    "DM_KNearest": "ConvNet",
    "DM_DDM": "ConvNet",
}
# A run of seconds: narrow network, few images, 3 iterations.
QUICK = [
    *("--dataset", "CIFAR10", "--ipc", "2", "--batch_real", "6", "--Iteration", "3", "--num_exp", "1"),
    *("--num_eval", "2", "--epoch_eval_train", "2", "--eval_every", "2"),
]


@pytest.fixture(params=[SMALL, FULL], ids=["committed", "full"])
def reference(request) -> Path:
    """The folder of reference values: the part that is committed, then all of them where they are."""
    if not (request.param / "networks.json").exists():
        pytest.skip(f"no reference values in {request.param}")
    return request.param


def tiny_arrays(train: int = 8, test: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """CIFAR10-shaped arrays: `train` and `test` images of each class, every class with a colour of its own."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(40, 216, (10, 1, 1, 3))
    arrays = {}
    for split, n in (("train", train), ("test", test)):
        y = generator.permutation(np.repeat(np.arange(10), n))
        x = colours[y] + generator.normal(0, 30, (len(y), 32, 32, 3))
        arrays[f"x_{split}"], arrays[f"y_{split}"] = x.clip(0, 255).astype(np.uint8), y
    return arrays


@pytest.fixture(scope="session")
def data_path(tmp_path_factory) -> Path:
    """A folder with the tiny CIFAR10.npz."""
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "CIFAR10.npz", **tiny_arrays())
    return folder


def quick_model(recipe: str) -> str:
    """A narrow network of the kind the recipe needs."""
    return RECIPES[recipe].replace("ConvNet", "ConvNetW32")


def start_of(name: str) -> list[str]:
    """How a recipe's script, or a command of ddm, is started."""
    return [str(ROOT / f"{name}.py")] if name in RECIPES else ["-m", "ddm", name]


def command_line(name: str, *argv: str) -> subprocess.CompletedProcess:
    """Run a recipe or a command (coreset, evaluate, ...) as a user does, in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *start_of(name), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)


def command(name: str, *argv: object) -> None:
    """A command of ddm (condense, coreset, evaluate, ...) in this process; mistakes raise SystemExit(2)."""
    entry.main([name, *map(str, argv)])


def recipe_of(name: str) -> condense.Recipe:
    """What a recipe's script hands to `ddm.recipe`."""
    if name == "DM_DDM":
        return condense.DDM
    module = vars(importlib.import_module(name))
    return condense.Recipe(name, module["objective"], module.get("needs"), module.get("settle"))


def settings_class(name: str) -> type[Settings]:
    """The settings class of a recipe or of a command of ddm."""
    if name in RECIPES and name != "DM_DDM":
        return importlib.import_module(name).Settings
    return entry.COMMANDS["condense" if name == "DM_DDM" else name][1]


def parsed(name: str, *argv: object) -> Settings:
    """The settings of a command line as they were given (asked)."""
    return cli.parse(settings_class(name), list(map(str, argv)))


def parse(recipe: str, *argv: object) -> RecipeSettings:
    """The settled settings of a recipe's command line: names checked, open values that need no data filled in."""
    return recipe_of(recipe).settled(parsed(recipe, *argv))


def maker(recipe: str, settings: RecipeSettings, data: ImageData, **more: object) -> Condensation:
    """What a run of the recipe drives, before its first step: `.matcher`, `.plan`, `.prepare()`, `.start(0, None)`."""
    own = recipe_of(recipe)
    return Condensation(data, settings, own.objective, own.needed(settings), **more)


def run(recipe: str, data_path: Path, save_path: Path, *argv: str) -> tuple[dict, dict]:
    """A recipe in this process: the contents of its res_*.pt and results.json."""
    arguments = [*QUICK, "--model", quick_model(recipe), "--data_path", str(data_path), "--save_path", str(save_path)]
    condense.run_recipe(recipe_of(recipe), parsed(recipe, *arguments, *argv))
    saved = torch.load(next(save_path.glob("res_*.pt")))
    return saved, json.loads((save_path / "results.json").read_text())
