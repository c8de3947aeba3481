"""torchrun: any number of processes gives the images, accuracies and files of one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, maker, parse, run

from ddm import ranks
from ddm.data.loading import load
from ddm.errors import UserError
from ddm.methods.condensation import Condensation
from ddm.methods.matching import Needs
from ddm.methods.objective import objective
from ddm.ranks import Ranks
from ddm.runs import progress

LINE = [*QUICK, "--model", "ConvNetW32", "--lr_img", "0.01", "--class_chunk", "5", "--num_eval", "3"]


def command(recipe, data_path, save_path, *argv, ranks=2):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    paths = ["--data_path", str(data_path), "--save_path", str(save_path)]
    return [*start, str(ROOT / f"{recipe}.py"), *LINE, *paths, *argv]


def read(folder):
    return torch.load(next(Path(folder).glob("res_*.pt")))


@pytest.mark.parametrize("preset", ["paper", "best", "strong"])
def test_two_processes_give_what_one_gives_and_one_resumes(preset, data_path, tmp_path):
    line = [*LINE, "--preset", preset, "--optimizer", "normalised", "--pool", "3", "--pool_epochs", "1"]
    # L_RR of `best` gathers embeddings; the ranks share the training of the pool of `strong`.
    cache = ("--network_cache", str(tmp_path / "cache_two"))
    two = command("DM_DDM", data_path, tmp_path / "two", *line[len(LINE) :], *cache)
    done = subprocess.run(two, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("===") == 2 and "2 ranks" in done.stdout  # only the first rank prints
    line += ["--network_cache", str(tmp_path / "cache_one")]
    alone, results = run("DM_DDM", data_path, tmp_path / "one", *line)
    two = read(tmp_path / "two")
    assert torch.equal(two["data"][0][0], alone["data"][0][0]) and torch.equal(two["data"][0][1], alone["data"][0][1])
    assert two["accs_all_exps"] == alone["accs_all_exps"] and results["n"] == 3
    # One process resumes what two began.
    more, _ = run("DM_DDM", data_path, tmp_path / "two", *line, "--num_exp", "2")
    alone, _ = run("DM_DDM", data_path, tmp_path / "one", *line, "--num_exp", "2")
    assert torch.equal(more["data"][1][0], alone["data"][1][0])


def ranks_among(process):
    """Rank -> process id of the children of torchrun."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PPid:\t{process.pid}\n" in (folder / "status").read_text():
                environment = (folder / "environ").read_bytes().decode().split("\0")
                found |= {int(entry[5:]): int(folder.name) for entry in environment if entry.startswith("RANK=")}
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_dead_rank_ends_the_job_and_leaves_a_good_checkpoint(data_path, tmp_path):
    argv = ("--Iteration", "100000", "--eval_every", "0", "--checkpoint_every", "2")
    folder, said = tmp_path / "out", tmp_path / "said"  # not a pipe, which the progress bar would fill
    with open(said, "w") as file:
        process = subprocess.Popen(command("DM_KNearest", data_path, folder, *argv), stdout=file, stderr=file)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (folder / progress.PREVIOUS).exists():
            time.sleep(0.1)
        ranks = ranks_among(process)
        assert set(ranks) == {0, 1}
        os.kill(ranks[1], signal.SIGKILL)
        process.wait(timeout=120)
    assert process.returncode != 0 and "SIGKILL" in said.read_text()
    assert all(not Path(f"/proc/{pid}").exists() for pid in ranks.values())
    state, problems = progress.newest(folder)
    assert state.iteration >= 2 and not problems and state.images.shape == (20, 3, 32, 32)


FAILS_BEFORE = """
import sys, time
import torch
from ddm import ranks
from ddm.errors import UserError
with ranks.joined("cpu") as group:
    group.gather(None)
    began = time.monotonic()
    try:
        if group.rank == 1:
            raise UserError("this rank fails")
        group.everywhere(torch.tensor(True))
    except UserError as error:
        print(f"{time.monotonic() - began:.0f} s: {error}")
        raise SystemExit(2) from None
"""


def test_a_rank_that_fails_ends_the_others_in_one_line():
    """Defect G8: they waited up to a day for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {"WORLD_SIZE": "2"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", FAILS_BEFORE],
            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    (waiting, _), (failing, _) = (process.communicate(timeout=60) for process in pair)
    assert [process.returncode for process in pair] == [2, 2]
    assert failing.endswith("this rank fails\n")
    assert waiting.count("\n") == 1 and int(waiting.split()[0]) < 10
    assert "rank 0 stops: another rank has ended or does not answer" in waiting


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_no_rank_waits_for_a_day_within_a_step(device, monkeypatch):
    """Defect G8: NCCL had the time-out of a day, and guessed its GPU."""
    calls = []
    for variable, value in {"MASTER_ADDR": "x", "LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(variable, value)
    for name in ("init_process_group", "new_group", "destroy_process_group", "all_gather_object", "all_reduce"):
        monkeypatch.setattr(
            torch.distributed, name, lambda *args, _name=name, **options: calls.append((_name, args, options)) or _name
        )
    with ranks.joined(device) as group:
        group.gather(1)
        group.largest(3)
    (_, backend, options), (_, _, patient), (_, _, gather), (_, _, reduce), (last, _, _) = calls
    cuda = device != "cpu"
    assert backend == ("cpu:gloo,cuda:nccl" if cuda else "gloo",) and last == "destroy_process_group"
    assert options == {"timeout": ranks.STEP_PATIENCE, "device_id": torch.device(device) if cuda else None}
    assert patient == {"backend": "gloo", "timeout": ranks.PATIENCE} and ranks.PATIENCE > ranks.STEP_PATIENCE
    assert gather == {"group": "new_group"} and reduce == {}
    calls.clear()
    with pytest.raises(UserError), ranks.joined(device):
        raise UserError("an error")
    assert [name for name, _, _ in calls].count("destroy_process_group") == (not cuda)  # NCCL would wait for the others


@pytest.mark.parametrize(("n", "world"), [(10, 1), (10, 3), (7, 7), (1000, 8)])
def test_classes_are_split_evenly(n, world):
    parts = [Ranks(rank, world).share(n) for rank in range(world)]
    assert [c for part in parts for c in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert Ranks(0, world).share(n, world - 1) == parts[-1]


@pytest.mark.parametrize(
    ("recipe", "argv", "world", "message"),
    [
        ("DM_KNearest", ["--model", "ConvNetBN"], 2, "can't be split over ranks"),
        ("DM_KNearest", [], 11, "11 ranks for 10 classes"),
    ],
)
def test_what_runs_over_all_classes_is_refused(recipe, argv, world, message, data_path):
    data, settings = load("CIFAR10", data_path), parse(recipe, *QUICK, *argv)
    with pytest.raises(UserError, match=message):
        maker(recipe, settings, data, group=Ranks(0, world))


def test_a_users_term_over_all_classes_must_gather(data_path):
    data, settings = load("CIFAR10", data_path), parse("DM_DDM", *QUICK)
    with pytest.raises(
        UserError, match=r"the objective .* runs over all classes at once and can't be split over ranks"
    ):
        Condensation(data, settings, objective, Needs(all_classes=True), Ranks(0, 2))
    Condensation(data, settings, objective, Needs(all_classes=True, gathers=True), Ranks(0, 2))


@pytest.mark.parametrize("returned", [{"L_MMD": 0.5}, torch.zeros(5), {}])
def test_a_users_term_of_another_type_is_named_with_ranks_too(returned, data_path):
    data, settings = load("CIFAR10", data_path), parse("DM_DDM", *QUICK, "--compile", "off")
    needs = Needs(all_classes=True, gathers=True)
    made = Condensation(data, settings, lambda real, syn, settings: returned, needs, OneOfTwo(0, 2))
    made.prepare()
    made.start(0, None)
    with pytest.raises(UserError, match="the objective"):
        made.step(1)


class OneOfTwo(Ranks):
    """The first of two ranks; the other has the same."""

    def gather(self, value):
        return [value, value]

    def largest(self, *values):
        return list(values)
