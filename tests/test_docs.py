"""The worked example of docs/extending.md runs as it stands."""

import json
import os
import re
import subprocess
import sys

from conftest import ROOT


def test_the_example_of_a_new_loss_network_data_set_and_selector(tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(# my_recipe.py\n.*?)```", text, re.S)
    (command,) = re.findall(r"^    python my_recipe.py (.*)$", text, re.M)
    (tmp_path / "my_recipe.py").write_text(code)
    line = [sys.executable, "my_recipe.py", *command.split(), "--save_path", "out"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["args"]["recipe"] == "my_recipe" and results["args"]["cosine_ratio"] == 100
    assert results["mean"] > 0.9  # three colours are easy
    assert "L_COS" in (tmp_path / "out" / "training.log").read_text()


def test_the_ablation_script_runs_its_rows_and_goes_on(data_path, tmp_path):
    script = str(ROOT / "scripts" / "ablation_cifar10.sh")
    line = [script, "--ipc", "2", "--out", str(tmp_path), "--rows", "random dm mm"]
    tiny = "--model ConvNetW32 --num_exp 2 --num_eval 1 --epoch_eval_train 1 --compile off --precision fp32 --data_path"
    env = os.environ | {"PYTHON": sys.executable}
    for again in (False, True):
        flags = [*tiny.split(), str(data_path)]
        done = subprocess.run([*line, "--", *flags], env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("is finished") == (3 if again else 0)
    rows = [row.split(" | ")[2] for row in done.stdout.splitlines() if row.startswith("| CIFAR10")]
    assert rows == ["dm", "mm", "random"]
    for wrong in (["--budget", "huge"], ["--what", "x"], ["--rows", "nonsense"]):
        done = subprocess.run([script, *wrong], env=env, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error:") and done.stderr.count("\n") == 1
