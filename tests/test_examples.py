"""The example reaches what results.json says, as a script and as a notebook; and what a run writes while it runs."""

import json
import runpy
import sys

import pytest
import torch
from conftest import ROOT, run

EXAMPLE = ROOT / "examples" / "train_on_condensed.py"
NOTEBOOK = json.loads(EXAMPLE.with_suffix(".ipynb").read_text())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    argv = "--dataset Digits --ipc 10 --batch_real 64 --Iteration 10 --epoch_eval_train 150 --lr_net 0.05"
    run("DM_KNearest", folder, folder / "result_digits", *argv.split(), "--eval_every", "0")
    return folder


@pytest.fixture(autouse=True)
def without_windows(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")


def test_the_script(digits, monkeypatch, capsys):
    path = next((digits / "result_digits").glob("res_*.pt"))
    monkeypatch.chdir(digits)  # any folder
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(path), str(digits)])
    capsys.readouterr()
    runpy.run_path(str(EXAMPLE))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "100 images of 10 classes, made from Digits" and out[1].startswith("100 images: ")
    told = json.loads((digits / "result_digits" / "results.json").read_text())
    accuracy = float(out[1].split()[2]) / 100
    assert told["mean"] > 0.7 and abs(accuracy - told["mean"]) < 0.1
    assert f"a mean of {100 * told['mean']:.2f} % (n {told['n']})" in out[1]


def test_the_notebook_is_the_script():
    maker = runpy.run_path(str(ROOT / "scripts" / "notebook.py"))
    made = maker["cells"](EXAMPLE.read_text())
    kept = ("cell_type", "id", "source")
    assert [[cell[k] for k in kept] for cell in NOTEBOOK["cells"]] == [[cell[k] for k in kept] for cell in made]


def test_the_notebook_runs_in_its_folder(monkeypatch, capsys):
    """With a set of fewer iterations and networks; the clone is found without an installation."""
    from ddm import library

    monkeypatch.chdir(EXAMPLE.parent)
    before = sorted(EXAMPLE.parent.iterdir())
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(ROOT))])
    condense = library.condense
    monkeypatch.setattr("ddm.condense", lambda **given: condense(**given | fewer))
    fewer = {"Iteration": 5, "num_eval": 1, "epoch_eval_train": 60}
    state: dict = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec(cell["source"], state)
    assert str(ROOT) in sys.path
    assert state["accuracy"] > 0.7 and "ddm measured a mean of" in capsys.readouterr().out
    assert sorted(EXAMPLE.parent.iterdir()) == before


def test_the_notebook_stores_its_outputs():
    outputs = [output for cell in NOTEBOOK["cells"] for output in cell.get("outputs", ())]
    text = "".join("".join(output.get("text", "")) for output in outputs)
    assert "100 images of 10 classes" in text and "% (n 3)" in text
    (image,) = (output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    assert len(image) < 60_000
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    stored = json.dumps(NOTEBOOK)
    assert not any(word in stored for word in ("/work", "/root", "/home", "/tmp", "it/s", "Traceback", "iopub"))


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def test_metrics_of_a_run_that_was_stopped_are_those_of_one_that_was_not(data_path, tmp_path):
    argv = ("--Iteration", "20", "--eval_every", "10", "--batch_real", "2", "--ipc", "1")
    for name in ("whole", "parts"):
        run("DM_KNearest", data_path, tmp_path / name, *argv, "--num_exp", "1")
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:  # what a killed process had done after its checkpoint
        # An accuracy of the iteration of the checkpoint: its evaluation had not been recorded.
        file.write('{"kind": "accuracy", "experiment": 0, "iteration": 20, "ConvNetW32, condensed": 0}\n')
        file.write('{"kind": "loss", "experiment": 1, "iteration": 10, "total": 0}\n{"kind": "lo')
    for name in ("whole", "parts"):
        run("DM_KNearest", data_path, tmp_path / name, *argv, "--num_exp", "2")
    whole, parts = lines_of(tmp_path / "whole"), lines_of(tmp_path / "parts")
    assert whole == parts
    losses = [line for line in whole if line["kind"] == "loss"]
    assert [(line["experiment"], line["iteration"]) for line in losses] == [(0, 10), (0, 20), (1, 10), (1, 20)]
    assert losses[0]["total"] == pytest.approx(sum(losses[0][name] for name in ("L_MMD", "L_ICD")))
    accuracies = [line for line in whole if line["kind"] == "accuracy"]
    assert len(accuracies) == 6 and all(0 <= line["ConvNetW32, random real"] <= 1 for line in accuracies[::3])


def test_tensorboard(data_path, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("DM_KNearest", data_path, tmp_path, "--tensorboard", "--Iteration", "10", "--eval_every", "0")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = lines_of(tmp_path)
    (point,) = events.Scalars("loss/total/exp0")
    assert point.step == 10 and point.value == pytest.approx(logged[0]["total"])
    assert "images/exp0" in events.Tags()["images"] and "accuracy/mean" in events.Tags()["scalars"]
    assert torch.load(next(tmp_path.glob("res_*.pt")))["args"]["tensorboard"] is True
