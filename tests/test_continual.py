"""Class-incremental learning: the real command on Digits, its memories, and that it resumes."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import command, command_line, parsed

from ddm import device
from ddm.commands import continual, run_records
from ddm.commands.continual import class_steps
from ddm.data.loading import classes_of, load
from ddm.device import Machine
from ddm.errors import UserError
from ddm.methods.plan import Plan
from ddm.methods.sampling import initial_indices
from ddm.ranks import Ranks
from ddm.runs import session

SMALL = "--dataset Digits --steps 2 --ipc 3 --batch_real 8 --Iteration 2 --epoch_eval_train 40 --model ConvNetW32"
LINE = [*SMALL.split(), "--proxy_epochs", "1", "--preset", "dm", "--lr_img", "1"]


def arguments(tmp_path, *argv):
    return [*LINE, "--data_path", str(tmp_path), "--save_path", str(tmp_path / "out"), *argv]


def parse(tmp_path, *argv):
    return parsed("continual", *arguments(tmp_path, *argv))


def test_the_command_and_what_it_writes(tmp_path):
    memories = ("herding", "dm", "ddm")
    done = command_line("continual", *arguments(tmp_path, "--memory", ",".join(memories), "--seeds", "1"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for memory in memories:
        (accs,) = results["accuracies"][memory].values()
        assert len(accs) == 2 and accs[0] > accs[-1] > 0.15  # 5 classes are easier than 10, which are not chance
        assert f"| {memory} | " in done.stdout
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5000
    head, *_, last = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert last == f"| {' | '.join((tmp_path / 'out' / 'table.csv').read_text().splitlines()[-1].split(','))} |"
    assert "herding & " in (tmp_path / "out" / "table.tex").read_text()
    with pytest.raises(UserError, match=r"its table is beside it, in table\.md, table\.tex"):
        run_records.read(tmp_path / "out" / "results.json")
    assert "| n | minus herding | 95 % interval |" in head and last in done.stdout
    means = [100 * np.mean(results["accuracies"][name]["0"]) for name in ("herding", "ddm")]
    assert f"| 1 | {means[1] - means[0]:+.2f} |" in last and "±" not in last  # of one order
    assert "SGD lr 0.01" in results["protocol"] and results["protocol"].endswith("of the classes seen")
    # dm and ddm have the same weights here (--preset dm), so the same memory.
    data, order = load("Digits", tmp_path), np.random.RandomState(0).permutation(10)
    for step in range(2):
        sets = {m: torch.load(tmp_path / "out" / "memory" / f"{m}_seed0_step{step}.pt") for m in memories}
        assert torch.equal(sets["dm"][0], sets["ddm"][0]) and not torch.equal(sets["dm"][0], sets["herding"][0])
        for _, labels in sets.values():
            assert labels.tolist() == order[5 * step : 5 * step + 5].repeat(3).tolist()
        for image, label in zip(*sets["herding"], strict=True):
            own = data.batch(data.indices[label])
            assert (own == image).flatten(1).all(1).sum() == 1  # a training image of its class
    # The same command with more orders resumes, also if settings are newer than the file.
    older = results | {"key": {k: v for k, v in results["key"].items() if k not in ("factor", "networks", "pool")}}
    (tmp_path / "out" / "results.json").write_text(json.dumps(older))
    continual.run(parse(tmp_path, "--memory", "herding", "--seeds", "2"))
    more = json.loads((tmp_path / "out" / "results.json").read_text())["accuracies"]
    assert more["herding"]["0"] == results["accuracies"]["herding"]["0"] and len(more["herding"]["1"]) == 2
    with pytest.raises(UserError, match=r"of other arguments \(--lr_net 0.01 there, 0.1 now\)"):
        continual.run(parse(tmp_path, "--memory", "herding", "--lr_net", "0.1"))


def test_the_memory_dm_is_plain_dm_under_every_preset(data_path, tmp_path):
    line = "--preset fast,strong --factor 2 --pool 1 --pool_epochs 1 --dataset CIFAR10 --ipc 1"
    few = ("--memory", "random,dm,ddm,strong", "--data_path", data_path, "--epoch_eval_train", "1")
    line = arguments(tmp_path, *line.split(), *few)
    continual.run(parsed("continual", *line, "--seeds", "1"))
    for name, each in (("random", 1), ("dm", 1), ("ddm", 4), ("strong", 4)):
        images, labels = torch.load(tmp_path / "out" / "memory" / f"{name}_seed0_step0.pt")
        assert len(images) == len(labels) == 5 * each and torch.bincount(labels).max() == each
    dm = json.loads((tmp_path / "out" / "results.json").read_text())["memories"]["dm"]
    assert (dm["networks"], dm["factor"], dm["rr_ratio"], dm["ce_ratio"]) == ("random", 1, 0, 0)
    continual.run(parsed("continual", *line, "--seeds", "2"))  # reads these files


def test_presets_are_memories(tmp_path, capsys):
    """A memory named like a preset is that preset's, in the same run as memories of other presets."""
    line = "--preset fast --memory dm,paper,best --seeds 1 --lr_img 0.2 --batch_real 4"
    continual.run(parsed("continual", *arguments(tmp_path, *line.split())))
    folder = tmp_path / "out" / "memory"
    sets = {name: torch.load(folder / f"{name}_seed0_step0.pt")[0] for name in ("dm", "paper", "best")}
    assert not torch.equal(sets["dm"], sets["paper"])
    memories = json.loads((tmp_path / "out" / "results.json").read_text())["memories"]
    assert memories["best"]["rr_ratio"] == 3 and memories["dm"]["cm_ratio"] == 0 and memories.keys() == sets.keys()
    assert capsys.readouterr().out.count("\npreset ") == 3  # one line for each, after that of --preset
    alone = "--preset fast,best --memory ddm --seeds 1 --batch_real 4"
    line = arguments(tmp_path, *alone.split(), "--save_path", str(tmp_path / "alone"), "--lr_img", "0.03")
    continual.run(parsed("continual", *line))
    assert torch.equal(torch.load(tmp_path / "alone" / "memory" / "ddm_seed0_step0.pt")[0], sets["best"])


def test_the_command_keeps_freed_memory_as_a_run_does(tmp_path, monkeypatch):
    """On a CPU it takes a third of an eager step to give it back and to get it again."""
    calls = []
    monkeypatch.setattr(session, "keep_freed_memory", lambda: calls.append(1))
    continual.run(parse(tmp_path, "--memory", "random", "--seeds", "1"))
    assert calls == [1]


def test_flags_that_no_memory_uses_are_not_checked(tmp_path):
    continual.run(parse(tmp_path, "--memory", "random,best", "--weights", "balanced", "--k", "5", "--seeds", "1"))


@pytest.mark.parametrize("step", [0, 2])
def test_the_classes_of_every_step_have_test_images(step, tmp_path):
    data, few = load("Digits", tmp_path), class_steps(10, 5, 3)[step]
    shown = {"x_train": data.x_train, "y_train": data.y_train, "x_test": data.x_test, "y_test": data.y_test}
    kept = ~torch.isin(data.y_test, torch.tensor(few))
    shown |= {"x_test": data.x_test[kept], "y_test": data.y_test[kept]}
    np.savez(tmp_path / "part.npz", **{name: x.squeeze().numpy() for name, x in shown.items()})
    argv = ("--dataset", str(tmp_path / "part.npz"), "--memory", "random", "--steps", "5", "--seeds", "4")
    with pytest.raises(UserError, match=rf"no test images of .*: order 3, step {step}"):
        continual.run(parse(tmp_path, *argv))
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_has_the_precision_of_its_first_part(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(device, "choose", lambda settings, where, pixels: Machine(where, "bf16"))
        continual.run(parse(tmp_path, "--memory", "random", "--seeds", "1"))
    continual.run(parse(tmp_path, "--memory", "random,herding", "--seeds", "1"))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["args"]["precision"] == "bf16"


def test_a_finished_order_needs_no_memories(tmp_path):
    continual.run(parse(tmp_path, "--memory", "random", "--seeds", "1"))
    shutil.rmtree(tmp_path / "out" / "memory")
    continual.run(parse(tmp_path, "--memory", "random", "--seeds", "2"))


def test_a_folder_that_another_process_used_meanwhile(tmp_path, monkeypatch):
    """Both found no folder and took no lock. The second erased the results of the first."""
    choose = device.choose

    def slow(*args):
        with monkeypatch.context() as patch:
            patch.setattr(device, "choose", choose)
            continual.run(parse(tmp_path, "--memory", "random", "--seeds", "1"))
        return choose(*args)

    monkeypatch.setattr(device, "choose", slow)
    with pytest.raises(UserError, match="in the meantime"):
        continual.run(parse(tmp_path, "--memory", "herding", "--seeds", "1"))
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["accuracies"]) == ["random"]


def test_results_of_another_command_or_data_are_named(tmp_path):
    def refused(record, match):
        (tmp_path / "out" / "results.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=match):
            continual.run(parse(tmp_path, "--memory", "random", "--seeds", "1"))

    continual.run(parse(tmp_path, "--memory", "random", "--seeds", "1"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    key = results["key"]
    refused(results | {"key": key | {"command": "ddm score"}}, "of another command")
    refused(results | {"key": key | {"data": "0"}}, r"\(the data changed\)")
    refused(results | {"key": {k: v for k, v in key.items() if k != "data"}}, r"\(it does not record the data\)")
    refused(results | {"key": key | {"retired": 3}}, r"\(of another version\)")


def test_memories_of_another_run_are_not_taken(tmp_path):
    continual.run(parse(tmp_path, "--memory", "random", "--seeds", "1"))
    memory = tmp_path / "out" / "memory" / "random_seed0_step0.pt"
    images, labels = torch.load(memory)
    (tmp_path / "out" / "results.json").rename(tmp_path / "results.json")
    with pytest.raises(UserError, match="describes them"):
        continual.run(parse(tmp_path, "--memory", "random", "--seeds", "1"))
    results = json.loads((tmp_path / "results.json").read_text())
    results["accuracies"]["random"]["0"].pop()  # the last step is left to do
    (tmp_path / "out" / "results.json").write_text(json.dumps(results))
    for content, says in (([images[:4], labels[:4]], "of other classes"), ("nonsense", "is damaged")):
        torch.save(content, memory)
        with pytest.raises(UserError, match=says):
            continual.run(parse(tmp_path, "--memory", "random", "--seeds", "1"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--steps", "6"), "at least two per step"),
        (("--memory", "randum"), "did you mean 'random'"),
        (("--memory", "dm,fast"), "unknown memory 'fast'"),
        (("--seed", str(2**63 - 1), "--seeds", "2"), "--seed"),
        (("--ipc", "n.json"), "argument --ipc: 'n.json' is not an integer"),
        (("--eval_mode", "M"), "does not support --eval_mode"),
        (("--zca",), "does not support --zca"),
        (("--tensorboard",), "unknown argument '--tensorboard'"),
        (("--ipc", "1000"), "fewer than the 1000"),
        (("--mm_ratio", "1", "--style_layers", "7", "--memory", "random,ddm"), "has no layer 7"),
    ],
)
def test_mistakes(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("continual", *arguments(tmp_path, *argv))
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_a_preset_is_printed_with_the_values_that_it_chose(tmp_path, capsys):
    """Defect U19: it printed --rr_ratio None."""
    command("continual", *arguments(tmp_path, "--preset", "fast,best", "--memory", "random", "--seeds", "1"))
    out = capsys.readouterr().out
    assert "preset fast,best: " in out and "--lr_img 1.0" in out and "None" not in out


def test_too_little_memory_halves_the_classes_of_a_pass(data_path):
    """Settings without first_exp, as those of continual, had a traceback."""
    settings = parsed("continual", "--dataset", "CIFAR10", "--data_path", data_path, "--class_chunk", "4")
    plan = Plan(settings=settings, counts=(1,) * 4, machine=Machine(), ranks=Ranks(), chunk=4)
    assert plan.halved(0, 1).chunk == 2 and plan.halved(0, 1).settings.class_chunk == 2


def test_accuracies_orders_and_the_table_by_hand(tmp_path):
    line = ("--memory", "random", "--seeds", "2", "--num_eval", "2", "--epoch_eval_train", "3")
    continual.run(parse(tmp_path, *line))
    out = tmp_path / "out"
    accs = json.loads((out / "results.json").read_text())["accuracies"]["random"]
    single = [float(acc) for acc in re.findall(r"test acc ([\d.]+)", (out / "training.log").read_text())]
    means = np.reshape(single, (2, 2, 2)).mean(2)  # orders, steps, networks
    np.testing.assert_allclose([accs["0"], accs["1"]], means, atol=1e-4)
    orders = 100 * np.array([accs["0"], accs["1"]])
    cells = [f"{x.mean():.2f} ± {x.std():.2f}" for x in (*orders.T, orders.mean(1))]
    assert (out / "table.md").read_text().splitlines()[-1] == f"| random | {' | '.join(cells)} | 2 |"
    data = load("Digits", tmp_path)
    for seed, step in itertools.product((0, 1), repeat=2):
        part = classes_of(data, "Digits", class_steps(10, 2, seed)[step])
        images, _ = torch.load(out / "memory" / f"random_seed{seed}_step{step}.pt")
        assert torch.equal(images, part.batch(initial_indices(part, (3,) * 5, seed, step)))
