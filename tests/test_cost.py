"""What a run says about its duration: progress bars in log files, and the line after the first minute."""

import io
import re
import sys
import time

import pytest
import torch
from conftest import command, run

from ddm import bars, device
from ddm.commands.settings import DDMSettings
from ddm.evaluation import protocol
from ddm.methods.condensation import Condensation
from ddm.runs import cost, experiments


def test_durations_and_the_line():
    assert [cost.duration(s) for s in (4.6, 89, 90, 3590, 5400, 7200, 100_000)] == (
        ["5 s", "89 s", "2 min", "1 h", "1 h 30 min", "2 h", "1 day 3 h"]
    )
    settings = DDMSettings(eval_every=2000)
    text = cost.line(settings, cost.Work(100_000, 0.5), cost.Work(1100, 60.0))
    assert text == (
        "this command needs about 1 day 8 h more: 13 h 53 min for 100,000 iterations of condensing and 18 h 20 min for "
        "1,100 evaluation networks of 1,001 epochs; shorten it with --preset fast or --eval_every 0 or a smaller "
        "--Iteration, --batch_real, --num_eval, --epoch_eval_train, --num_exp"
    )
    slow = cost.line(settings.but(num_exp=1), cost.Work(10, 60.0), cost.Work(1, 1.0))
    assert slow.endswith("; shorten it with --preset fast or a smaller --Iteration, --batch_real")
    assert "condensing" not in cost.line(settings, cost.Work(0, 0.0), cost.Work(2, 10.0))


@pytest.mark.parametrize("recipe, flags", [("DM_KNearest", ()), ("DM_GramMatching", ("--eval_mode", "W"))])
def test_a_long_run_says_once_what_it_takes_and_its_result_is_the_same(
    recipe, flags, data_path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(protocol.POOLS, "W", ["ConvNetW32", "MLP"])
    line = ("--num_exp", "2", *flags)
    quiet, _ = run(recipe, data_path, tmp_path / "quiet", *line)
    assert "this command needs" not in capsys.readouterr().out  # less than a minute
    monkeypatch.setattr(cost, "AFTER_SECONDS", 0)  # within the first network: its steps are measured on a trial
    told, _ = run(recipe, data_path, tmp_path / "told", *line)
    out = capsys.readouterr().out
    nets = 2 * 2 * 3 * (2 if flags else 1)  # experiments, networks, evaluations, architectures
    assert len(re.findall(rf"needs about .*6 iterations .* {nets} evaluation networks of 3 epochs", out)) == 1
    assert out.count("this command needs") == 1
    later, _ = run(recipe, data_path, tmp_path / "later", *line, "--eval_every", "0")
    assert "for 5 iterations" in capsys.readouterr().out  # after the first step; the networks are measured on a trial
    for k in range(2):
        for other in (told, later):
            assert torch.equal(quiet["data"][k][0], other["data"][k][0])
    assert quiet["accs_all_exps"] == told["accs_all_exps"] == later["accs_all_exps"]


def test_the_estimate_of_steps_is_that_of_the_steps(data_path, tmp_path, monkeypatch, capsys):
    step, clock = Condensation.step, [0.0]

    def slow(self, iteration):
        clock[0] += 10
        step(self, iteration)

    monkeypatch.setattr(Condensation, "step", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    run("DM_KNearest", data_path, tmp_path, "--Iteration", "20", "--eval_every", "20", "--num_eval", "1")
    assert "2 min for 14 iterations" in capsys.readouterr().out  # after the sixth: 140 s


def test_a_step_that_compiles_is_not_in_the_estimate(data_path, tmp_path, monkeypatch, capsys):
    step, clock = Condensation.step, [0.0]

    def slow(self, iteration):
        clock[0] += 600 if iteration == 1 else 10
        step(self, iteration)

    monkeypatch.setattr(Condensation, "step", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(device, "compiler_problem", lambda where: None)
    monkeypatch.setattr(device.Machine, "compiled", lambda self, function: function)
    flags = ("--Iteration", "20", "--eval_every", "0", "--num_exp", "1", "--num_eval", "1", "--precision", "fp32")
    run("DM_KNearest", data_path, tmp_path, *flags, "--compile", "on")
    assert "3 min for 17 iterations" in capsys.readouterr().out


def test_steps_that_only_the_checks_wait_for(data_path, tmp_path, monkeypatch, capsys):
    """Like those of a GPU."""
    check, clock = Condensation.check, [0.0]

    def slow(self):
        clock[0] += 100
        return check(self)

    monkeypatch.setattr(Condensation, "check", slow)
    monkeypatch.setattr(experiments.Run, "asynchronous", True)
    monkeypatch.setattr(experiments, "CHECK_SECONDS", 0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    flags = ("--Iteration", "40", "--eval_every", "0", "--num_exp", "1", "--num_eval", "1")
    run("DM_KNearest", data_path, tmp_path, *flags, "--checkpoint_every", "1000")
    assert "5 min for 30 iterations" in capsys.readouterr().out
    monkeypatch.setattr(cost, "AFTER_SECONDS", 300)  # after the third check
    run("DM_KNearest", data_path, tmp_path / "later", *flags, "--checkpoint_every", "7")  # also checks
    assert "11 min for 26 iterations" in capsys.readouterr().out  # 100 s for iterations 11 to 14


def test_a_bar_in_a_log_file_writes_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(bars, "LOG_SECONDS", 0)
    assert list(bars.bar(range(3), desc="exp 0", unit="it")) == [0, 1, 2]
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue() and lines[-1].startswith("exp 0: 100%") and "3/3" in lines[-1]
    monkeypatch.setattr(bars, "LOG_SECONDS", 30)
    before = log.getvalue()
    assert list(bars.bar(range(3))) == [0, 1, 2] and log.getvalue() == before  # short work leaves no lines
    assert list(bars.bar(range(3), show=False)) == [0, 1, 2] and log.getvalue() == before


def test_evaluate_says_once_what_it_takes(data_path, tmp_path, monkeypatch, capsys):
    run("DM_KNearest", data_path, tmp_path / "run", "--eval_every", "0", "--num_eval", "1")
    monkeypatch.setattr(cost, "AFTER_SECONDS", 0)
    line = ("evaluate", tmp_path / "run", "--data_path", data_path, "--save_path", tmp_path / "scores", "--model")
    command(*line, "MLP,ConvNetW32", "--num_eval", "2", "--epochs", "1")
    assert re.findall(r"needs about \d+ s more for (\d+) networks", capsys.readouterr().out) == ["3"]
    command(*line, "MLP,ConvNetW32", "--num_eval", "3", "--epochs", "1")  # two of six are missing
    assert re.findall(r"for (\d+) networks", capsys.readouterr().out) == ["1"]
