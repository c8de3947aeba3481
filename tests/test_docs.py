"""The scripts of the documentation run their rows."""

import json
import os
import shlex
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from conftest import ROOT, command, parsed
from test_collect import write_results


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


TINY = "--dataset Digits --ipc 1 --batch_real 8 --Iteration 2 --num_eval 1 --epoch_eval_train 1 --eval_every 0"
TINY = [*TINY.split(), "--model", "ConvNetW32", "--compile", "off", "--precision", "fp32"]


def script(name, *argv, cwd, **variables):
    """A script of scripts/, started in another folder."""
    env = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | variables
    line = [str(ROOT / "scripts" / name), *argv]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def test_the_sweep_resumes_and_ends_with_its_table(tmp_path):
    evaluation = ["--ipc", "1", "--num_exp", "1", *TINY]
    for ratio, seed in ((0, 0), (0, 1), (1000, 0)):  # finished before
        flags = ["--preset", "fast,dm", "--cm_ratio", ratio, "--seed", seed, *evaluation]
        command("condense", *flags, "--save_path", tmp_path / f"out/ipc1/cm_ratio_{ratio}/seed_{seed}")
    dates = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("vis_*.png")}
    rows = "cm_ratio_0/seed_0 cm_ratio_1000/seed_1"
    done = script("sweep.sh", "--rows", rows, "--out", "out", "--ipc", "1", "--", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert dates and {path: path.stat().st_mtime_ns for path in dates} == dates
    assert (tmp_path / "out/ipc1/cm_ratio_1000/seed_1/results.json").exists()
    lines = [line[2:-2].split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    table = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    assert [(row["run"], row["cm_ratio"], row["seeds"]) for row in table] == [
        ("cm_ratio_0", "0", "2"),
        ("cm_ratio_1000", "1000", "2"),
    ]
    assert [row["pairs"] for row in table] == ["", "2 experiments"] and table[1]["DM run"] == "cm_ratio_0"


def test_presets_are_chosen_on_validation_splits(tmp_path):
    sets = ["--sets", "Digits/1 CIFAR10/10", "--out", "o", "--rows"]
    rows = ["dm best_1+noclip dm-adam-0.1", "--", "--seed", "3"]
    done = script("choose_presets.sh", *sets, *rows, cwd=tmp_path, PYTHON="echo")
    assert done.returncode == 0, done.stderr
    ran = [line for line in done.stdout.splitlines() if line.startswith("-m ddm condense")]
    assert len(ran) == 6 and all("--eval_split val" in line and line.endswith("--seed 3") for line in ran)
    assert "--preset fast,best" in ran[1] and "--no-clip_pixels --rr_ratio 1 --save_path" in ran[1]
    assert "--ipc 10 " in ran[5] and "--optimizer adam --lr_img 0.1" in ran[5] and "--dataset CIFAR10" in ran[5]
    done = script("choose_presets.sh", *sets, "x", cwd=tmp_path, PYTHON="echo")
    assert (done.returncode, done.stderr) == (2, "error: unknown row x\n")
    done = script("choose_presets.sh", "--sets", cwd=tmp_path, PYTHON="echo")
    assert (done.returncode, done.stderr) == (2, "error: --sets needs a value\n")


def test_the_rows_of_the_strong_class_differ_in_one_ingredient(tmp_path):
    done = script("ablation_strong.sh", "--out", "o", cwd=tmp_path, PYTHON="echo")
    lines = [line.split()[3:] for line in done.stdout.splitlines() if line.startswith("-m ddm condense")]
    rows = {argv[-1].rpartition("/")[2]: parsed("condense", *argv).values() for argv in lines}
    assert len(rows) == 13
    expected = {"no_factor": {"factor"}, "no_ce": {"ce_ratio"}, "no_rr": {"rr_ratio"}, "icd": {"icd_ratio"}}
    expected["style"] = {"mm_ratio", "cm_ratio"}
    for name in ("no_factor", "no_ce", "no_rr", "fresh", "trained", "online", "style", "icd"):
        changed = {key for key, value in rows[name].items() if value != rows["strong"][key]}
        assert changed - {"save_path"} == expected.get(name, {"networks"})
    assert rows["best_factor"] == rows["best"] | {key: rows["best_factor"][key] for key in ("factor", "save_path")}


def test_the_published_commands_are_those_of_their_files(tmp_path):
    done = script("published_cifar10.sh", "--out", "o", cwd=tmp_path, PYTHON="echo")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(str(ROOT))]
    assert len(lines) == 5
    for path, *argv in lines:
        name, recipe = argv[-1].rpartition("/")[2], path.rpartition("/")[2].removesuffix(".py")
        asked = json.loads((ROOT / "docs" / "results" / "published" / name / "results.json").read_text())["asked"]
        places = {"save_path": "o", "data_path": "data"}
        values = parsed(recipe, *argv).values()
        assert {key: values[key] for key in asked} | places == asked | places, name


def test_the_published_commands_have_one_budget(tmp_path):
    done = script("published_cifar10.sh", "--budget", "cpu", cwd=tmp_path, PYTHON="echo")
    assert (done.returncode, done.stdout) == (2, "") and "this script has one budget" in done.stderr


def test_the_ranks_of_presets(tmp_path):
    for where, mean in {
        "A/ipc1/dm": 0.5,
        "A/ipc1/x": 0.6,
        "B/ipc1/dm": 0.5,
        "B/ipc1/x": 0.45,
        "C/ipc1/dm": 0.3,
    }.items():
        (tmp_path / where).mkdir(parents=True)
        (tmp_path / where / "results.json").write_text(json.dumps({"mean": mean}))
    line = [sys.executable, ROOT / "scripts" / "mean_rank.py", tmp_path]
    assert subprocess.run([*line[:2], tmp_path / "A"], capture_output=True).returncode == 2
    table = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert table[0] == "| row | A/1 | B/1 | C/1 | mean rank over 2 sets | least gain over dm |"
    assert table[2:] == ["| dm | 50.00 | 50.00 | 30.00 | 1.50 | +0.00 |", "| x | 60.00 | 45.00 |  | 1.50 | -5.00 |"]


def test_the_sweep_runs_its_grid(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho ran $*\n")
    python.chmod(0o755)
    done = script("sweep.sh", cwd=tmp_path, PYTHON=str(python))
    assert done.returncode == 0 and done.stdout.count("ran -m ddm condense") == 12
    grid = ["--setting", "lr_img", "--values", "1 5", "--seeds", "3 4", "--out", "o", "--", "--dataset", "Digits"]
    done = script("sweep.sh", *grid, cwd=tmp_path, PYTHON=str(python))
    *ran, collected = [line for line in done.stdout.splitlines() if line.startswith("ran")]
    assert [line.split("--lr_img ")[1][:10] for line in ran] == [f"{v} --seed {s}" for v in (1, 5) for s in (3, 4)]
    assert all(line.endswith("--dataset Digits") for line in ran) and "--save_path o/ipc10/lr_img_1/seed_3" in ran[0]
    assert collected == "ran -m ddm collect o/ipc10 --group_by auto"
    for wrong in (["--seeds", ""], ["--cm_ratio", "3"], ["--rows", "dm"]):
        done = script("sweep.sh", *wrong, cwd=tmp_path, PYTHON=str(python))
        assert done.returncode == 2 and done.stderr.startswith("error:") and done.stderr.count("\n") == 1
        assert "ran" not in done.stdout


def test_a_task_of_the_slurm_array_is_one_run_of_the_sweep(tmp_path):
    lines = (ROOT / "scripts" / "slurm_array.sh").read_text().splitlines()
    assert lines[1].startswith("#SBATCH ") and " --array=0-11 " in lines[1]  # four weights of three seeds
    done = script("slurm_array.sh", *TINY, cwd=tmp_path, SLURM_ARRAY_TASK_ID="5")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results/sweep/cm_ratio_1000/seed_2/results.json").exists()
    assert script("slurm_array.sh", *TINY, cwd=tmp_path, SLURM_ARRAY_TASK_ID="12").returncode != 0
    done = script("slurm_array.sh", *TINY, cwd=tmp_path)
    assert done.returncode != 0 and "sbatch scripts/slurm_array.sh" in done.stderr
    assert len(list(tmp_path.rglob("results.json"))) == 1


@pytest.mark.parametrize(
    "name",
    [
        "ablation_cifar10",
        "ablation_strong",
        "choices_cifar10",
        "continual_cifar10",
        "published_cifar10",
        "sweep",
        "use_cifar10",
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_script_runs_nothing(name, flag, tmp_path):
    done = script(f"{name}.sh", flag, cwd=tmp_path, PYTHON="false")
    assert done.returncode == 0 and f"scripts/{name}.sh [" in done.stdout and done.stderr == ""
    assert not any(tmp_path.iterdir())


def test_use_cifar10_takes_no_flag_for_a_folder(tmp_path):
    done = script("use_cifar10.sh", "--helpp", cwd=tmp_path, PYTHON="false")
    assert done.returncode == 2 and "unknown argument --helpp" in done.stderr


STUB = """#!/bin/sh
echo "$*" >> "$COMMANDS"
"""
WAITING = """#!/bin/bash
trap 'echo stopped >> "$COMMANDS"; exit 143' TERM
echo started >> "$COMMANDS"
while true; do sleep 0.1; done
"""
SBATCH = """#!/bin/bash
for task in {0..11}; do SLURM_ARRAY_TASK_ID=$task bash "$@"; done
"""


def test_the_commands_of_docs_sweeps_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """Sweeps are parsed, not condensed; `ddm collect` makes its tables of their accuracies, which are made up."""
    for name, text in (("python", STUB), ("sbatch", SBATCH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    log = tmp_path / "commands"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "COMMANDS": str(log)}
    env.pop("PYTHON", None)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "sweeps.md").read_text()
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ") and not line.startswith("     ")]
    assert len(lines) >= 8
    for line in lines:
        log.write_text("")
        if not line.startswith("ddm collect "):
            done = subprocess.run(["bash", "-ec", line], env=env, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert "-m ddm condense" in log.read_text()
        for program, *argv in (shlex.split(own)[2:] for own in log.read_text().splitlines()):
            if program == "condense":
                values = parsed("condense", *argv).values()
                accuracy = 0.5 + values["cm_ratio"] / 1e6 + values["seed"] / 100
                write_results(tmp_path / values["save_path"], [[accuracy]], **values)
            else:
                command(program, *argv)
        if line.startswith("ddm collect "):
            command(*shlex.split(line.removeprefix("ddm ")))
            out, err = capsys.readouterr()
            assert err == "" and ("--out" in line or "minus DM" in out), err
    assert (tmp_path / "table.tex").exists() and (tmp_path / "table.csv").exists()


def test_a_signal_to_a_sweep_reaches_its_run_and_ends_the_sweep(tmp_path):
    log = tmp_path / "commands"
    log.write_text("")
    (tmp_path / "python").write_text(WAITING)
    (tmp_path / "python").chmod(0o755)
    env = os.environ | {"PYTHON": str(tmp_path / "python"), "COMMANDS": str(log)}
    sweep = subprocess.Popen(["bash", ROOT / "scripts" / "sweep.sh"], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not log.read_text():
        time.sleep(0.05)
    sweep.terminate()
    assert sweep.wait(30) == 143 and log.read_text() == "started\nstopped\n"


@pytest.mark.parametrize(("budget", "preset"), [("cpu", ["--preset", "fast"]), ("full", [])])
def test_a_sweep_may_be_of_a_recipe(budget, preset, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho ran $*\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "mine.py").touch()
    for recipe, path in (("mine.py", "mine.py"), ("DM_KNearest.py", str(ROOT / "DM_KNearest.py"))):
        flags = ["--recipe", recipe, "--setting", "cov_ratio", "--values", "0 1", "--seeds", "2", "--budget", budget]
        done = script("sweep.sh", *flags, cwd=tmp_path, PYTHON=str(tmp_path / "python"))
        ran = [line.split()[1:] for line in done.stdout.splitlines() if "cov_ratio_" in line and line.startswith("ran")]
        assert [words[0] for words in ran] == [path] * 2
        for words, value in zip(ran, "01", strict=True):
            found = [words[at + 1] for at, word in enumerate(words) if word in ("--cov_ratio", "--seed")]
            assert found == [value, "2"] and [w for w in words if w in ("--preset", "fast")] == preset


def test_a_sweep_may_be_over_a_flag_of_the_budget(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho ran $*\n")
    python.chmod(0o755)
    line = [str(ROOT / "scripts" / "sweep.sh"), "--setting", "ipc", "--values", "1 3", "--seeds", "0", "--out"]
    line.append(str(tmp_path))
    done = subprocess.run(line, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True)
    ran = [text.split() for text in done.stdout.splitlines() if "condense" in text and text.startswith("ran")]
    assert [[b for a, b in pairwise(words) if a == "--ipc"][-1] for words in ran] == ["1", "3"]
