"""What the tests share: the reference values, a tiny CIFAR-shaped data set, and the recipes' command lines."""

import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddm import flags
from ddm.methods.condense import prepare
from ddm.data.data import ImageData
from ddm.methods.matching import Matcher

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


def command_line(recipe: str, *argv: str) -> subprocess.CompletedProcess:
    """Run a recipe as a user does, in a process of its own."""
    command = [sys.executable, str(ROOT / f"{recipe}.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def parse(recipe: str, *argv: str) -> Namespace:
    """The resolved arguments of a recipe's command line."""
    args = importlib.import_module(recipe).make_parser().parse_args(list(argv))
    args.asked = vars(args).copy()  # as flags.main does
    return flags.resolve(args)


def matcher(recipe: str, args: Namespace, data: ImageData) -> Matcher:
    """What a run of the recipe matches under, before its first step."""
    module = importlib.import_module(recipe)
    statistics = module.settle(args)
    return prepare(data, args, module.objective, statistics)


def run(recipe: str, data_path: Path, save_path: Path, *argv: str) -> tuple[dict, dict]:
    """A recipe in this process: the contents of its res_*.pt and results.json."""
    arguments = [*QUICK, "--model", quick_model(recipe), "--data_path", str(data_path), "--save_path", str(save_path)]
    args = parse(recipe, *arguments, *argv)
    importlib.import_module(recipe).run(args)
    saved = torch.load(next(save_path.glob("res_*.pt")))
    return saved, json.loads((save_path / "results.json").read_text())
