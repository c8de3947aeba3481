"""A run that is killed, stopped or damaged resumes, and its result is that of an uninterrupted run."""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT, command, command_line, parse, parsed, recipe_of, tiny_arrays

import ddm
from ddm import device, interrupt
from ddm.commands import condense
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation import protocol
from ddm.extensions import constant_text
from ddm.interrupt import Stopped
from ddm.methods import condensation
from ddm.methods.condensation import Condensation
from ddm.ranks import Ranks
from ddm.runs import experiments, folder, progress, resume
from ddm.runs.progress import Progress
from ddm.runs.results import TIMES, versions

# Seconds of work: three experiments with evaluations between, a checkpoint after every step.
DIGITS = [
    *("--dataset", "Digits", "--model", "ConvNetW32", "--ipc", "2", "--batch_real", "8", "--Iteration", "24"),
    *("--num_exp", "2", "--num_eval", "2", "--epoch_eval_train", "3", "--eval_every", "8", "--lr_img", "0.1"),
    *("--checkpoint_every", "1", "--device", "cpu"),
]
SMALL = [*DIGITS, "--num_exp", "1", "--Iteration", "6", "--eval_every", "3", "--epoch_eval_train", "1"]


def run(save_path, *argv, base=SMALL, recipe="DM_KNearest"):
    condense.run_recipe(recipe_of(recipe), parsed(recipe, *base, "--save_path", save_path, *argv))


def child(save_path):
    torch.set_num_threads(1)
    run(save_path, base=DIGITS)


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def outcome(save_path):
    """Images and results, times aside, and the log without its times and the lines about resuming."""
    saved = torch.load(next(save_path.glob("res_*.pt")))
    log = [re.sub(r"^\[.*?\] |, \d+ s,", "", line) for line in (save_path / "training.log").read_text().splitlines()]
    skip = ("resuming from", "command:", "arguments:", "preparation:", "set ", "results ", "images ")
    log = [line.split("; writing")[0] for line in log if not line.startswith(skip)]
    return [x for x, _ in saved["data"]], timeless(json.loads((save_path / "results.json").read_text())), log


@contextlib.contextmanager
def killed_at(iteration, monkeypatch):
    """Inside, a run is interrupted before this step."""
    step = Condensation.step

    def killed(self, number):
        if number == iteration:
            raise KeyboardInterrupt
        step(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Condensation, "step", killed)
        yield patch


def assert_same(found, expected):
    assert len(found[0]) == len(expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    assert found[1:] == expected[1:]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_run_killed_at_five_random_moments_ends_like_an_uninterrupted_one(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["DM_KNearest", "sklearn.datasets", "sklearn.model_selection", "test_resume"])

    def start(save_path):
        process = context.Process(target=child, args=(str(save_path),))
        process.start()
        return process

    start(tmp_path / "warm").join()
    began = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join()
    took = time.monotonic() - began
    assert whole.exitcode == 0
    moments, kills = random.Random(0), 0
    while kills < 5:
        process = start(tmp_path / "killed")
        process.join(took * moments.uniform(0.05, 0.25))
        if process.exitcode is not None:  # a faster moment of the machine: it has finished
            break
        process.kill()
        process.join()
        kills += 1
    last = start(tmp_path / "killed")
    last.join()
    assert last.exitcode == 0 and kills >= 3
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of SMALL."""
    save_path = tmp_path_factory.mktemp("whole")
    run(save_path)
    return save_path


def interrupted(save_path, monkeypatch, where, *argv):
    """Run SMALL and die, as by a kill, at the given call of the maker's step or of a method of experiments.Run.

    Checkpoints that were handed to the writer before reach the disk.
    """
    method, number = where
    owner = Condensation if method == "step" else experiments.Run
    original, calls = getattr(owner, method), []

    def dying(self, *args):
        calls.append(None)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, method, dying)
        run(save_path, *argv)


@pytest.mark.parametrize("where", [("step", 1), ("step", 5), ("evaluate", 3), ("save_results", 1), ("checkpoint", 3)])
def test_a_run_resumes_from_any_place(where, whole, tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch, where)
    run(tmp_path)
    assert_same(outcome(tmp_path), outcome(whole))


def test_a_run_resumes_twice_in_a_later_experiment(tmp_path, monkeypatch):
    argv = ("--num_exp", "3")
    run(tmp_path / "whole", *argv)
    interrupted(tmp_path / "killed", monkeypatch, ("step", 17), *argv)
    for _ in range(2):
        interrupted(tmp_path / "killed", monkeypatch, ("step", 1), *argv)
    interrupted(tmp_path / "killed", monkeypatch, ("evaluate", 6), *argv)
    run(tmp_path / "killed", *argv)
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


def test_a_run_that_died_before_its_first_checkpoint_of_a_step_logs_each_line_once(tmp_path, monkeypatch):
    argv = ("--checkpoint_every", "1000", "--eval_every", "0", "--Iteration", "30")
    run(tmp_path / "whole", *argv)
    interrupted(tmp_path / "killed", monkeypatch, ("step", 25), *argv)
    run(tmp_path / "killed", *argv)
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


def test_another_recipe_does_not_resume_it(whole):
    with pytest.raises(UserError, match="was written by DM_KNearest, this is DM_MeanStd_Matching"):
        run(whole, "--model", "ConvNetW32_gram", recipe="DM_MeanStd_Matching")


@pytest.mark.parametrize("damaged", ["res_DM_Digits_ConvNetW32_2ipc.pt", "results.json"])
def test_a_finished_runs_damaged_file_is_named_and_written_again(damaged, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / damaged).write_text("junk")
    run(tmp_path / "run")
    assert damaged in capsys.readouterr().err
    assert_same(outcome(tmp_path / "run")[:2], outcome(whole)[:2])


def test_only_the_evaluation_network_at_work_is_trained_again(whole, tmp_path, monkeypatch):
    trained, original = [], protocol.train

    def counting(net, *arguments):
        trained.append(1)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return original(net, *arguments)

    monkeypatch.setattr(protocol, "train", counting)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    run(tmp_path)
    assert len(trained) == 7  # two networks in each of three evaluations, and one of them twice
    assert_same(outcome(tmp_path), outcome(whole))


def test_the_set_of_the_last_evaluation_is_usable_before_the_end(whole, tmp_path, monkeypatch, capsys):
    with killed_at(5, monkeypatch):
        run(tmp_path)
    _, results, _ = outcome(tmp_path)
    (entry,) = (e for e in results["evaluations"] if e["iteration"] == 3)
    assert (results["args"]["Iteration"], results["asked"]["Iteration"], results["unfinished"]) == (3, 6, [3, 6])
    assert results["accuracies"] == entry["accuracies"] and results["n"] == 2
    run(tmp_path / "short", "--Iteration", "3")  # the learning rate is constant
    (images,), (expected,) = outcome(tmp_path)[0], outcome(tmp_path / "short")[0]
    assert torch.equal(images, expected)
    assert ddm.load(str(tmp_path)).accuracies == {"ConvNetW32": entry["accuracies"]}
    with_safetensors = find_spec("safetensors") is not None
    for to in ("card", "safetensors")[: 1 + with_safetensors]:
        command("export", tmp_path, "--to", to, "--out", tmp_path / f"x.{to}")
        assert "warning: its run has not ended: 3 of 6 iterations" in capsys.readouterr().err
    card = (tmp_path / "x.card" / "README.md").read_text()
    assert "3 of 6 iterations |" in card and "--Iteration 6 " in card
    file = "x.safetensors" if with_safetensors else ""  # the run's folder
    assert parsed("DM_KNearest", "--like", tmp_path / file).Iteration == 6
    command("report", tmp_path, "--out", tmp_path / "report.html")
    assert "unfinished, 3 of 6 iterations" in (tmp_path / "report.html").read_text()
    run(tmp_path)
    assert_same(outcome(tmp_path), outcome(whole))


def test_the_sets_of_the_finished_experiments_are_marked_before_the_last_one_ends(whole, tmp_path, capsys, monkeypatch):
    run(tmp_path)
    with killed_at(2, monkeypatch):
        run(tmp_path, "--num_exp", "3")
    _, results, _ = outcome(tmp_path)
    assert (results["args"]["num_exp"], results["asked"]["num_exp"], results["n"]) == (1, 3, 2)
    command("collect", tmp_path)
    assert ", 1 of 3 experiments |" in capsys.readouterr().out
    command("report", tmp_path, "--out", tmp_path / "report.html")
    assert "unfinished, 1 of 3 experiments" in (tmp_path / "report.html").read_text()
    command("evaluate", tmp_path, "--num_eval", "1", "--epochs", "1", "--save_path", tmp_path / "again")
    assert "its run has not ended: 1 of 3 experiments" in capsys.readouterr().err
    assert ddm.load(str(tmp_path)).accuracies == {"ConvNetW32": results["accuracies"]}
    run(tmp_path, "--num_exp", "3")
    assert outcome(tmp_path)[1]["args"]["num_exp"] == 3


def test_accuracies_belong_to_their_sets_while_networks_are_added(whole, tmp_path, monkeypatch):
    run(tmp_path, "--num_exp", "2")
    before = [ddm.load(str(tmp_path), k).accuracies for k in range(2)]
    train = protocol.train

    def stopped(net, *arguments):
        if (tmp_path / "ended").exists():
            raise KeyboardInterrupt
        return train(net, *arguments)

    record = protocol.record

    def recorded(entry, trained):
        record(entry, trained)
        if entry["experiment"] == 0 and entry["iteration"] == 6:  # the first set has its third network
            (tmp_path / "ended").write_text("")

    monkeypatch.setattr(protocol, "train", stopped)
    monkeypatch.setattr(protocol, "record", recorded)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--num_exp", "2", "--num_eval", "3")
    assert [ddm.load(str(tmp_path), k).accuracies for k in range(2)] == before
    (tmp_path / "ended").unlink()
    monkeypatch.undo()
    run(tmp_path, "--num_exp", "2", "--num_eval", "3")
    accs = [ddm.load(str(tmp_path), k).accuracies["ConvNetW32"] for k in range(2)]
    assert [values[:2] for values in accs] == [values["ConvNetW32"] for values in before]
    assert [len(values) for values in accs] == [3, 3]


def test_a_finished_run_reports_and_does_nothing_else(whole, capsys):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.iterdir()}
    run(whole)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.iterdir()}
    out = capsys.readouterr().out
    assert "is finished" in out and "condensed,   ConvNetW32: mean" in out


def test_more_experiments_and_networks_are_added_to_a_finished_run(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(device, "peak_memory", lambda where: 10**12)
        run(tmp_path / "a")
    run(tmp_path / "a", "--num_exp", "2", "--num_eval", "3")
    assert json.loads((tmp_path / "a" / "results.json").read_text())["peak_memory_bytes"] == 10**12
    run(tmp_path / "b", "--num_exp", "2", "--num_eval", "3")
    (images, results, _), (images_at_once, at_once, _) = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    assert torch.equal(images[0], images_at_once[0]) and torch.equal(images[1], images_at_once[1])
    assert results["accuracies"] == at_once["accuracies"] and results["n"] == 6


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--ipc", "3"), "--ipc 2 there, 3 now"),
        (("--seed", "1"), "--seed"),
        (("--num_eval", "1"), "--num_eval 2 there, 1 now"),
        (("--lr_img", "0.2", "--icd_ratio", "3"), "--icd_ratio 10.0 there, 3.0 now"),
        (("--resume", "never"), "--resume never"),
    ],
)
def test_another_command_is_refused(argv, named, whole):
    before = sorted(path.name for path in whole.iterdir())
    with pytest.raises(UserError, match=re.escape(named)):
        run(whole, *argv)
    assert before == sorted(path.name for path in whole.iterdir())


def test_resume_must_and_results_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="--resume must"):
        run(tmp_path / "none", "--resume", "must")
    assert not (tmp_path / "none").exists()
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json of another run"):
        run(tmp_path)


def test_arguments_that_change_nothing_are_accepted(whole, tmp_path, monkeypatch, capsys):
    interrupted(tmp_path, monkeypatch, ("step", 5))
    run(tmp_path, "--checkpoint_every", "3", "--class_chunk", "10")
    assert "--class_chunk was 0, is 10" in capsys.readouterr().err
    for a, b in zip(outcome(tmp_path)[0], outcome(whole)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_state_of_an_earlier_version_is_read(whole, tmp_path, monkeypatch):
    as_bytes = progress._as_bytes
    new = {"peak_memory", "metrics_bytes", "earlier_precisions"}  # since 0.9.1, 0.9.2 and 0.11.0
    monkeypatch.setattr(progress, "_as_bytes", lambda content: as_bytes({k: content[k] for k in content.keys() - new}))
    state = progress.read(whole / progress.NAME)
    progress.write(tmp_path / progress.NAME, state)
    assert state.peak_memory > 0 and progress.read(tmp_path / progress.NAME).peak_memory == 0


def test_a_flag_newer_than_the_checkpoint_is_accepted_at_its_default(whole):
    state = progress.read(whole / progress.NAME)
    for name in ("clip_pixels", "factor", "networks", "pool_lr"):
        del state.requested[name]
    settings = parse("DM_KNearest", *SMALL)
    resume.accept(state, settings, "DM_KNearest", state.code)
    with pytest.raises(UserError, match="--clip_pixels None there, True now"):
        resume.accept(state, settings.but(clip_pixels=True), "DM_KNearest", state.code)
    with pytest.raises(UserError, match="--factor None there, 2 now"):
        resume.accept(state, settings.but(factor=2), "DM_KNearest", state.code)


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbage": lambda content: os.urandom(5000),
    "a flipped byte": lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(damage, whole, tmp_path, monkeypatch, capsys):
    interrupted(tmp_path, monkeypatch, ("step", 6))
    path = tmp_path / progress.NAME
    good = path.read_bytes()
    path.write_bytes(DAMAGE[damage](good))
    run(tmp_path)
    assert f"{path} can't be used" in capsys.readouterr().err
    assert_same(outcome(tmp_path), outcome(whole))
    for name in (progress.NAME, progress.PREVIOUS):
        (tmp_path / name).write_bytes(DAMAGE[damage](good))
    with pytest.raises(UserError, match=re.escape(str(path))):
        run(tmp_path)


def write_content(path, content):
    """A checkpoint with any content and the right digest."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    state = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    torch.save({"sha256": hashlib.sha256(payload).hexdigest(), "state": state}, path)


def test_a_checkpoint_of_another_format_is_refused_in_one_line_and_left_as_it_is(tmp_path):
    write_content(tmp_path / progress.NAME, {"format": 2})
    before = (tmp_path / progress.NAME).read_bytes()
    done = command_line("DM_KNearest", *SMALL, "--save_path", str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    for part in (
        str(tmp_path / progress.NAME),
        f"its format is 2, this version reads {progress.FORMAT}",
        "--save_path",
    ):
        assert part in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [progress.NAME]
    assert (tmp_path / progress.NAME).read_bytes() == before


def test_other_data_are_refused(tmp_path, monkeypatch):
    argv = [*QUICK, "--model", "ConvNetW32", "--data_path", str(tmp_path), "--save_path", str(tmp_path / "out")]
    arrays = tiny_arrays()
    np.savez(tmp_path / "CIFAR10.npz", **arrays)
    run(tmp_path / "out", base=argv)
    for name in ("x_train", "y_test"):
        np.savez(tmp_path / "CIFAR10.npz", **arrays | {name: arrays[name][::-1]})
        with pytest.raises(UserError, match="not the data"):
            run(tmp_path / "out", base=[*argv, "--num_eval", "3"])
    (tmp_path / "CIFAR10.npz").unlink()
    run(tmp_path / "out", base=argv)  # finished: its report needs no data


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl")
def test_a_second_process_on_the_folder_is_refused(whole, tmp_path, monkeypatch):
    original, refused = Condensation.step, []

    def step(self, iteration):
        if iteration == 3:
            with pytest.raises(UserError, match="another process"):
                run(tmp_path)
            refused.append(iteration)
        return original(self, iteration)

    monkeypatch.setattr(Condensation, "step", step)
    run(tmp_path)
    assert refused == [3]
    assert_same(outcome(tmp_path), outcome(whole))


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143)])
def test_a_signal_stops_a_run_where_it_can_resume(sent, status, tmp_path):
    argv = [*DIGITS, "--Iteration", "100000", "--eval_every", "0", "--checkpoint_every", "100000", "--compile", "off"]
    command = [sys.executable, str(ROOT / "DM_KNearest.py"), *argv, "--save_path", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "training.log"
    while process.poll() is None and not (log.exists() and "iter 10:" in log.read_text()):
        time.sleep(0.05)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "run the same command again to resume" in err.splitlines()[-1] and "Traceback" not in err
    state = progress.read(tmp_path / progress.NAME)
    assert state.iteration >= 10 and state.images.isfinite().all()


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
def test_a_second_signal_exits_at_once():
    code = (
        "import os\n"
        "from ddm import interrupt\n"
        "with interrupt.Interrupts().installed():\n"
        "    os.kill(os.getpid(), 15)\n"
        "    print('went on', flush=True)\n"
        "    os.kill(os.getpid(), 2)\n"
        "    print('never here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "went on\n")


def test_out_of_memory_continues_with_half_the_classes(whole, tmp_path, monkeypatch, capsys):
    original = condensation.condensation_step

    def small(*args):
        drawn, plan = args[-2:]
        if plan.chunk > 2 and drawn["done"] > 0:
            raise torch.OutOfMemoryError("no more")
        return original(*args)

    monkeypatch.setattr(condensation, "condensation_step", small)
    run(tmp_path)
    assert "continuing with --class_chunk 2" in capsys.readouterr().out
    assert progress.read(tmp_path / progress.NAME).chosen["class_chunk"] == "10,2@0:2"
    for a, b in zip(outcome(tmp_path)[0], outcome(whole)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def never(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(condensation, "condensation_step", never)
    with pytest.raises(UserError, match="lower --batch_real"):
        run(tmp_path / "b")
    assert device.is_out_of_memory(MemoryError()) and not device.is_out_of_memory(RuntimeError("other"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_good(tmp_path, monkeypatch):
    def full(path, state):
        if state.iteration >= 4:
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(b"x")
        return original(path, state)

    original = progress.write
    monkeypatch.setattr(progress, "write", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(tmp_path)
    assert progress.read(tmp_path / progress.NAME).iteration == 3


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_under_the_log_is_one_line_too(tmp_path, monkeypatch):
    original = folder.RunFolder.open

    def full(self, *where):
        original(self, *where)
        self._log.close()
        self._log = open("/dev/full", "a", buffering=1)  # noqa: SIM115 - closed by the run

    monkeypatch.setattr(folder.RunFolder, "open", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(tmp_path)


def test_the_command_line_reports_a_finished_run(tmp_path, capsys):
    argv = ("--Iteration", "2", "--eval_every", "0")
    run(tmp_path, *argv)
    first, second = capsys.readouterr().out, command_line("DM_KNearest", *SMALL, *argv, "--save_path", str(tmp_path))
    assert second.returncode == 0 and "is finished" in second.stdout
    assert first[first.index("===") :] == second.stdout[second.stdout.index("===") :]


def test_a_compiled_run_resumes_where_torch_compile_does_not_work(whole, monkeypatch):
    settings, state = parsed("DM_KNearest", *SMALL), progress.read(whole / progress.NAME)
    state.chosen = state.chosen | {"compile": "on"}
    monkeypatch.setattr(device, "compiler_problem", lambda where: None)
    assert resume.with_chosen(settings, state).compile == "on"
    monkeypatch.setattr(device, "compiler_problem", lambda where: "no compiler")
    assert resume.with_chosen(settings, state).compile == "auto"


def test_a_run_that_began_in_bf16_resumes_in_it_or_in_fp32(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(device, "fast_bf16", lambda kind: True)
        patch.setattr(device, "choose", lambda settings, where, pixels: Machine(where, "bf16"))
        interrupted(tmp_path, monkeypatch, ("step", 5))
    monkeypatch.setattr(device, "fast_bf16", lambda kind: False)
    with killed_at(6, monkeypatch):
        run(tmp_path)
    printed = capsys.readouterr()
    assert "warning: this cpu emulates bf16, many times slower than --precision fp32" in printed.err
    assert "rounding" not in printed.out
    run(tmp_path, "--precision", "fp32")
    printed = capsys.readouterr()
    assert "--precision was bf16, is fp32: rounding differs from here on" in printed.out and not printed.err
    record = json.loads((tmp_path / "results.json").read_text())
    until = {"precision": "bf16", "experiment": 0, "iteration": 5}
    assert record["args"]["precision"] == "fp32" and record["earlier_precisions"] == [until]
    (tmp_path / "results.json").unlink()
    run(tmp_path)  # finished: the file is written again, with what was computed
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["args"]["precision"] == "fp32" and again["earlier_precisions"] == [until]


def test_a_signal_that_comes_while_ranks_compare_is_not_lost(tmp_path, monkeypatch):
    largest, times = Ranks.largest, []

    def interrupted(self, *values):
        result = largest(self, *values)
        times.append(1)
        if len(times) == 2:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(Ranks, "largest", interrupted)
    with pytest.raises(Stopped):
        run(tmp_path)
    assert len(times) == 3  # in the next step


def test_a_results_file_of_another_command_is_named(whole, tmp_path, capsys):
    shutil.copy(whole / "results.json", tmp_path / "results.json")
    for content, message in ((None, "is of another command"), ("[1, 2]", "can't be read")):
        if content:
            (tmp_path / "results.json").write_text(content)
        with pytest.raises(SystemExit):
            command("evaluate", whole, "--save_path", tmp_path)
        assert message in capsys.readouterr().err


def test_a_signal_after_that_of_another_rank_is_not_the_second():
    handled = interrupt.Interrupts()
    with handled.installed():
        handled.received = signal.SIGTERM  # another rank told of its own
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            handled.check()


def test_code_that_changed_before_the_first_step_is_the_runs(capsys):
    settings = parsed("condense", "--preset", "dm", "--dataset", "Digits")
    state = Progress(
        **{"recipe": "DM_DDM", "code": "old", "requested": settings.values(), "chosen": {}, "versions": versions()},
        **{"data": "", "counts": [1], "experiment": 0},
    )
    resume.accept(state, settings, "DM_DDM", "new")
    state.iteration = 2
    resume.accept(state, settings, "DM_DDM", "new")
    assert capsys.readouterr().err == ""
    resume.accept(state, settings, "DM_DDM", "old")
    assert "the objective's code is not the code" in capsys.readouterr().err


def test_the_text_of_code_does_not_depend_on_hashes():
    """The order of texts in a set differs between processes."""
    one, other = (frozenset(names) for names in (("a", "b", "c"), ("c", "b", "a")))
    assert constant_text((1, one)) == constant_text((1, other)) == "(1, frozenset([\"'a'\", \"'b'\", \"'c'\"]))"
    assert constant_text((1, "a")) == repr((1, "a"))  # as before: checkpoints have it


def test_memory_that_runs_out_outside_a_step_is_one_line():
    with pytest.raises(UserError, match="out of memory: lower"), device.memory_named("lower --ipc"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="another"), device.memory_named("lower --ipc"):
        raise RuntimeError("another error")
