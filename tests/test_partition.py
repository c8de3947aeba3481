"""--factor: a stored image holds factor x factor images, which every network and every file shows decoded."""

import json

import numpy as np
import pytest
import torch
from conftest import command, maker, parse, parsed, run, tiny_arrays
from torch.nn import functional as F

import ddm
from ddm.commands import evaluate
from ddm.data import loading
from ddm.data.partition import decoded, encoded
from ddm.errors import UserError
from ddm.evaluation import sets
from ddm.methods import plan
from ddm.methods.condensation import Condensation
from ddm.methods.sampling import initial_indices

FACTOR = ("--factor", "2", "--num_exp", "2", "--lr_img", "0.1", "--mm_ratio", "0", "--cm_ratio", "0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two experiments with one stored image per class: (its folder, its set, results.json)."""
    folder = tmp_path_factory.mktemp("made")
    np.savez(folder / "CIFAR10.npz", **tiny_arrays())
    return folder, *run("DM_DDM", folder, folder / "out", *FACTOR, "--ipc", "1", "--eval_every", "3")


@pytest.mark.parametrize("factor", [2, 3])
def test_images_are_cut_out_row_by_row_and_scaled_up(factor):
    stored = torch.rand(2, 3, 6 * factor, 12 * factor, generator=torch.Generator().manual_seed(0))
    shown, at = decoded(stored, factor), 0
    for image in stored:
        for row in range(factor):
            for column in range(factor):
                part = image[None, :, row * 6 : (row + 1) * 6, column * 12 : (column + 1) * 12]
                large = F.interpolate(part, stored.shape[2:], mode="bilinear", align_corners=False)
                assert torch.equal(shown[at], large[0])
                at += 1
    assert at == len(shown)


def test_the_first_images_are_real_ones_scaled_down():
    real = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    stored = encoded(real, 2)
    means = real.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))  # each 2x2 block of pixels: [8, 3, 2, 2]
    torch.testing.assert_close(stored[1, :, 2:, :2], means[4 + 2])  # the second row's first part of the second image
    expected = F.interpolate(means, (4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoded(stored, 2), expected)


def test_one_image_is_one_image_without_a_factor():
    x = torch.rand(2, 3, 4, 4)
    assert decoded(x, 1) is x and encoded(x, 1) is x


def test_a_step_moves_the_stored_pixels_by_the_gradient_of_the_decoded_ones(made):
    argv = ("--dataset", "CIFAR10", "--ipc", "2", "--factor", "2", "--model", "ConvNetW32", "--batch_real", "4")
    settings = parse("DM_DDM", *argv, "--preset", "dm", "--dsa_strategy", "none", "--Iteration", "1", "--lr_img", "1")
    data = loading.load("CIFAR10", made[0])
    ours = maker("DM_DDM", settings, data)
    ours.prepare()
    ours.start(0, None)
    before = ours.images().detach().clone().requires_grad_()
    ours.step(1)
    # The same step by hand: L_MMD of the decoded images under the same network.
    real = data.batch(ours.draws.draw(0, 1)["real"])
    net = ours.matcher.net
    with torch.no_grad():
        target = net.embed(real.flatten(0, 1)).unflatten(0, (10, 4)).mean(1)
    shown = net.embed(decoded(before, 2)).unflatten(0, (10, 8)).mean(1)
    (target - shown).square().sum().backward()
    torch.testing.assert_close(ours.images(), (before - before.grad).detach(), rtol=1e-4, atol=1e-5)


def test_the_file_has_decoded_images_for_any_reader_and_the_stored_ones(made):
    _, saved, results = made
    assert saved["factor"] == 2 and len(saved["stored"]) == 2
    for (images, labels), stored in zip(saved["data"], saved["stored"], strict=True):
        assert stored.shape == (10, 3, 32, 32) and torch.equal(images, decoded(stored, 2))
        assert torch.equal(labels, torch.arange(10).repeat_interleave(4))
    assert results["images_per_class"] == [1] * 10
    one = ddm.load(made[0] / "out", 1)
    assert one.factor == 2 and torch.equal(one.stored, saved["stored"][1]) and len(one) == 40


def test_random_real_images_have_the_same_pixels(made):
    """They are the images before the first step: as many as the set holds, scaled down."""
    data = loading.load("CIFAR10", made[0])
    settings = parse("DM_DDM", *FACTOR, "--ipc", "1", "--model", "ConvNetW32", "--batch_real", "6")
    ours = maker("DM_DDM", settings, data)
    ours.prepare()
    images, labels = ours.training_set(0, ours.baseline(0))
    assert len(images) == len(labels) == 40
    real = data.batch(initial_indices(data, [4] * 10, 0, 0))
    assert torch.equal(images, decoded(encoded(real, 2), 2))


@pytest.mark.parametrize("stored", [[], ["--stored"]], ids=["decoded", "stored"])
@pytest.mark.parametrize("to", ["png", "npz", "safetensors"])
def test_every_export_holds_the_same_images(to, stored, made, tmp_path):
    pytest.importorskip("safetensors")
    out = tmp_path / f"out{'' if to == 'png' else f'.{to}'}"
    command("export", made[0] / "out", "--to", to, "--out", out, *stored)
    data = loading.load("CIFAR10", made[0])
    (found,), _ = sets.read(out, data)
    images, labels = made[1]["data"][0]
    order = labels.argsort(stable=True)
    assert torch.equal(found.labels, labels[order])
    rounding = 0 if to == "safetensors" else 0.6 / 255 / min(data.std)
    if to != "safetensors":  # what is written is clipped
        low, high = data.normalisation.bounds()
        kept = made[1]["stored"][0].clamp(low, high)
        images = decoded(kept, 2) if stored else images.clamp(low, high)
    torch.testing.assert_close(found.images, images[order], rtol=0, atol=rounding + 1e-6)
    assert found.factor == (2 if stored or to == "safetensors" else 1)


def test_dark_stored_bytes_are_bytes(data_path, tmp_path):
    stored = np.full((10, 32, 32, 3), 15, dtype=np.uint8)
    np.savez(tmp_path / "dark.npz", x_stored=stored, y_stored=np.arange(10), factor=2)
    data = loading.load("CIFAR10", data_path)
    (found,), _ = sets.read(tmp_path / "dark.npz", data)
    torch.testing.assert_close(data.normalisation.pixels(found.images), torch.full((40, 3, 32, 32), 15 / 255))


def test_the_set_gets_its_own_number_again(made, tmp_path):
    command("evaluate", made[0] / "out", "--data_path", made[0], "--num_eval", "2", "--save_path", tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    assert [acc for entry in record["evaluations"] for acc in entry["accuracies"]] == made[2]["accuracies"]


def test_random_baseline_of_evaluate_has_as_many_pixels(made, tmp_path):
    argv = (
        "--data_path",
        made[0],
        "--num_eval",
        "1",
        "--epochs",
        "1",
        "--baselines",
        "random",
        "--save_path",
        tmp_path,
    )
    command("evaluate", made[0] / "out", *argv)
    rows, _ = evaluate.rows_of(
        evaluate.settle(parsed("evaluate", made[0] / "out", *argv)), loading.load("CIFAR10", made[0])
    )
    assert [len(row.set.images) for row in rows] == [40, 40, 10]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--factor", "3"], "can't be split into 3x3 equal parts"),
        (["--factor", "2", "--zca"], "leave --zca out"),
        (
            ["--factor", "2", "--ipc", "3"],
            "fewer than the 12 of --ipc 3, 4 in each .--factor.: lower --ipc to 2 or less",
        ),
        (["--factor", "2", "--ipc", "1", "--k", "4", "--icd_ratio", "1"], "only 3 others in its class"),
    ],
)
def test_an_impossible_factor_is_refused(argv, message, made):
    with pytest.raises(UserError, match=message):
        settings = parse("DM_DDM", "--ipc", "1", "--preset", "dm", *argv)
        data = loading.load("Digits", "").whitened() if settings.zca else loading.load("CIFAR10", made[0])
        maker("DM_DDM", settings, data)


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--icd_ratio 0.3 --k 5 --ipc 2", "--k 5: an image has only 1 others in its class"),
        ("--weights absolute --mmd_ratio 0 --rr_ratio 0 --ce_ratio 0 --icd_ratio 1 --ipc 1", "every other weight is 0"),
    ],
)
def test_settings_that_depend_on_an_unset_factor_are_checked(argv, message, made, tmp_path):
    strong = ("--preset", "fast,strong", "--pool", "1", "--pool_epochs", "1", "--dataset", "Digits")  # a factor of 1
    with pytest.raises(UserError, match=message):
        run("DM_DDM", made[0], tmp_path / "out", *strong, *argv.split())
    assert not (tmp_path / "out").exists()


def test_an_unset_factor_follows_the_size_of_the_images(made):
    small = loading.load("Digits", str(made[0]))
    for data, factor in ((small, 1), (loading.load("CIFAR10", made[0]), 2)):
        settings = plan.with_factor(parsed("condense").but(factor=None), data)
        assert settings.factor == factor


def test_a_killed_run_resumes_to_the_same_set(made, tmp_path, monkeypatch):
    step = Condensation.step

    def killed(self, iteration):
        if (self.experiment, iteration) == (1, 3):
            raise KeyboardInterrupt
        step(self, iteration)

    argv = (*FACTOR, "--ipc", "1", "--eval_every", "3", "--checkpoint_every", "2")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Condensation, "step", killed)
        run("DM_DDM", made[0], tmp_path / "out", *argv)
    saved, results = run("DM_DDM", made[0], tmp_path / "out", *argv)
    assert all(torch.equal(a, b) for a, b in zip(saved["stored"], made[1]["stored"], strict=True))
    assert results["accuracies"] == made[2]["accuracies"]


def test_continual_memories_and_reports_show_decoded_images(made, tmp_path):
    argv = ("--dataset", "CIFAR10", "--data_path", made[0], "--steps", "2", "--seeds", "1", "--memory", "ddm,random")
    argv += ("--factor", "2", "--ipc", "1", "--Iteration", "1", "--batch_real", "4", "--epoch_eval_train", "0")
    command("continual", *argv, "--model", "ConvNetW32", "--save_path", tmp_path / "continual")
    sizes = {path.name: len(torch.load(path)[0]) for path in (tmp_path / "continual" / "memory").iterdir()}
    assert sizes["ddm_seed0_step0.pt"] == 20 and sizes["random_seed0_step0.pt"] == 5
    command("report", made[0] / "out", "--data_path", made[0], "--out", tmp_path / "report.html")
    assert "4 condensed images of class" in (tmp_path / "report.html").read_text()


def test_the_library_returns_both_forms(made):
    found = ddm.condense(
        dataset="CIFAR10", data_path=str(made[0]), model="ConvNetW32", preset="dm", factor=2, ipc=1, Iteration=1,
        batch_real=4, num_eval=1, epoch_eval_train=0,
    )  # fmt: skip
    assert len(found) == 40 and torch.equal(found.images, decoded(found.stored, 2))


@pytest.mark.parametrize("factor", ["x", 0, 3])
def test_a_damaged_factor_is_one_line(factor, made, tmp_path):
    torch.save(made[1] | {"factor": factor}, tmp_path / "set.pt")
    with pytest.raises(UserError, match="factor"):
        sets.read(tmp_path / "set.pt", loading.load("CIFAR10", made[0]))


def test_damaged_stored_images_are_left_out(made, tmp_path):
    torch.save(made[1] | {"stored": 7}, tmp_path / "set.pt")
    assert ddm.load(tmp_path / "set.pt").stored is None


def test_stored_images_are_exported_again(made, tmp_path):
    pytest.importorskip("safetensors")
    command("export", made[0] / "out", "--to", "safetensors", "--out", tmp_path / "a.safetensors", "--stored")
    command(
        "export", tmp_path / "a.safetensors", "--to", "safetensors", "--out", tmp_path / "b.safetensors", "--stored"
    )
    one, two = (ddm.load(tmp_path / f"{name}.safetensors") for name in "ab")
    assert torch.equal(one.stored, two.stored) and torch.equal(one.images, two.images) and len(one) == 40


def test_continual_checks_the_factor_before_it_writes(made, tmp_path):
    argv = ("--dataset", "CIFAR10", "--data_path", made[0], "--steps", "2", "--seeds", "1", "--factor", "3")
    with pytest.raises(SystemExit) as stop:
        command("continual", *argv, "--save_path", tmp_path / "out")
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
