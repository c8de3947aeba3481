"""Every block of docs/extending.md runs as it stands, in the order it stands, from another folder."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import QUICK, ROOT, parse

import ddm
from ddm import extensions
from ddm.commands.condense import Recipe
from ddm.data.loading import load
from ddm.errors import UserError
from ddm.methods.condensation import Condensation
from ddm.methods.matching import Needs
from ddm.networks import ARCHITECTURES, get_network, initialise

TEXT = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def start(tmp_path, *line, status=0):
    """A Python process in a folder that has modules with common names of its own."""
    for name in ("data", "utils", "errors"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the user has one of this name')\n")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def test_the_blocks_of_the_library(tmp_path):
    blocks = [block for block in BLOCKS if not block.startswith("# my_recipe.py")]
    assert len(blocks) == 9
    (tmp_path / "blocks.py").write_text("\n\n".join(blocks) + "\nassert made.accuracies")
    out = start(tmp_path, "blocks.py")
    accuracy = float(re.search(r"\{'ConvNet': \[([\d.]+)\]\}", out)[1])
    assert accuracy > 0.3 and (tmp_path / "digits_2ipc.pt").exists()


def test_a_network_from_the_command_line(tmp_path):
    (code,) = (block for block in BLOCKS if "def two_layers" in block)
    function = code[code.index("def two_layers") :].split("\n\n\n")[0]
    line = 'ddm.networks.ARCHITECTURES["two_layers"] = two_layers'
    assert line in TEXT
    (tmp_path / "mynet.py").write_text(f"import torch\n\nimport ddm\n\n\n{function}\n\n\n{line}\n")
    (command,) = re.findall(r"^    ddm (condense --import mynet.py .*)$", TEXT, re.M)
    tiny = "--dataset Digits --Iteration 2 --num_exp 1 --num_eval 1 --epoch_eval_train 1 --eval_every 0"
    start(tmp_path, "-m", "ddm", *command.split(), *tiny.split())
    assert (tmp_path / "result_net" / "res_DM_Digits_two_layers_1ipc.pt").exists()


def test_the_recipe_and_its_commands(tmp_path):
    (code,) = (block for block in BLOCKS if block.startswith("# my_recipe.py"))
    (tmp_path / "my_recipe.py").write_text(code)
    commands = re.findall(r"^    python (my_recipe.py .*)$", TEXT, re.M)
    condensed, selected = (start(tmp_path, *command.split()) for command in commands)
    results = json.loads((tmp_path / "result_mine" / "results.json").read_text())
    assert results["args"]["recipe"] == "my_recipe" and results["args"]["cosine_ratio"] == 100
    assert results["mean"] > 0.9  # three colours are easy
    assert "L_COS" in (tmp_path / "result_mine" / "training.log").read_text()
    assert "3 classes; ConvNetSlim" in condensed and "outliers, " in selected
    # Defect U10: the commands on finished sets did not know the network and the data set.
    for command in re.findall(r"^    ddm (\w+ result_mine .*)$", TEXT, re.M):
        start(tmp_path, "-m", "ddm", *command.split())
    assert "| ConvNetSlim |" in (tmp_path / "result_scores" / "table.md").read_text()
    assert (tmp_path / "mine.html").exists() and (tmp_path / "mine.npz").exists()
    without = start(tmp_path, "-m", "ddm", "evaluate", "result_mine", status=2)
    assert "--dataset Blobs, which ddm does not have" in without and "with --import (its recipe: my_recipe)" in without


def test_a_recipe_of_the_papers_terms_and_more_records_k(data_path, tmp_path):
    code = """
import ddm
from ddm.settings import non_negative, setting


class Settings(ddm.DDMSettings):
    cov_weight: float = setting(1.0, "weight of L_COV", check=non_negative, group="objective")


def objective(real, syn, settings):
    gap = (real.embedding.var(1) - syn.embedding.var(1)).square().sum(1)
    return {**ddm.terms.objective(real, syn, settings), "L_COV": settings.cov_weight * gap}


ddm.recipe("cov", Settings, objective, ddm.terms.needs)
"""
    (tmp_path / "cov.py").write_text(code)
    line = ["cov.py", "--preset", "fast,dm", *QUICK, "--model", "ConvNetW32", "--data_path", str(data_path)]
    line += ["--num_exp", "1", "--num_eval", "1", "--epoch_eval_train", "1", "--eval_every", "0", "--compile", "off"]
    start(tmp_path, *line, "--save_path", "mine")
    record = json.loads((tmp_path / "mine" / "results.json").read_text())
    assert record["args"]["k"] == 1 and record["command"][:2] == ["python", "cov.py"]


def test_files_that_can_not_be_imported(tmp_path):
    (tmp_path / "fails.py").write_text("1 / 0\n")
    (tmp_path / "ends.py").write_text("raise SystemExit(0)\n")
    for file, says in (
        ("absent.py", "no such Python file"),
        ("fails.py", "raises ZeroDivisionError"),
        ("ends.py", "ends the program"),
    ):
        with pytest.raises(UserError, match=says):
            extensions.run_files(str(tmp_path / file))


def test_the_statistic_of_the_documentation(data_path):
    """It equals the formula, part by part, class by class."""
    (block,) = (block for block in BLOCKS if "def energy" in block)
    names = {}
    exec(block.split("made = ")[0], names)
    settings = parse("DM_KNearest", *QUICK, "--model", "ConvNetW32", "--compile", "off", "--class_chunk", "5")
    data = load("CIFAR10", data_path)
    recipe = Recipe("energy", names["energy"], lambda settings: names["needs"])
    under = Condensation(data, settings, recipe.objective, recipe.needed(settings)).matcher
    assert isinstance(names["needs"], Needs)
    initialise(under.net, torch.Generator().manual_seed(0))
    real, syn = (data.batch(torch.stack([own[:n] for own in data.indices])) for n in (6, 2))
    value = under.terms(real, syn, range(10))["L_E"]
    expected = 0
    net = get_network("ConvNetW32_gram", 3, 10)
    net.load_state_dict(under.net.state_dict())
    for c in range(10):
        for r, s in zip(net.embed(real[c])[1], net.embed(syn[c])[1], strict=True):
            expected = expected + (r.square().mean() - s.square().mean()).square()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-7)


def test_a_file_is_imported_in_the_library_as_well(tmp_path, monkeypatch):
    lines = "from functools import partial\nfrom ddm.networks import ARCHITECTURES, ConvNet\n"
    (tmp_path / "own_net.py").write_text(lines + 'ARCHITECTURES["Own"] = partial(ConvNet, net_width=8, net_depth=1)\n')
    monkeypatch.setitem(ARCHITECTURES, "Own", None)  # and removed after the test
    few = {"Iteration": 1, "batch_real": 4, "num_eval": 1, "epoch_eval_train": 0, "ipc": 1}
    made = ddm.condense(dataset="Digits", model="Own", imports=str(tmp_path / "own_net.py"), **few)
    assert made.metadata["args"]["imports"] and made.accuracies.keys() == {"Own"}
