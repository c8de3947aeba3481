"""Saved sets: every format is read as it was written, recognised, scored as its run scored it, and exported."""

import base64
import contextlib
import http.server
import importlib
import json
import sys
import threading
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT, command, command_line, parse, parsed, run, tiny_arrays

import ddm
from ddm import __main__ as entry
from ddm import drawing
from ddm.commands import evaluate, evaluation_table, export
from ddm.data.loading import load
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation import protocol, sets
from ddm.methods.sampling import real_images


def shown(evaluations):
    """The tables of measurements as Markdown."""
    return drawing.table_files(evaluation_table.tables(evaluations), "")["table.md"].rstrip()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two experiments: (its folder, its set's path, results.json)."""
    folder = tmp_path_factory.mktemp("made")
    np.savez(folder / "CIFAR10.npz", **tiny_arrays())
    argv = ("--num_exp", "2", "--first_exp", "3", "--eval_every", "0", "--num_eval", "3", "--lr_img", "0.1")
    _, results = run("DM_KNearest", folder, folder / "out", *argv)
    return folder, next((folder / "out").glob("res_*.pt")), results


def score(made, *argv, save_path):
    evaluate.run(parsed("evaluate", *argv, "--data_path", made[0], "--save_path", save_path))
    return json.loads((save_path / "results.json").read_text())


def settle(*argv):
    return evaluate.settle(parsed("evaluate", *argv))


def export_set(*argv):
    export.run(parsed("export", *argv))


def test_a_set_of_ours_gets_its_own_number_again(made, tmp_path, capsys):
    record = score(made, made[1], "--num_eval", "3", save_path=tmp_path / "a")
    again = [acc for entry in record["evaluations"] for acc in entry["accuracies"]]
    assert again == made[2]["accuracies"] and len(again) == 6
    assert "| set | ConvNetW32 |" in capsys.readouterr().out
    curves = [curve for entry in record["evaluations"] for curve in entry["curves"]]
    assert all(np.array(curve).shape == (3, 2) for curve in curves)  # loss and accuracy of epochs 0 to 2


def test_a_stopped_evaluation_resumes(made, tmp_path):
    argv = (made[1], "--experiments", "1", "--model", "ConvNetW32,LeNet")
    first = score(made, *argv, "--num_eval", "1", save_path=tmp_path)
    more = score(made, *argv, "--num_eval", "2", save_path=tmp_path)
    for a, b in zip(first["evaluations"], more["evaluations"], strict=True):
        assert b["accuracies"][:1] == a["accuracies"] and b["n"] == 2 and b["experiment"] == 4
    assert more["evaluations"][0]["accuracies"] == made[2]["accuracies"][3:5]
    lines = [line for line in (tmp_path / "training.log").read_text().splitlines() if "] warning: " not in line]
    assert len(lines) == 2 * (1 + 2 * 2)


def test_what_was_measured_before_stays(made, tmp_path, capsys):
    """Defect U8: another --model left it out of the table, another protocol was refused in the same folder."""
    argv = (made[1], "--experiments", "0", "--num_eval", "1")
    first = score(made, *argv, save_path=tmp_path)["evaluations"]
    score(made, *argv, "--model", "LeNet", save_path=tmp_path)
    assert "| set | ConvNetW32 | LeNet |" in (tmp_path / "table.md").read_text()
    record = score(made, *argv, "--lr_net", "0.1", save_path=tmp_path)
    assert record["evaluations"][0] == first[0] and [e["lr_net"] for e in record["evaluations"]] == [0.01, 0.01, 0.1]
    head, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert head == "| set | ConvNetW32 | LeNet |" and [row.count("(n 1)") for row in rows] == [2, 1]
    assert "lr_net 0.01 |" in rows[0] and "lr_net 0.1 |" in rows[1]
    score(made, *argv, "--model", "MLP", "--epochs", "3", save_path=tmp_path)  # the others have 2
    assert "| MLP, epoch_eval_train 3 |" in (tmp_path / "table.md").read_text().splitlines()[0]
    capsys.readouterr()
    score(made, *argv, "--lr_net", "0.1", save_path=tmp_path)  # nothing is measured twice
    assert "Evaluate_" not in (tmp_path / "training.log").read_text().split("command:")[-1]
    assert "| 0 |" not in capsys.readouterr().out and len(record["evaluations"]) == 3


def test_an_evaluation_like_another(made, tmp_path):
    argv = (made[1], "--experiments", "1", "--num_eval", "1", "--model", "LeNet", "--epochs", "1")
    first = score(made, *argv, save_path=tmp_path / "a")
    again = score(made, made[1], "--like", tmp_path / "a" / "results.json", save_path=tmp_path / "b")
    assert [e["accuracies"] for e in first["evaluations"]] == [e["accuracies"] for e in again["evaluations"]]


def test_an_evaluation_like_a_run(made, tmp_path):
    """--epoch_eval_train, which evaluate calls --epochs, and --eval_mode; its --model has another meaning."""
    like = ("--like", made[0] / "out" / "results.json")
    record = score(made, made[1], *like, save_path=tmp_path / "a")
    assert [acc for entry in record["evaluations"] for acc in entry["accuracies"]] == made[2]["accuracies"]
    assert record["asked"]["epochs"] == str(made[2]["args"]["epoch_eval_train"]) == "2"
    choice = settle(made[1], *like, "--model", "LeNet", "--epochs", "1")
    assert choice.models == ["LeNet"] and choice.epochs_by == {None: 1}


def test_another_set_in_the_same_file_is_not_the_same(made, tmp_path):
    saved = torch.load(made[1])
    torch.save(saved, tmp_path / "set.pt")
    score(made, tmp_path / "set.pt", "--num_eval", "1", save_path=tmp_path / "out")
    saved["data"][0][0] *= 0.5
    torch.save(saved, tmp_path / "set.pt")
    record = score(made, tmp_path / "set.pt", "--num_eval", "1", save_path=tmp_path / "out")
    assert len({e["digest"] for e in record["evaluations"]}) == len(record["evaluations"]) == 3
    table, minus = (tmp_path / "out" / "table.md").read_text().split("\n\n")
    assert [", digest" in row for row in table.splitlines()[2:]] == [True, True, False]
    assert minus.count("(1 network) |") == 1


def test_the_folder_of_a_stopped_run_is_left_alone(made, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((made[0] / "out" / "checkpoint.pt").read_bytes())
    (tmp_path / "training.log").write_text("a line\n")
    with pytest.raises(UserError, match="has the run of a recipe"):
        score(made, made[1], save_path=tmp_path)
    assert (tmp_path / "training.log").read_text() == "a line\n"


def test_a_value_for_one_network_leaves_the_others_as_the_run_had_them(made):
    choice = settle(made[1], "--model", "LeNet,ConvNetW32", "--epochs", "LeNet=7")
    assert [choice.protocol(model).epoch_eval_train for model in choice.models] == [7, 2]
    with pytest.raises(UserError, match="none of the networks"):
        settle(made[1], "--model", "LeNet", "--lr_net", "MLP=1")
    with pytest.raises(SystemExit):  # both choose the networks
        parsed("evaluate", made[1], "--model", "LeNet", "--eval_mode", "M")


def test_a_set_is_not_scored_on_what_it_was_made_from(made, tmp_path, capsys):
    """A tenth that was held out of one set is in another's training images."""

    def refused(says, **args):
        saved = torch.load(made[1])
        saved["args"].update(args)
        torch.save(saved, tmp_path / "set.pt")
        with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
            settle(tmp_path / "set.pt", "--eval_split", "val", "--seed", "1")

    refused("from all training images", eval_split="test", seed=1)
    refused("--seed 0, which holds out another tenth", eval_split="val", seed=0)
    refused("", eval_split="val", seed=1)
    assert "does not say" not in capsys.readouterr().err
    np.savez(tmp_path / "set.npz", **tiny_arrays())
    settle(tmp_path / "set.npz", "--dataset", "CIFAR10", "--eval_split", "val")
    assert "does not say whether it was made without" in capsys.readouterr().err


def test_an_augmentation_of_the_user_is_named(made, tmp_path):
    saved = torch.load(made[1])
    saved["args"] |= {"dsa_strategy": "flip_updown", "imports": "mine.py"}
    torch.save(saved, tmp_path / "set.pt")
    with pytest.raises(
        UserError, match=r"--dsa_strategy flip_updown, which ddm does not have: .* --import \(it was mine.py"
    ):
        settle(tmp_path / "set.pt")
    assert settle(tmp_path / "set.pt", "--dsa_strategy", "flip").settings.dsa_strategy == "flip"


def test_sets_are_evaluated_in_their_precision_where_it_is_fast(made, tmp_path, monkeypatch):
    saved = torch.load(made[1])
    saved["args"]["precision"] = "bf16"
    torch.save(saved, tmp_path / "set.pt")
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(evaluate.device, "fast_bf16", lambda kind, fast=fast: fast)
        assert settle(tmp_path / "set.pt", "--device", "cpu").settings.precision == precision
        assert settle(tmp_path / "set.pt", "--device", "cpu", "--precision", "bf16").settings.precision == "bf16"


def test_settings_by_network_and_baselines(made, tmp_path):
    argv = ("--model", "ConvNetW32,LeNet", "--lr_net", "0.01,LeNet=0", "--baselines", "random,whole")
    record = score(
        made, made[1], *argv, "--experiments", "0", "--num_eval", "1", "--whole_epochs", "1", save_path=tmp_path
    )
    entries = {(entry["set"], entry["model"]): entry for entry in record["evaluations"]}
    assert len(entries) == 6
    flat = np.array(entries[str(made[1]) + "[0]", "LeNet"]["curves"][0])[:, 0]
    assert np.ptp(flat) < 0.2 and np.abs(flat - np.log(10)).max() < 0.2  # lr 0: nothing is learnt
    assert len(entries["whole training set", "ConvNetW32"]["curves"][0]) == 2
    assert entries["random real images", "ConvNetW32"]["accuracies"] != entries[str(made[1]) + "[0]", "ConvNetW32"]


def test_a_baseline_of_the_whole_set_leaves_the_precision_of_the_others(made, tmp_path, monkeypatch):
    """Their sizes would choose float32 for the set and bfloat16 for the whole set."""
    chosen, images = [], contents(made)[1]

    def choose(settings, where, pixels):
        chosen.append(pixels)
        return Machine(where, settings.precision or ("bf16" if pixels > 150_000_000 else "fp32"))

    monkeypatch.setattr(evaluate.device, "choose", choose)
    torch.save([images, torch.arange(len(images)) % 10], tmp_path / "foreign.pt")
    line = (
        "--dataset",
        "CIFAR10",
        "--space",
        "normalised",
        "--model",
        "ConvNetW32",
        "--epochs",
        "0",
        "--whole_epochs",
        "0",
    )
    for n, more in (("1", ()), ("2", ("--baselines", "whole"))):
        record = score(made, tmp_path / "foreign.pt", *line, "--num_eval", n, *more, save_path=tmp_path / "out")
    assert [entry["precision"] for entry in record["evaluations"]] == ["fp32", "fp32"]
    assert len(record["evaluations"][0]["accuracies"]) == 2 and chosen[-1] > 150_000_000 > chosen[0]


def contents(made):
    saved = torch.load(made[1])
    data = load("CIFAR10", made[0])
    images, labels = saved["data"][0]
    return data, images, labels, data.normalisation.pixels(images)


def keras(pixels, labels):
    np.savez("f.npz", x_train=(pixels * 255).round().byte().permute(0, 2, 3, 1).numpy(), y_train=labels.numpy())


def published(images, labels, path, accs):
    torch.save({"data": [[images, labels]], "accs_all_exps": {"ConvNet": accs}}, path)


FORMATS = {  # written from normalised images, labels, and pixels in [0, 1]
    "the published file": ("a.pt", lambda x, y, p: published(x, y, "a.pt", [0.5])),
    "with numpy's floats": ("b.pt", lambda x, y, p: published(x, y, "b.pt", [np.float64(0.4), np.float32(1)])),
    "a pair": ("c.pt", lambda x, y, p: torch.save([x.requires_grad_(), y], "c.pt")),
    "a pair in the unit interval": ("d.pt", lambda x, y, p: torch.save((p, y), "d.pt")),
    "images and labels": ("e.pt", lambda x, y, p: torch.save({"images": p * 255, "labels": y[:, None]}, "e.pt")),
    "keras": ("f.npz", lambda x, y, p: keras(p, y)),
}


@pytest.mark.parametrize("case", FORMATS)
def test_files_of_others(case, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, images, labels, pixels = contents(made)
    name, write = FORMATS[case]
    write(images, labels, pixels)
    (found,), notes = sets.read(name, data)
    assert torch.equal(found.labels, labels) and any("are taken for" in note for note in notes)
    close = images if name in ("a.pt", "b.pt", "c.pt") else data.normalise(pixels * 255)
    assert (found.images - close).abs().max() < (0.02 if name == "f.npz" else 1e-4)


def test_the_files_of_trajectory_matching(made, tmp_path):
    data, images, labels, _ = contents(made)
    torch.save(images, tmp_path / "images_best.pt")
    with pytest.raises(UserError, match="is one tensor: give the file images_"):
        sets.read(tmp_path / "images_best.pt", data)
    torch.save(labels, tmp_path / "labels_best.pt")
    with pytest.raises(UserError, match=r"give one of its files, such as .*images_best\.pt"):
        sets.read(tmp_path, data)
    (found,), _ = sets.read(tmp_path / "images_best.pt", data)
    assert torch.equal(found.images, images) and torch.equal(found.labels, labels)


def test_arrays_of_other_names(made, tmp_path):
    data, images, labels, _ = contents(made)
    np.savez(tmp_path / "x.npz", images=images.numpy(), labels=labels.numpy())
    (found,), _ = sets.read(tmp_path / "x.npz", data)
    assert torch.equal(found.images, images) and torch.equal(found.labels, labels)
    np.savez(tmp_path / "y.npz", a=images.numpy(), b=labels.numpy())
    with pytest.raises(UserError, match="has the arrays a, b: it needs x_train and y_train, or images and labels"):
        sets.read(tmp_path / "y.npz", data)


def test_grey_arrays_are_laid_out_as_other_formats(tmp_path):
    x, y = np.arange(10 * 64, dtype=np.uint8).reshape(10, 8, 8, 1), np.arange(10)
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y)
    (found,), _ = sets.read(tmp_path / "x.npz", load("Digits", tmp_path))
    assert found.images.stride() == (64, 64, 8, 1)


def test_a_row_for_all_sets_of_a_file_and_no_deviation_of_one_network(made, tmp_path, capsys):
    record = score(made, made[1], "--num_eval", "1", save_path=tmp_path / "a")
    table = capsys.readouterr().out
    accs = [100 * entry["accuracies"][0] for entry in record["evaluations"]]
    assert f"res_DM_CIFAR10_ConvNetW32_2ipc.pt[0] | {accs[0]:.2f} (n 1) |" in table
    assert f", all sets | {np.mean(accs):.2f} ± {np.std(accs):.2f} (n 2) |" in table


def test_paired_differences_to_the_first_set():
    def entries(name, experiment, iteration, *accs, **others):
        entry = dict.fromkeys((*evaluation_table.PROTOCOL, *evaluation_table.MANNER, "dataset", "data"), 0)
        entry |= {"eval_protocol": "last", "set": name, "experiment": experiment, "iteration": iteration}
        file, bracket, _ = name.partition("[")
        entry |= {"model": "ConvNet", "digest": name, "accuracies": list(accs), "file": file if bracket else ""}
        return [entry | others]

    three = [entries(f"a.pt[{k}]", k, 9, 0.5 + k / 10, 0.7 + k / 10) for k in range(3)]
    other = [entries(f"b.pt[{k}]", k, 7, 0.6 + k / 10, 0.8 + k * k / 10) for k in range(3)]
    text = shown([entry for one in three + other for entry in one])
    points = [100 * (k * k / 10 - k / 10) / 2 + 10 for k in range(3)]
    half = protocol.interval(points)
    accs = [100 * acc for (entry,) in other for acc in entry["accuracies"]]
    assert f"| b.pt, all sets | {np.mean(accs):.2f} ± {np.std(accs):.2f} (n 6) |" in text
    assert text.endswith(f"| minus a.pt, all sets, with 95 % interval | ConvNet |\n| --- | --- |\n"
                         f"| b.pt, all sets | {np.mean(points):+.2f} ± {half:.2f} (3 sets) |")  # fmt: skip
    assert "minus a.pt[0]" not in text  # other networks: their iteration differs
    single = entries("a.pt", 0, 9, 0.5, 0.7, 0.6) + entries("c", 0, 9, 0.6, 0.7) + entries("d", 0, 0, 0.1, 0.2)
    single += entries("peers", 0, 9, 0.1, 0.2, eval_protocol="peers")
    _, _, minus = shown(single).partition("minus a.pt")
    assert "| c, eval_protocol last | +5.00 ± 63.53 (2 networks) |" in minus and "| d" not in minus
    assert "peers" not in minus.replace("eval_protocol last", "")


def test_files_of_other_runs_and_baselines_are_paired(made, tmp_path, capsys):
    saved = torch.load(made[1])
    torch.save(saved | {"args": saved["args"] | {"Iteration": 7}}, tmp_path / "other.pt")
    _, images, labels, _ = contents(made)
    torch.save([images, labels], tmp_path / "mine.pt")
    argv = ("--experiments", "0", "--num_eval", "2", "--baselines", "random", "--space", "normalised")
    record = score(made, tmp_path / "mine.pt", made[1], tmp_path / "other.pt", *argv, save_path=tmp_path / "out")
    entries, (out, err) = record["evaluations"], capsys.readouterr()
    assert {(entry["experiment"], entry["iteration"]) for entry in entries} == {(3, 3)}  # of the run
    assert entries[0]["accuracies"] == entries[1]["accuracies"] == entries[2]["accuracies"]  # one set, three files
    assert out.count("(2 networks)") == 3 and "minus " + str(tmp_path / "mine.pt") in out
    assert err.count("not the networks of its run evaluate it") == 1


def measurement(name, model, epochs, digest, *accs):
    entry = dict.fromkeys((*evaluation_table.PROTOCOL, *evaluation_table.MANNER, "dataset", "data", "iteration"), 0)
    file, bracket, number = name.partition("[")
    entry |= {"set": name, "file": file if bracket else "", "experiment": int(number.strip("]") or 0), "digest": digest}
    return entry | {"eval_protocol": "last", "model": model, "epoch_eval_train": epochs, "accuracies": list(accs)}


def test_networks_with_other_epochs_share_rows_and_have_differences():
    epochs = {"ConvNet": 300, "MLP": 100}
    text = shown([measurement(name, m, epochs[m], name, 0.5, 0.7) for name in "ab" for m in epochs])
    assert text.startswith("| set | ConvNet, epoch_eval_train 300 | MLP, epoch_eval_train 100 |")
    cells = "60.00 ± 10.00 (n 2) | 60.00 ± 10.00 (n 2) |"
    assert text.splitlines()[2:4] == [f"| a | {cells}", f"| b | {cells}"]
    assert text.splitlines()[-1].count("(2 networks)") == 2


def test_a_file_whose_sets_were_replaced_has_no_row_for_all_sets():
    two = [measurement(f"a.pt[{k}]", "ConvNet", 1, f"new {k}", 0.5) for k in range(3)]
    assert "a.pt, all sets" in shown(two)
    assert "all sets" not in shown([measurement("a.pt[0]", "ConvNet", 1, "old", 0.9), *two])


def test_a_set_compiled_elsewhere_is_evaluated_uncompiled(made, tmp_path, monkeypatch, capsys):
    saved = torch.load(made[1])
    torch.save(saved | {"args": saved["args"] | {"compile": "on"}}, tmp_path / "set.pt")
    monkeypatch.setattr(evaluate.device, "compiler_problem", lambda where: "no compiler")
    assert settle(tmp_path / "set.pt").settings.compile == "off"
    assert "warning: running uncompiled" in capsys.readouterr().err
    assert settle(tmp_path / "set.pt", "--compile", "on").settings.compile == "on"  # refused later


def test_a_wrong_space_is_noticed(made, tmp_path):
    data, _, labels, pixels = contents(made)
    torch.save([pixels, labels], tmp_path / "x.pt")
    _, notes = sets.read(tmp_path / "x.pt", data, "bytes")
    assert any(note.startswith("warning") and "chance" in note for note in notes)
    _, notes = sets.read(tmp_path / "x.pt", data, "unit")
    assert not notes
    torch.save({"data": [[(pixels - 0.1) / 2, labels]], "mean": [0.1] * 3, "std": [2.0] * 3}, tmp_path / "y.pt")
    (found,), notes = sets.read(tmp_path / "y.pt", data)  # its own constants are undone
    assert (found.images - data.normalise(pixels * 255)).abs().max() < 1e-4 and "other constants" in notes[0]


def test_constants_of_other_types_and_another_std(made, tmp_path):
    """CIFAR10 is published with one mean and two deviations; other code saves arrays or tensors."""
    data, images, labels, pixels = contents(made)
    mean, std = (torch.tensor(x)[:, None, None] for x in (data.mean, data.std))

    def read(images, mean, std):
        torch.save({"data": [[images, labels]], "mean": mean, "std": std}, tmp_path / "x.pt")
        (found,), notes = sets.read(tmp_path / "x.pt", data)
        return found.images, notes

    for constants in ((mean, np.array(data.std)), (tuple(data.mean), data.std)):
        found, notes = read(images, *constants)
        assert torch.equal(found, images) and not notes
        assert (ddm.load(tmp_path / "x.pt").pixels() - pixels).abs().max() < 1e-6
    found, (note,) = read((pixels - mean) / (1.2 * std), data.mean, (1.2 * std).flatten().tolist())
    assert (found - data.normalise(pixels * 255)).abs().max() < 1e-4 and "other constants" in note
    found, (note,) = read(images, None, None)
    assert torch.equal(found, images) and "are taken for normalised" in note
    torch.save({"data": [[images, labels]], "mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, tmp_path / "y.pt")
    with pytest.raises(UserError, match="and std above 0"):
        sets.read(tmp_path / "y.pt", data)
    torch.save(
        {"images": images.tolist(), "labels": labels.tolist(), "mean": data.mean, "std": data.std}, tmp_path / "z.pt"
    )
    (found,), _ = sets.read(tmp_path / "z.pt", data)
    assert (found.images - images).abs().max() < 1e-6
    torch.save({"data": [[images, labels]], "mean": [0.5], "std": [0.5]}, tmp_path / "y.pt")
    with pytest.raises(UserError, match=r"constants \[0.5\] and \[0.5\] for 3 channel"):
        sets.read(tmp_path / "y.pt", data)


def test_random_images_of_a_class_without_training_images(tmp_path):
    x, y = torch.zeros(3, 8, 8, 1, dtype=torch.uint8).numpy(), np.array([0, 1, 1])
    np.savez(tmp_path / "gap.npz", x_train=x, y_train=y, x_test=x, y_test=np.array([0, 1, 2]))
    torch.save([torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])], tmp_path / "set.pt")
    argv = ("--dataset", tmp_path / "gap.npz", "--model", "MLP", "--baselines", "random", "--save_path", tmp_path)
    with pytest.raises(UserError, match="class '2' of gap has no training images"):
        evaluate.run(parsed("evaluate", tmp_path / "set.pt", *argv))


ERRORS = {
    "garbage": (lambda x, y: b"garbage", "can't be read as a condensed set"),
    "another size": (lambda x, y: [x[:, :, :8], y], "CIFAR10 needs [N, 3, 32, 32]"),
    "soft": (lambda x, y: [x, torch.rand(len(x), 10)], "soft labels"),
    "short": (lambda x, y: [x, y[:5]], "20 images and 5 labels"),
    "beyond": (lambda x, y: [x, y + 1], "labels 1 to 10"),
    "nan": (lambda x, y: [x * torch.nan, y], "not finite"),
    "a network": (lambda x, y: {"weight": x}, "neither"),
    "empty": (lambda x, y: {"data": []}, "has no images"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_no_set(case, made, tmp_path):
    data, images, labels, _ = contents(made)
    change, message = ERRORS[case]
    content = change(images, labels)
    path = tmp_path / "x.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError) as error:
        sets.read(path, data)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("to", ["png", "npz", "tensor", "safetensors", "dcbench"])
def test_exports_come_back(to, made, tmp_path):
    if to == "safetensors":
        pytest.importorskip("safetensors")
    data, images, labels, pixels = contents(made)
    out = tmp_path / {"npz": "set.npz", "safetensors": "set.safetensors"}.get(to, "set")
    line = (made[1], "--to", to, "--out", out)
    export_set(*line)
    if to == "dcbench":
        assert (out / "DM" / "CIFAR10" / "IPC2" / "res_DM_CIFAR10_ConvNet_2ipc.pt").exists()
    (found,), _ = sets.read(out, data)
    assert torch.equal(found.labels, labels)
    if to in ("safetensors", "dcbench"):
        assert torch.equal(found.images, images)
    else:
        assert (data.normalisation.pixels(found.images) - pixels).abs().max() < (
            1e-5 if to == "tensor" else 0.5 / 255 + 1e-5
        )
    if to == "npz":
        assert ddm.load(out).class_names == list(data.class_names)
    if to == "safetensors":  # the metadata stays
        metadata = sets.metadata(out)
        assert metadata["args"]["dataset"] == "CIFAR10" and metadata["mean"] == data.mean
        assert "data_path" not in metadata["args"] and str(tmp_path.parent) not in str(metadata)  # it is passed on
        assert ddm.load(out).accuracies == ddm.load(made[1]).accuracies != {}
    if to == "png":
        assert sorted(path.name for path in out.iterdir())[3] == "3_cat" and (out / "3_cat" / "0001.png").exists()
    with pytest.raises(UserError, match="exists already"):
        export_set(*line)


def test_the_hugging_face_folder(made, tmp_path):
    package = pytest.importorskip("datasets")
    data, _, labels, pixels = contents(made)
    export_set(made[1], "--to", "hf", "--out", tmp_path / "hf")
    found = package.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))["train"]
    assert found["label"][:] == labels.tolist() and found.features["label"].names == data.class_names
    image = torch.from_numpy(np.array(found[7]["image"])).permute(2, 0, 1) / 255
    assert (image - pixels[7]).abs().max() < 0.5 / 255 + 1e-5
    front, card = (tmp_path / "hf" / "README.md").read_text().split("\n---\n", 1)
    assert "license: other" in front and "- n<1K" in front and "'3': cat" in front and "num_examples: 20" in front
    assert "path: data/train-" in front and "CIFAR10, condensed to 20 images" in card
    assert package.load_dataset_builder(str(tmp_path / "hf")).info.features == found.features


class Hub(http.server.BaseHTTPRequestHandler):
    """A stand-in for the Hub's API: it makes a repository and takes one commit."""

    received: ClassVar[dict[str, bytes]] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received[self.path] = body
        preupload = json.loads(body)["files"] if "preupload" in self.path else []
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in preupload]
        url = f"http://127.0.0.1:{self.server.server_port}/datasets/me/set"
        answer = {"url": url, "files": files, "errors": [], "warnings": []}
        answer |= {"commitUrl": f"{url}/commit/1", "commitOid": "1"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        """Nothing on the terminal."""


def test_a_push_to_the_hub(made, tmp_path, monkeypatch, capsys):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("datasets")
    line = (made[1], "--to", "hf", "--out")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(hub, "HfApi", partial(hub.HfApi, endpoint=address, token="hf_x"))
        export_set(*line, tmp_path / "a", "--push", "me/set")
        server.shutdown()
    assert f"pushed  {address}/datasets/me/set" in capsys.readouterr().out
    assert b"dataset_info" in Hub.received["/api/validate-yaml"]
    commit = [json.loads(entry) for entry in Hub.received["/api/datasets/me/set/commit/main"].splitlines()]
    sent = {entry["value"]["path"]: entry["value"]["content"] for entry in commit if entry["key"] == "file"}
    assert sent.keys() == {"README.md", "images.png", "data/train-00000-of-00001.parquet"}
    parquet = base64.b64decode(sent["data/train-00000-of-00001.parquet"])
    assert parquet == (tmp_path / "a" / "data" / "train-00000-of-00001.parquet").read_bytes()
    with pytest.raises(UserError, match=r"b is written, but --push 'me/set' failed .*`hf auth login`") as error:
        export_set(*line, tmp_path / "b", "--push", "me/set")  # the server is closed
    assert "\n" not in str(error.value) and (tmp_path / "b" / "README.md").exists()
    with pytest.raises(UserError, match="--push 'a b/c': Repo id must"):
        export_set(*line, tmp_path / "c", "--push", "a b/c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(UserError, match="give --to hf"):
        export_set(made[1], "--to", "png", "--out", tmp_path / "c", "--push", "me/set")


def test_a_clipped_export_says_what_it_costs(made, tmp_path, capsys):
    """Defect U2: 94.8 % were clipped, and the line did not say that this matters."""
    saved = torch.load(made[1])
    saved["data"][0][0].clamp_(-1, 1)
    torch.save(saved, tmp_path / "y.pt")
    export_set(tmp_path / "y.pt", "--to", "npz", "--out", tmp_path / "b.npz")
    assert not capsys.readouterr().err
    saved["data"][0][0][:, :, :4] = 9.0  # an eighth of each image
    torch.save(saved, tmp_path / "x.pt")
    export_set(tmp_path / "x.pt", "--to", "npz", "--out", tmp_path / "a.npz")
    told = capsys.readouterr().err
    assert "12.5 % of the values are outside [0, 1]" in told and "--clip_pixels" in told and "safetensors" in told
    export_set(tmp_path / "x.pt", "--to", "card", "--out", tmp_path / "card")
    assert "12.5 % of the values" in (tmp_path / "card" / "README.md").read_text()
    export_set(tmp_path / "x.pt", "--to", "dcbench", "--out", tmp_path / "exact")
    assert not capsys.readouterr().err
    with pytest.raises(UserError, match=r"would take --to tensor for a \.npz file"):
        export_set(made[1], "--to", "tensor", "--out", tmp_path / "c.npz")


def test_an_export_is_scored_by_the_networks_of_the_set_beside_it(made, tmp_path):
    data, *_ = contents(made)
    out = tmp_path / "set.npz"
    export_set(made[1], "--to", "npz", "--out", out)
    choice = settle(made[1], out, "--data_path", made[0], "--experiments", "0")
    (mine, other), _ = evaluate.rows_of(choice, data)
    assert (mine.experiment, mine.iteration) == (other.experiment, other.iteration) and mine.iteration > 0


def test_the_random_baseline_has_the_images_of_the_runs_own(made):
    """Those of its experiment, here 3: before, they were always of experiment 0."""
    data, *_ = contents(made)
    choice = settle(made[1], "--data_path", made[0], "--baselines", "random", "--experiments", "0")
    (_, random), _ = evaluate.rows_of(choice, data)
    assert torch.equal(random.set.images, real_images(data, [2] * 10, 0, 3))


def test_the_card(made, tmp_path):
    export_set(made[1], "--to", "card", "--out", tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "CIFAR10, condensed to 20 images" in text and "n 3" in text and "terms" in text  # of the two sets, one
    (again,) = [line.split() for line in text.splitlines() if line.startswith("    python ")]
    s = parse("DM_KNearest", *again[2:])
    assert again[1] == "DM_KNearest.py" and (s.ipc, s.first_exp, s.num_exp, s.eval_every) == (2, 3, 1, 0)
    assert (tmp_path / "card" / "images.png").stat().st_size > 1000


def test_the_card_of_a_preset_has_its_command_and_its_sources(data_path, tmp_path):
    quick = ("--preset", "fast,strong", "--pool", "1", "--pool_epochs", "1", "--no-interpolate", "--eval_every", "0")
    _, results = run("DM_DDM", data_path, tmp_path / "run", *quick, "--factor", "2", "--num_exp", "1")
    saved = torch.load(next((tmp_path / "run").glob("res_*.pt")))
    saved["asked"] = {**saved["asked"], "factor": None, "lr_img": None}  # as a preset has them: the data chooses
    torch.save(saved, tmp_path / "set.pt")
    export_set(tmp_path / "set.pt", "--to", "card", "--out", tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text()
    (again,) = [line.split() for line in text.splitlines() if line.startswith("    ddm condense ")]
    s = parse("DM_DDM", *again[2:])
    assert (s.factor, s.lr_img, s.networks, s.interpolate) == (2, results["args"]["lr_img"], "mixed", False)
    assert all(name in text for name in ("Loo et al.", "Kim et al.", "IDM", "DANCE")) and "FRePo" not in text


def png_folder(made, tmp_path, **renamed):
    """An export of pictures without its classes.json, some folders renamed: {old: new}."""
    export_set(made[1], "--to", "png", "--out", tmp_path / "png")
    (tmp_path / "png" / sets.CLASSES).rename(tmp_path / sets.CLASSES)
    for old, new in renamed.items():
        next((tmp_path / "png").glob(f"*_{old}")).rename(tmp_path / "png" / new)
    return tmp_path / "png"


RENAMED = {  # -> the guess, or None where the mapping is certain
    "none": ({}, None),
    "by class": ({"cat": "cat", "dog": "dog"}, None),
    "after the number": ({"cat": "3_katze"}, "guessed 3_katze = 3 cat"),
    "one": ({"cat": "zz"}, "guessed zz = 3 cat"),
}


@pytest.mark.parametrize("case", RENAMED)
def test_renamed_class_folders(case, made, tmp_path):
    """Defect U6: one renamed folder, and all classes were silently those of the alphabetical order."""
    renamed, guess = RENAMED[case]
    data, _, labels, _ = contents(made)
    (found,), notes = sets.read(png_folder(made, tmp_path, **renamed), data)
    assert torch.equal(found.labels.sort().values, labels)
    first = next((tmp_path / "png").glob(f"*{renamed.get('cat', 'cat')}")) / "0000.png"
    pixels = torch.from_numpy(np.array(PIL.Image.open(first))).permute(2, 0, 1) / 255
    cat = found.images[found.labels == 3][0]
    assert (data.normalisation.pixels(cat) - pixels).abs().max() < 1e-5
    warnings = [note for note in notes if note.startswith("warning")]
    assert [guess in warning for warning in warnings] == ([True] if guess else [])


def test_class_folders_of_other_names(made, tmp_path):
    data = contents(made)[0]
    folder = png_folder(made, tmp_path, cat="x", dog="y")
    with pytest.raises(UserError, match="'x' is no class of CIFAR10"):  # two names, two classes: which is which?
        sets.read(folder, data)
    (folder / "x").rename(folder / "cat")
    (folder / "y").rename(folder / "3_cat")
    with pytest.raises(UserError, match="'3_cat' and 'cat' are both class 3"):
        sets.read(folder, data)
    (folder / "3_cat").rename(folder / "5_dog")
    (tmp_path / sets.CLASSES).rename(folder / sets.CLASSES)  # now certain
    with pytest.raises(UserError, match=r"'cat' is not in its classes\.json"):
        sets.read(folder, data)
    with pytest.raises(UserError, match=r"classes\.json has other classes than CIFAR10"):
        sets.read(folder, replace(data, class_names=["crane", *data.class_names[1:]]))
    (folder / sets.CLASSES).unlink()
    for k, sub in enumerate(sorted(folder.iterdir())):
        sub.rename(folder / f"wnid{k}")
    _, notes = sets.read(folder, data)
    assert "guessed wnid0 = 0 airplane, wnid1 = 1 automobile" in notes[0]


def test_classes_of_one_name_are_told_by_their_number(made, tmp_path):
    data, images, labels, _ = contents(made)
    twins = replace(data, class_names=["crane", *data.class_names[1:9], "crane"])
    found = export.Set(
        images, data.normalisation.pixels(images), labels, twins.class_names, data.normalisation, {}, "x", 0
    )
    export.to_png(found, tmp_path / "png")
    (read,), _ = sets.read(tmp_path / "png", twins)
    assert torch.equal(read.labels, labels)
    (tmp_path / "named" / "crane").mkdir(parents=True)
    (tmp_path / "png" / "0_crane" / "0000.png").rename(tmp_path / "named" / "crane" / "0.png")
    with pytest.raises(UserError, match="several classes called 'crane'"):
        sets.read(tmp_path / "named", twins)


def test_spaces_that_pass_for_normalised_are_noticed(made, tmp_path):
    """A real image has dark and bright pixels; in [-1, 1], taken for normalised, it has not."""
    data = contents(made)[0]
    pixels = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for k, (images, warned) in enumerate(((data.normalise(pixels * 255), False), (2 * pixels - 1, True))):
        torch.save([images, torch.arange(10).repeat(2)], tmp_path / f"{k}.pt")
        _, notes = sets.read(tmp_path / f"{k}.pt", data)
        assert any(note.startswith("warning") for note in notes) == warned
    _, notes = sets.read(made[1], data, "unit")  # the file knows better
    assert not notes


def test_what_a_dataset_refuses(made, tmp_path):
    _, images, labels, _ = contents(made)
    torch.save({"data": [[images, labels]]}, tmp_path / "plain.pt")
    torch.save([images, torch.eye(10).repeat(2, 1)], tmp_path / "soft.pt")
    for argv, says in (
        ((made[1], 5), "no number 5"),
        ((made[1], "0"), "no number '0'"),
        ((ROOT / "docs" / "results" / "short" / "best_150",), "no res_.*name a folder with a set"),
        ((tmp_path / "soft.pt",), "soft labels"),
        ((tmp_path / "plain.pt", 0, True), "does not say how its images were normalised"),
    ):
        with pytest.raises(UserError, match=says):
            sets.CondensedDataset(*argv)


@pytest.mark.parametrize("module", ["ddm", "utils"])
def test_as_a_dataset_in_one_import(module, made):
    CondensedDataset = importlib.import_module(module).CondensedDataset
    data, images, labels, pixels = contents(made)
    train = CondensedDataset(made[1], transform=lambda x: x * 2)
    assert len(train) == 20 and torch.equal(train[7][0], images[7] * 2) and train[7][1] == labels[7]
    assert train.class_names == data.class_names and (train.mean, train.std) == (data.mean, data.std)
    assert (train.pixels() - pixels).abs().max() < 1e-6
    as_pixels = CondensedDataset(made[1], pixels=True)
    assert (as_pixels.images - pixels).abs().max() < 1e-6 and torch.equal(as_pixels.pixels(), as_pixels.images)


def test_the_commands(made, tmp_path, monkeypatch, capsys):
    out = tmp_path / "set.npz"
    monkeypatch.setattr(sys, "argv", ["ddm", "export", str(made[1]), "--to", "npz", "--out", str(out)])
    entry.main()
    assert "20 images of 10 classes" in capsys.readouterr().out
    line = [str(out), "--dataset", "CIFAR10", "--data_path", str(made[0]), "--num_eval", "1", "--epochs", "1"]
    done = command_line("evaluate", *line, "--model", "LeNet", "--save_path", str(tmp_path / "out"))
    assert done.returncode == 0 and "| LeNet |" in done.stdout and "taken for bytes" in done.stderr, done.stderr
    assert (tmp_path / "out" / "table.md").exists()
    with pytest.raises(UserError, match="give --dataset"):
        settle(out)


def test_a_runs_folder_or_results_stand_for_its_set(made, tmp_path, capsys):
    """Defect U9: they had to be spelt out, and the messages did not say so."""
    folder, path, _ = made
    data = load("CIFAR10", folder)
    whole, _ = sets.read(path, data)
    for other in (path.parent, path.parent / "results.json"):
        assert sets.metadata(other)["args"]["recipe"] == "DM_KNearest"
        for own, one in zip(whole, sets.read(other, data)[0], strict=True):
            assert torch.equal(own.images, one.images)
        assert torch.equal(sets.CondensedDataset(other, 1).images, whole[1].images)
    command("export", path.parent, "--to", "npz", "--out", tmp_path / "set.npz")
    assert "20 images of 10 classes" in capsys.readouterr().out
    (tmp_path / "two").mkdir()
    for name in ("res_a.pt", "res_b.pt"):
        (tmp_path / "two" / name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"has 2 sets, res_a\.pt and others: give one of the files"):
        sets.metadata(tmp_path / "two")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"x\.npy can't be read as a condensed set \(no torch file, or one that"):
        sets.metadata(tmp_path / "x.npy")


def test_an_exported_folder_is_evaluated_like_its_set(data_path, tmp_path, capsys):
    run("DM_KNearest", data_path, tmp_path / "run", "--eval_every", "0", "--lr_net", "0.02", "--clip_pixels")
    command("export", tmp_path / "run", "--to", "png", "--out", tmp_path / "pictures", "--data_path", data_path)
    for name, path in (("a", tmp_path / "run"), ("b", tmp_path / "pictures")):
        command("evaluate", path, "--data_path", data_path, "--save_path", tmp_path / name, "--num_eval", "1")
    first, second = (json.loads((tmp_path / name / "results.json").read_text())["evaluations"][0] for name in "ab")
    same = ("model", "epoch_eval_train", "lr_net", "seed", "experiment", "iteration", "dataset")
    assert {key: first[key] for key in same} == {key: second[key] for key in same} and first["lr_net"] == 0.02
    for picture in (tmp_path / "pictures" / "3_cat").iterdir():
        picture.unlink()
    capsys.readouterr()
    command(
        "evaluate", tmp_path / "pictures", "--data_path", data_path, "--save_path", tmp_path / "d", "--num_eval", "1"
    )
    assert "pictures has no pictures of cat" in capsys.readouterr().err
    (tmp_path / "pictures" / "classes.json").unlink()
    with pytest.raises(SystemExit):
        command("evaluate", tmp_path / "pictures", "--data_path", data_path, "--save_path", tmp_path / "c")
    assert "no file says which data set it is of: give --dataset" in capsys.readouterr().err


def test_the_card_of_a_set_with_the_users_objective_names_it(tmp_path):
    def l1(real, syn, settings):
        return {"L_1": (real.embedding.mean(1) - syn.embedding.mean(1)).abs().sum(1)}

    quick = {"Iteration": 1, "batch_real": 4, "num_eval": 1, "epoch_eval_train": 0, "compile": "off"}
    made = ddm.condense(dataset="Digits", ipc=1, model="ConvNetW32", objective=l1, **quick)
    assert repr(made).startswith("CondensedDataset(10 images of 1x8x8, normalised, ")
    made.save(tmp_path / "l1.pt")
    command("export", tmp_path / "l1.pt", "--to", "card", "--out", tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "ddm.condense with the objective `l1`" in card and "Made with" not in card and "mm_ratio" not in card
    assert "Malakshan" in card and "Loo et al." not in card


def test_the_hint_of_an_unknown_network(data_path, tmp_path, capsys):
    saved, _ = run("DM_KNearest", data_path, tmp_path, "--eval_every", "0", "--num_eval", "1")
    for more, where in (({}, "its recipe: DM_KNearest"), ({"imports": "mine.py"}, "it was mine.py")):
        saved["args"] |= {"model": "Mine", **more}
        torch.save(saved, tmp_path / "mine.pt")
        with pytest.raises(SystemExit):
            command("evaluate", tmp_path / "mine.pt", "--data_path", data_path, "--save_path", tmp_path / "x")
        hint = f"give another --model, or the file that registers it with --import ({where})\n"
        assert capsys.readouterr().err.endswith(hint)


def test_the_accuracies_of_a_run_that_goes_on_belong_to_their_sets(made, tmp_path):
    pytest.importorskip("safetensors")
    saved = torch.load(made[1])
    saved["args"] = saved["args"] | {"num_exp": 5}  # requested; two sets are there
    torch.save(saved, tmp_path / "set.pt")
    accs = made[2]["accuracies"]
    for experiment in (0, 1):
        expected = {"ConvNetW32": accs[3 * experiment : 3 * experiment + 3]}
        assert ddm.load(tmp_path / "set.pt", experiment).accuracies == expected
        command(
            "export",
            tmp_path / "set.pt",
            "--experiment",
            experiment,
            "--to",
            "safetensors",
            "--out",
            tmp_path / "s.safetensors",
        )
        assert ddm.load(tmp_path / "s.safetensors").accuracies == expected
        again = parsed("DM_KNearest", "--like", tmp_path / "s.safetensors")
        assert (again.first_exp, again.num_exp, again.k) == (3 + experiment, 1, None)  # k was chosen, not requested
        (tmp_path / "s.safetensors").unlink()


def test_the_pictures_of_a_whitened_set_are_pixels(tmp_path):
    # A transform of 3x32x32 would take ten seconds.
    few = ("--dataset", "Digits", "--eval_every", "0", "--num_eval", "1", "--epoch_eval_train", "0")
    run("DM_KNearest", tmp_path, tmp_path / "run", *few, "--zca", "--lr_img", "0")
    command("export", tmp_path / "run", "--to", "png", "--out", tmp_path / "png")
    data = load("Digits", tmp_path)
    (found,), _ = sets.read(tmp_path / "png", data)
    expected = ddm.load(tmp_path / "run").pixels()
    assert (data.normalisation.pixels(found.images) - expected).abs().max() < 0.51 / 255
    line = ("--num_eval", "1", "--epochs", "1", "--data_path", tmp_path, "--save_path", tmp_path / "scores")
    command("evaluate", tmp_path / "png", "--dataset", "Digits", *line)  # needs no --zca


def test_training_settings_of_the_command_line_reach_the_networks(tmp_path):
    torch.save([torch.rand(4, 3, 32, 32), torch.arange(4)], tmp_path / "x.pt")
    line = ("--dataset", "CIFAR10", "--dsa_strategy", "flip", "--batch_train", "7", "--seed", "3", "--num_eval", "2")
    own = evaluate.settle(parsed("evaluate", tmp_path / "x.pt", *line)).protocol("LeNet")
    assert (own.dsa_strategy, own.batch_train, own.seed, own.num_eval) == ("flip", 7, 3, 2)


def test_the_card_of_arrays_names_no_data_set(tmp_path):
    arrays = tiny_arrays()
    data = tuple(arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    quick = {"Iteration": 1, "batch_real": 4, "num_eval": 1, "epoch_eval_train": 0, "compile": "off", "ipc": 1}
    ddm.condense(data=data, model="ConvNetW32", preset="dm", **quick).save(tmp_path / "set.pt")
    command("export", tmp_path / "set.pt", "--to", "card", "--out", tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text()
    assert card.startswith("# your data, condensed to 10 images") and "Made with" not in card


def test_a_shared_set_has_no_path_of_this_machine(tmp_path):
    pytest.importorskip("safetensors")
    private = tmp_path / "private"
    private.mkdir()
    np.savez(private / "mine.npz", **tiny_arrays())
    (private / "counts.json").write_text('{"*": 1}')
    flags = (
        "--dataset",
        private / "mine.npz",
        "--ipc",
        private / "counts.json",
        "--num_eval",
        "1",
        "--eval_every",
        "0",
    )
    run("DM_KNearest", tmp_path, tmp_path / "run", *flags)
    for to, out in (("safetensors", "set.safetensors"), ("png", "png"), ("card", "card")):
        command("export", tmp_path / "run", "--to", to, "--out", tmp_path / out)
        files = [tmp_path / out] if to == "safetensors" else list((tmp_path / out).rglob("*.*"))
        assert not any(str(private).encode() in file.read_bytes() for file in files if file.is_file())
    assert ddm.load(tmp_path / "set.safetensors").metadata["args"]["dataset"] == "./mine.npz"


def test_the_data_set_of_a_foreign_set_survives_safetensors(made, tmp_path):
    pytest.importorskip("safetensors")
    saved = torch.load(made[1])
    torch.save({"data": saved["data"][:1]}, tmp_path / "foreign.pt")
    line = ("--dataset", "CIFAR10", "--data_path", made[0], "--to", "safetensors", "--out", tmp_path / "s.safetensors")
    command("export", tmp_path / "foreign.pt", *line)
    assert settle(tmp_path / "s.safetensors").settings.dataset == "CIFAR10"


def test_measurements_of_another_precision_are_other_rows(made):
    choice = settle(made[1], "--data_path", made[0])
    data, *_ = contents(made)
    (row, *_), _ = evaluate.rows_of(choice, data)
    keys = [evaluate.key(choice, "digest", row, "ConvNet", Machine("cpu", name)) for name in ("fp32", "bf16")]
    assert keys[0] != keys[1] and [key["precision"] for key in keys] == ["fp32", "bf16"]


def test_a_note_has_the_value_that_is_used(made, tmp_path, capsys):
    saved = torch.load(made[1])
    for epochs in (10, 20):
        saved["args"] = saved["args"] | {"epoch_eval_train": epochs}
        torch.save(saved, tmp_path / f"{epochs}.pt")
    choice = settle(tmp_path / "10.pt", tmp_path / "20.pt", "--eval_protocol", "peers")
    assert "different --epochs (10, 20): using 2000" in capsys.readouterr().err
    assert choice.epochs_by == {None: 2000}


def test_an_export_of_data_named_like_a_published_set_is_not_taken_for_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    np.savez(tmp_path / "CIFAR10.npz", **tiny_arrays())
    np.savez(tmp_path / "Digits.npz", **tiny_arrays())
    monkeypatch.chdir(tmp_path)
    run("DM_KNearest", tmp_path, tmp_path / "run", "--dataset", "./Digits.npz", "--num_eval", "1", "--eval_every", "0")
    (tmp_path / "elsewhere").mkdir()
    for to, out in (("safetensors", "set.safetensors"), ("png", "png")):
        command("export", tmp_path / "run", "--to", to, "--out", tmp_path / out)
        assert settle(tmp_path / out).settings.dataset == "./Digits.npz"
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.chdir(tmp_path / "elsewhere")
            command("evaluate", tmp_path / out, "--save_path", tmp_path / "scores")
        assert "Digits.npz" in capsys.readouterr().err
    assert parsed("condense", "--like", tmp_path / "set.safetensors").dataset == "./Digits.npz"


def test_the_file_that_registers_a_network_keeps_its_name_only(made, tmp_path, capsys):
    pytest.importorskip("safetensors")
    saved = torch.load(made[1])
    saved["args"] = saved["args"] | {"imports": "/private/net.py", "model": "Mine", "prior": "/private/prior"}
    torch.save(saved, tmp_path / "set.pt")
    for to, out in (("safetensors", "set.safetensors"), ("card", "card")):
        command("export", tmp_path / "set.pt", "--to", to, "--out", tmp_path / out)
    assert "--import net.py" in (tmp_path / "card" / "README.md").read_text()
    assert b"/private" not in (tmp_path / "set.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"with --import \(it was net.py\)"):
        settle(tmp_path / "set.safetensors")


def test_an_export_of_a_foreign_set_has_the_networks_of_the_set_beside_it(made, tmp_path):
    pytest.importorskip("safetensors")
    saved = torch.load(made[1])
    torch.save({"data": saved["data"][:1]}, tmp_path / "foreign.pt")
    data, *_ = contents(made)
    line = ("--dataset", "CIFAR10", "--data_path", made[0])
    for to, out in (("png", "png"), ("safetensors", "s.safetensors")):
        command("export", tmp_path / "foreign.pt", *line, "--to", to, "--out", tmp_path / out)
        (mine, _, other), _ = evaluate.rows_of(settle(made[1], tmp_path / out, *line), data)
        assert (mine.experiment, mine.iteration) == (other.experiment, other.iteration) == (3, 3)


def test_like_of_arrays_needs_a_data_set(tmp_path, capsys):
    arrays = tiny_arrays()
    data = tuple(arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    quick = {"Iteration": 1, "batch_real": 4, "num_eval": 1, "epoch_eval_train": 0, "compile": "off", "ipc": 1}
    ddm.condense(data=data, model="ConvNetW32", preset="dm", **quick).save(tmp_path / "set.pt")
    with pytest.raises(SystemExit):
        parsed("condense", "--like", tmp_path / "set.pt")
    assert "does not name its data set: give --dataset" in capsys.readouterr().err
    assert parsed("condense", "--like", tmp_path / "set.pt", "--dataset", "Digits").dataset == "Digits"


def test_a_runs_folder_stands_for_its_results_in_like(made):
    assert parsed("DM_KNearest", "--like", made[0] / "out").first_exp == 3
