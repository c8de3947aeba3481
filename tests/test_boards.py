"""Dashboards: Weights & Biases by a stand-in of its API and offline; TensorBoard's files are in test_examples.py."""

import sys
from types import SimpleNamespace

import pytest
from conftest import run

from ddm.errors import UserError


class WandBStandIn:
    """The part of wandb's API that a run calls; keeps what it gets."""

    def __init__(self):
        self.runs = []
        self.Image = lambda pixels: ("image", pixels.shape, str(pixels.dtype))

    def init(self, **options):
        started = SimpleNamespace(options=options, logged=[], metrics=[], finished=0, config={}, summary={})
        started.log = started.logged.append
        started.define_metric = lambda *names, **more: started.metrics.append((names, more))
        started.config = SimpleNamespace(values={}, update=lambda x, allow_val_change: started.config.values.update(x))
        started.finish = lambda: setattr(started, "finished", started.finished + 1)
        self.runs.append(started)
        return started


def test_wandb(data_path, tmp_path, monkeypatch):
    api = WandBStandIn()
    monkeypatch.setitem(sys.modules, "wandb", api)
    folder = tmp_path / "run1"
    line = ("--wandb", "--Iteration", "10", "--eval_every", "0", "--num_eval", "1", "--epoch_eval_train", "0")
    run("DM_KNearest", data_path, folder, *line)
    (first,) = api.runs
    assert first.options["name"] == "run1" and first.options["dir"] == str(folder)
    assert first.metrics == [(("*",), {"step_metric": "iteration"})] and first.finished == 1
    names = {name for point in first.logged for name in point}
    assert {"iteration", "loss/L_MMD/exp0", "loss/total/exp0", "accuracy/ConvNetW32, condensed/exp0"} <= names
    images = [point["images/exp0"] for point in first.logged if "images/exp0" in point]
    assert len(images) == 2 and images[0][0] == "image" and images[0][1][2] == 3 and images[0][2] == "uint8"
    assert first.config.values["Iteration"] == 10 and set(first.summary) == {"accuracy/mean", "accuracy/std"}
    run("DM_KNearest", data_path, folder, *line, "--num_exp", "2")  # the same run there
    assert len(api.runs) == 2 and api.runs[1].options["id"] == first.options["id"]
    assert api.runs[1].options["resume"] == "allow"
    assert not {"loss/L_MMD/exp0"} & {name for point in api.runs[1].logged for name in point}


def test_wandb_that_can_not_start_is_one_line(data_path, tmp_path, monkeypatch):
    api = WandBStandIn()

    def init(**options):
        raise RuntimeError("No API key configured.\nUse `wandb login`.")

    api.init = init
    monkeypatch.setitem(sys.modules, "wandb", api)
    with pytest.raises(
        UserError, match=r"--wandb can't start \(RuntimeError: No API key configured.\): run `wandb login`"
    ):
        run("DM_KNearest", data_path, tmp_path, "--wandb", "--Iteration", "1", "--eval_every", "0", "--num_eval", "1")
    assert not (tmp_path / "wandb" / "id.txt").exists()


def test_wandb_offline(data_path, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run("DM_KNearest", data_path, tmp_path, "--wandb", "--Iteration", "1", "--eval_every", "0", "--num_eval", "1")
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_dashboard_without_its_package_is_one_line(name, data_path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else "wandb", None)
    with pytest.raises(UserError, match=f"--{name} needs the package {name}: pip install {name}"):
        run("DM_KNearest", data_path, tmp_path / "new", f"--{name}")
    assert not (tmp_path / "new").exists()
