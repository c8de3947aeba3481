"""The worked example of docs/extending.md runs as it stands."""

import json
import os
import re
import subprocess
import sys

import torch
from conftest import QUICK, ROOT, parse

from ddm.data import data as datasets
from ddm.methods.condense import prepare
from ddm.networks import get_network, initialise


def test_the_example_of_a_new_loss_network_data_set_and_selector(tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(# my_recipe.py\n.*?)```", text, re.S)
    command, selecting = re.findall(r"^    python my_recipe.py (.*)$", text, re.M)
    (tmp_path / "my_recipe.py").write_text(code)
    line = [sys.executable, "my_recipe.py", *command.split(), "--save_path", "out"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["args"]["recipe"] == "my_recipe" and results["args"]["cosine_ratio"] == 100
    assert results["mean"] > 0.9  # three colours are easy
    assert "L_COS" in (tmp_path / "out" / "training.log").read_text()
    line = [sys.executable, "my_recipe.py", *selecting.split(), "--save_path", "selected"]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "outliers" in done.stdout, done.stderr


def test_the_statistic_of_the_documentation(data_path, tmp_path):
    """A recipe with a statistic of its own and without the flags of the style terms."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (statistics,) = re.findall(r"`(\{\"energy\": .*?\})`", text)
    args = parse("DM_KNearest", *QUICK, "--model", "ConvNetW32", "--compile", "off", "--class_chunk", "5")
    data = datasets.load("CIFAR10", data_path)

    def objective(real, syn, args):
        gaps = [(r - s).square() for r, s in zip(real.style["energy"], syn.style["energy"], strict=True)]
        return {"L_E": sum(gaps)}

    under = prepare(data, args, objective, eval(statistics))
    initialise(under.net, torch.Generator().manual_seed(0))
    real, syn = (data.batch(torch.stack([own[:n] for own in data.indices])) for n in (6, 2))
    value = under.terms(real, syn, range(10))["L_E"]
    expected = 0
    net = get_network("ConvNetW32_gram", 3, 10)
    net.load_state_dict(under.net.state_dict())
    for c in range(10):
        for r, s in zip(net.embed(real[c])[1], net.embed(syn[c])[1], strict=True):
            expected = expected + (r.square().mean((0, 2, 3)) - s.square().mean((0, 2, 3))).square().sum()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-7)


def test_the_ablation_script_runs_its_rows(data_path, tmp_path):
    script = str(ROOT / "scripts" / "ablation_cifar10.sh")
    line = [script, "--ipc", "2", "--out", str(tmp_path), "--rows"]
    flags = (
        "--model ConvNetW32 --num_exp 1 --num_eval 1 --epoch_eval_train 1 --compile off --precision fp32 --data_path"
    )
    flags = [*flags.split(), str(data_path)]
    env = os.environ | {"PYTHON": sys.executable}
    command = [*line, "dm", "--", *flags, "--Iteration", "2"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [row.split(" | ")[2] for row in done.stdout.splitlines() if row.startswith("| CIFAR10")]
    assert rows == ["dm"]
    wrongs = (["--budget", "huge"], ["--what", "x"], ["--rows", "dm nonsense"], ["--out", ""])
    for wrong in wrongs:  # the row is not tried before all are known
        done = subprocess.run([script, *wrong], env=env, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error:") and done.stderr.count("\n") == 1


def test_a_row_that_fails_does_not_keep_the_others_from_running(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ncase $* in *style*) exit 2 ;; *killed*) exit 143 ;; esac\necho ran $*\n")
    python.chmod(0o755)
    script, env = str(ROOT / "scripts" / "ablation_cifar10.sh"), os.environ | {"PYTHON": str(python)}
    line = [script, "--rows", "style dm", "--out"]
    done = subprocess.run([*line, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: these rows failed, see above: style\n"
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran")]
    assert len(ran) == 2 and "fast,dm" in ran[0] and "collect_results.py" in ran[1]
    line = [script, "--rows", "dm cm", "--out", str(tmp_path / "killed")]  # a signal ends the script
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 143 and "cm:" not in done.stdout
    done = subprocess.run([script, "--help"], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "[--rows" in done.stdout
