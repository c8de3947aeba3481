"""What runs but can't be right is warned of in one line: on stderr and in the training.log of a run."""

import shutil

import numpy as np
import PIL.Image
import torch
from conftest import command, run, tiny_arrays

from ddm.data import checks
from ddm.data.images import Normalisation
from ddm.data.loading import load
from ddm.evaluation import plausibility, sets


def class_folders(path, names, n=3, seed=0):
    """Pictures of noise in class folders."""
    draw = np.random.default_rng(seed)
    for name in names:
        (path / name).mkdir(parents=True)
        for k in range(n):
            PIL.Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path / name / f"{k}.png")


def warned(capsys, text):
    """Whether there is exactly one warning with the text on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    return len(lines) == 1 and text in lines[0]


def test_folders_that_are_not_what_they_seem(tmp_path, capsys):
    """Defect U17: an empty class folder, a test folder without a class, train + val + test: silence."""
    data = tmp_path / "mine"
    class_folders(data / "train", ["a", "b", "c"])
    class_folders(data / "test", ["a", "b", "c"], seed=1)
    load(str(data), tmp_path / "1")
    assert "warning" not in capsys.readouterr().err
    (data / "train" / "d").mkdir()
    load(str(data), tmp_path / "1")  # the store exists
    assert warned(capsys, "class folders without images, left out: d")
    (data / "train" / "d").rmdir()
    class_folders(data / "val", ["a", "b", "c"], seed=2)
    load(str(data), tmp_path / "1")
    assert warned(capsys, f"{data / 'test'} is the test set; {data / 'val'} is not used")
    shutil.rmtree(data / "val")
    shutil.rmtree(data / "test" / "b")
    for _ in range(2):  # when the store is made, and later
        load(str(data), tmp_path / "2")
        assert warned(capsys, "the test set has no images of b")
    shutil.rmtree(data / "test")
    shutil.copytree(data / "train", data / "test")
    command("prepare", "mine", "--own", "--source", data, "--data_path", tmp_path / "3")
    assert warned(capsys, "9 of 9 test images are training images")


def test_test_images_that_are_training_images(data_path, tmp_path, capsys):
    """The same for arrays, and in training.log."""
    arrays = tiny_arrays()
    for name in "xy":
        arrays[f"{name}_test"] = arrays[f"{name}_train"][5:20]
    np.savez(tmp_path / "CIFAR10.npz", **arrays)
    run("DM_KNearest", tmp_path, tmp_path / "out", "--eval_every", "0")
    assert "warning: CIFAR10: 15 of 15 test images are training images" in capsys.readouterr().err
    assert "] warning: CIFAR10: 15 of 15 test images are" in (tmp_path / "out" / "training.log").read_text()
    load("CIFAR10", data_path)
    assert not capsys.readouterr().err


def test_shared_images_are_counted():
    images = np.arange(40, dtype=np.uint8).reshape(10, 4)
    assert checks.shared_images(images[:6], images[4:]) == 2 and checks.shared_images(images[:5], images[5:]) == 0
    assert checks.split_warnings(["a", "b"], {"train": images[:5], "test": images[5:]}, [0, 1, 1, 0, 0]) == []


def test_pixels_far_outside(data_path, tmp_path, capsys):
    """Defect U1: pixels of -70 .. 69, exit 0, no word. A run warns at its evaluations and at its end."""
    few = ("--num_eval", "1", "--eval_every", "2", "--epoch_eval_train", "0")
    run("DM_KNearest", data_path, tmp_path / "a", *few, "--lr_img", "0.1")
    assert "standard deviations" not in capsys.readouterr().err
    run("DM_KNearest", data_path, tmp_path / "b", *few, "--lr_img", "10000")
    text, log = capsys.readouterr().err, (tmp_path / "b" / "training.log").read_text()
    for place in ("exp 0 iter 2 condensed", "the sets"):
        assert text.count(f"warning: {place}: ") == log.count(f"] warning: {place}: ") == 1
    assert "more than 3 standard deviations outside" in text and "--clip_pixels" in text
    (path,) = (tmp_path / "b").glob("res_*.pt")
    _, notes = sets.read(path, load("CIFAR10", data_path))
    assert "more than 3 standard deviations outside" in notes[0] and notes[0].startswith("warning")


def test_the_range_of_pixels():
    normalisation = Normalisation.of([0.5], [0.25])  # pixels are -2 .. 2
    images = torch.linspace(-2, 2, 200).view(2, 1, 10, 10)
    assert plausibility.far_outside(images, normalisation) is None
    assert plausibility.share_beyond(images, normalisation, 1e-3) == 0
    images[0, 0, 0] = 4.9  # 5 %, but within 3 standard deviations
    assert plausibility.far_outside(images, normalisation) is None
    assert abs(plausibility.share_beyond(images, normalisation, 1e-3) - 0.05) < 1e-6
    assert "5.0 %" in plausibility.clipping_cost(images, normalisation)
    assert plausibility.clipping_cost(images[1:], normalisation) is None
    images[0, 0, 0] = -5.1
    assert "5 % of the values" in plausibility.far_outside(images, normalisation)
    assert plausibility.far_outside(images[:0], normalisation) is None  # the coreset of all images stores none


def test_a_run_tells_once_what_an_export_costs(data_path, tmp_path, capsys):
    run("DM_KNearest", data_path, tmp_path / "a", "--num_eval", "1", "--eval_every", "0", "--lr_img", "2")
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("outside [0, 1]: an export as pictures clips them") == 1, shown
    argv = ("--lr_img", "2", "--clip_pixels", "--num_eval", "1", "--eval_every", "0")
    run("DM_KNearest", data_path, tmp_path / "b", *argv)
    shown = capsys.readouterr()
    assert "outside" not in shown.out + shown.err


def test_accuracy_at_chance(data_path, tmp_path, capsys):
    data = load("CIFAR10", data_path)  # 30 test images: one standard error is 5.5 points
    assert plausibility.at_chance([0.5, 0.7], data) is None
    for accuracies in ([0.1], [0.2, 0.1], [0.0]):
        assert "no better than guessing (10 %)" in plausibility.at_chance(accuracies, data)
    untrained = ("--lr_net", "0", "--num_eval", "2", "--eval_every", "0")
    run("DM_KNearest", data_path, tmp_path / "a", *untrained)
    line = "warning: exp 0 iter 3 condensed: mean"
    assert capsys.readouterr().err.count(line) == 1
    assert "no better than guessing" in (tmp_path / "a" / "training.log").read_text()
    command("evaluate", tmp_path / "a", "--data_path", data_path, "--save_path", tmp_path / "b", "--num_eval", "2")
    assert "no better than guessing" in capsys.readouterr().err
    assert "no better than guessing" in (tmp_path / "b" / "training.log").read_text()
