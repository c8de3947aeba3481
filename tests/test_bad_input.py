"""What users mistype, and what arrives damaged: exit status 2, one line that names the culprit, nothing written."""

import io
import os
import pickle
import runpy
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT, parsed, recipe_of, tiny_arrays
from test_resume import write_content

from ddm.commands import condense
from ddm.runs import progress


def tree(folder):
    """Names and contents of everything in a folder; None where it does not exist."""
    if not folder.is_dir():
        return folder.read_bytes() if folder.exists() else None
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys, monkeypatch, save_path, named, argv, recipe="DM_GramMatching"):
    """Run a recipe's script in this process and check how it ends."""
    before = tree(save_path)
    monkeypatch.setattr("sys.argv", [f"{recipe}.py", *argv])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / f"{recipe}.py"), run_name="__main__")
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.count("\n") == 1 and len(err) < 300 and named in err and "Traceback" not in err
    assert tree(save_path) == before


# argv -> what the one line must name
ARGUMENTS = {
    "--dataset CIFAR11": "'CIFAR10'",
    "--dataset Nope --data_path nowhere": "'Nope'",
    "--model ConvNet_gran": "'ConvNet_gram'",
    "--model MLP": "--model MLP has no published feature maps",
    "--model ResNet18 --style_tap conv": "choose from published",
    "--style_layers 3": "only 0 to 2",
    "--style_layers first": "--style_layers",
    "--style_tap fc": "--style_tap",
    "--like nowhere.json": "--like",
    "--dsa_strategy color_crap": "'crop'",
    "--dsa_strategy color__crop": "part of the DSA strategy ''",
    "--eval_mode X": "eval_mode 'X'",
    "--dataset Digits --eval_mode M": "--eval_mode M on Digits",
    "--ipc 0": "--ipc: 0 is below 1",
    "--ipc -3": "--ipc",
    "--ipc many": "'many' is not an integer",
    "--ipc 1.5": "'1.5' is not an integer",
    "--ipc 9": "lower --ipc to 8",
    "--ipc 1000000000000": "lower --ipc to 8",
    "--ipc": "--ipc",
    "--Iteration 0": "--Iteration",
    "--Iteration 1e3": "--Iteration",
    "--batch_real 0": "--batch_real",
    "--style_ratio nan": "--style_ratio",
    "--style_ratio inf": "--style_ratio",
    "--style_ratio 1e999": "--style_ratio",
    "--style_ratio -1": "--style_ratio",
    "--style_ratio much": "--style_ratio",
    "--lr_img -1": "--lr_img",
    "--lr_img nan": "--lr_img",
    "--lr_schedule step": "--lr_schedule",
    "--momentum_img 1": "--momentum_img",
    "--momentum_img nan": "--momentum_img",
    "--num_exp 0": "--num_exp",
    "--first_exp -1": "--first_exp",
    "--num_eval 0": "--num_eval",
    "--epoch_eval_train -1": "--epoch_eval_train",
    "--lr_net nan": "--lr_net",
    "--batch_train 0": "--batch_train",
    "--eval_every -1": "--eval_every",
    "--eval_split train": "--eval_split",
    "--seed -1": "--seed",
    "--seed 0.5": "--seed",
    "--class_chunk -1": "--class_chunk",
    "--precision fp16": "--precision",
    "--compile maybe": "--compile",
    "--device cuda:99": "'cuda:99'",
    "--device gpu": "'gpu'",
    "--init random": "--init",
    "--real_sampling best": "real_sampling 'best'",
    "--on_nonfinite ignore": "--on_nonfinite",
    "--resume yes": "--resume",
    "--resume must": "--resume must",
    "--checkpoint_every 0": "--checkpoint_every",
    "--preset fastest": "'fastest' is none of fast",
    "--preset fast,slow": "'slow'",
    "--preset=": "--preset: ''",
    "--like=": "--like: the path is empty",
    "--iterations 5": "'--Iteration'",
    "extra": "'extra'",
    "--save_path=": "--save_path",
    "--data_path=": "--data_path",
    "--icd_ratio 3": "'--icd_ratio'",
    "--lr_img 1e300": "--lr_img",
    "--lr_net 1e300": "--lr_net",
    "--batch_train 9999999999999999999999999": "--batch_train",
    "--seed 1" + 400 * "0": "--seed",
    "--save_path /tmp/" + 300 * "a": "File name too long",
}


@pytest.mark.parametrize("argv", ARGUMENTS)
def test_arguments(argv, data_path, tmp_path, capsys, monkeypatch):
    save_path = tmp_path / "out"
    command = [*QUICK, "--model", "ConvNetW32_gram", "--data_path", str(data_path), "--save_path", str(save_path)]
    monkeypatch.chdir(tmp_path)
    refused(capsys, monkeypatch, save_path, ARGUMENTS[argv], [*command, *argv.split()])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("argv", "named"), [("--k 2", "--k 2"), ("--k 0", "--k"), ("--icd_ratio nan", "--icd_ratio")])
def test_arguments_of_intra_class_diversity(argv, named, data_path, tmp_path, capsys, monkeypatch):
    command = [*QUICK, "--data_path", str(data_path), "--save_path", str(tmp_path / "out"), *argv.split()]
    refused(capsys, monkeypatch, tmp_path / "out", named, command, "DM_KNearest")


def changed(**change):
    """An .npz writer: the tiny data set with some arrays changed, or left out where the change gives None."""

    def write(path):
        arrays = tiny_arrays()
        arrays |= {name: make(arrays[name]) for name, make in change.items()}
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})

    return write


def half(path):
    changed()(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def pickled(path):
    np.savez(path, **tiny_arrays() | {"y_train": np.array([{"a": 1}] * 80, dtype=object)}, allow_pickle=True)


def other_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "not arrays")


# what is wrong with CIFAR10.npz -> how it is written, what the line names
FILES = {
    "empty file": (lambda path: path.write_bytes(b""), "CIFAR10.npz"),
    "text": (lambda path: path.write_text("hello"), "CIFAR10.npz"),
    "half a file": (half, "CIFAR10.npz"),
    "another zip": (other_zip, "no array x_train"),
    "pickled labels": (pickled, "CIFAR10.npz"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"x_train": 1})), "CIFAR10.npz"),
    "no labels": (changed(y_train=lambda y: None), "y_train"),
    "no test images": (changed(x_test=lambda x: None), "x_test"),
    "floats": (changed(x_train=lambda x: x / 255), "x_train is float64"),
    "nan": (changed(x_train=lambda x: np.full(x.shape, np.nan)), "x_train is float64"),
    "grey": (changed(x_train=lambda x: x[..., 0]), "x_train is uint8 [80, 32, 32, 1]"),
    "channels first": (changed(x_test=lambda x: x.transpose(0, 3, 1, 2)), "x_test"),
    "another size": (changed(x_test=lambda x: x[:, :16, :16]), "x_test"),
    "fewer labels": (changed(y_train=lambda y: y[:-1]), "y_train"),
    "label 10": (changed(y_train=lambda y: np.where(y == 9, 10, y)), "labels 0 to 10"),
    "label -1": (changed(y_test=lambda y: np.where(y == 0, -1, y)), "labels -1 to 9"),
    "float labels": (changed(y_train=lambda y: y.astype(float)), "y_train is float64"),
    "no training images": (changed(x_train=lambda x: x[:0], y_train=lambda y: y[:0]), "x_train is empty"),
    "a class without images": (changed(y_train=lambda y: np.where(y == 3, 4, y)), "cat"),
}


@pytest.mark.parametrize("case", FILES)
def test_data_files(case, tmp_path, capsys, monkeypatch):
    write, named = FILES[case]
    write(tmp_path / "CIFAR10.npz")
    command = [*QUICK, "--model", "ConvNetW32_gram", "--data_path", str(tmp_path)]
    refused(capsys, monkeypatch, tmp_path / "out", named, [*command, "--save_path", str(tmp_path / "out")])


@pytest.fixture(scope="module")
def stopped(data_path, tmp_path_factory):
    """The folder of a run, and its command."""
    folder = tmp_path_factory.mktemp("stopped")
    command = [*QUICK, "--model", "ConvNetW32_gram", "--data_path", str(data_path), "--eval_every", "0"]
    settings = parsed("DM_GramMatching", *command, "--save_path", folder)
    condense.run_recipe(recipe_of("DM_GramMatching"), settings)
    return folder, command


def rewrite(change):
    """Write a checkpoint that is whole and has the right digest, and a changed state."""

    def write(path):
        state = torch.load(io.BytesIO(torch.load(path)["state"].numpy().tobytes()))
        change(state)
        write_content(path, state)

    return write


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


CHECKPOINTS = {
    "empty": (lambda path: path.write_bytes(b""), "checkpoint.pt"),
    "cut": (cut, "checkpoint.pt"),
    "a flipped bit": (flip, "checkpoint.pt"),
    "garbage": (lambda path: path.write_bytes(os.urandom(1000)), "checkpoint.pt"),
    "code": (lambda path: path.write_bytes(pickle.dumps(os.system)), "checkpoint.pt"),
    "a list": (lambda path: torch.save([1, 2], path), "checkpoint.pt"),
    "no images": (rewrite(lambda state: state.pop("images")), "images"),
    "nothing chosen": (rewrite(lambda state: state.update(chosen={})), "do not fit"),
    "odd evaluations": (rewrite(lambda state: state.update(evaluations=["x"])), "do not fit"),
    "experiment -5": (rewrite(lambda state: state.update(experiment=-5)), "do not fit"),
    "an iteration without images": (rewrite(lambda state: state.update(iteration=1)), "do not fit"),
    "text for images": (rewrite(lambda state: state.update(sets=["x"])), "finite numbers"),
    "nan": (rewrite(lambda state: state["sets"][0].fill_(torch.nan)), "finite numbers"),
    "another shape": (rewrite(lambda state: state.update(sets=[torch.zeros(3)])), "the checkpoint's images are [3]"),
    "other arguments": (rewrite(lambda state: state["requested"].update(ipc=7)), "--ipc 7 there, 2 now"),
    "another recipe": (rewrite(lambda state: state.update(recipe="DM_DDM")), "was written by DM_DDM, this is"),
    "a version of text": (rewrite(lambda state: state.update(format="3")), "its format is '3'"),
    "other data": (rewrite(lambda state: state.update(data="0", concluded=None)), "not the data"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case, stopped, tmp_path, capsys, monkeypatch):
    folder, command = stopped
    shutil.copytree(folder, tmp_path / "out")
    damage, named = CHECKPOINTS[case]
    damage(tmp_path / "out" / progress.NAME)
    shutil.copy(tmp_path / "out" / progress.NAME, tmp_path / "out" / progress.PREVIOUS)
    refused(capsys, monkeypatch, tmp_path / "out", named, [*command, "--save_path", str(tmp_path / "out")])


def locked(folder):
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


@pytest.mark.skipif(sys.platform == "win32", reason="paths and locks of POSIX")
@pytest.mark.parametrize("case", ["a file", "below a file", "nowhere to write", "locked", "old results", "not empty"])
def test_save_paths(case, data_path, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    save_path, named, more = {
        "a file": (tmp_path / "file", "--save_path", []),
        "below a file": (tmp_path / "file" / "x", "--save_path", []),
        "nowhere to write": ("/proc/nowhere", "--save_path", []),
        "locked": (tmp_path / "folder", "another process", []),
        "old results": (tmp_path / "folder", "results.json", []),
        "not empty": (tmp_path / "folder", "--resume never", ["--resume", "never"]),
    }[case]
    handle = locked(save_path) if case == "locked" else None
    if case in ("old results", "not empty"):
        (save_path / "results.json").write_text("{}")
    command = [*QUICK, "--model", "ConvNetW32_gram", "--data_path", str(data_path), "--save_path", str(save_path)]
    refused(capsys, monkeypatch, tmp_path, named, [*command, *more])
    if handle is not None:
        os.close(handle)
