"""The scripts of the documentation run their rows."""

import os
import subprocess
import sys

from conftest import ROOT


def test_the_ablation_script_runs_its_rows(data_path, tmp_path):
    script = str(ROOT / "scripts" / "ablation_cifar10.sh")
    line = [script, "--ipc", "2", "--out", str(tmp_path), "--rows"]
    flags = (
        "--model ConvNetW32 --num_exp 1 --num_eval 1 --epoch_eval_train 1 --compile off --precision fp32 --data_path"
    )
    flags = [*flags.split(), str(data_path)]
    env = os.environ | {"PYTHON": sys.executable}
    command = [*line, "dm", "--", *flags, "--Iteration", "2"]  # from any folder
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
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
    assert len(ran) == 2 and "-m ddm condense" in ran[0] and "fast,dm" in ran[0] and "-m ddm collect" in ran[1]
    line = [script, "--rows", "dm cm", "--out", str(tmp_path / "killed")]  # a signal ends the script
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 143 and "cm:" not in done.stdout
    done = subprocess.run([script, "--help"], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "[--rows" in done.stdout
