"""The loop: one step against the equations, determinism, independence of experiments, failure."""

import importlib
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import QUICK, RECIPES, maker, parse, quick_model, run, tiny_arrays
from PIL import Image

from ddm import rng
from ddm.augment import DiffAugment
from ddm.data import loading
from ddm.errors import UserError
from ddm.losses import correlation_matching, intra_class_diversity, mean_matching, moments_matching
from ddm.methods import matching
from ddm.methods.condensation import Condensation
from ddm.methods.optimizers import SCHEDULES
from ddm.methods.sampling import real_images
from ddm.networks import get_network, initialise
from ddm.runs import experiments


def ready(recipe, data_path, *argv):
    """A recipe's plan and data as a run has them before its first step."""
    settings = parse(recipe, *QUICK, "--model", quick_model(recipe), "--data_path", data_path, *argv)
    data = loading.load(settings.dataset, settings.data_path)
    return maker(recipe, settings, data).plan, data


def plain_term(recipe, settings, real, syn):
    """The objective of one class from the equations; features of one class only, as the published loops do."""
    if recipe == "DM_KNearest":
        return mean_matching(real[None], syn[None]) + settings.icd_ratio * intra_class_diversity(syn[None], settings.k)
    (phi_real, maps_real), (phi_syn, maps_syn) = real, syn
    maps_real, maps_syn = [m[None] for m in maps_real], [m[None] for m in maps_syn]
    loss = mean_matching(phi_real[None], phi_syn[None])
    if recipe == "DM_DDM":
        loss = loss + settings.icd_ratio * intra_class_diversity(phi_syn[None], settings.k)
        loss = loss + settings.mm_ratio * moments_matching(maps_real, maps_syn)
        return loss + settings.cm_ratio * correlation_matching(maps_real, maps_syn)
    style = {"DM_GramMatching": correlation_matching, "DM_MeanStd_Matching": moments_matching}[recipe]
    return loss + settings.style_ratio * style(maps_real, maps_syn)


@pytest.mark.parametrize("class_chunk", ["1", "4", "10"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_equals_a_plain_loop_over_iterations_and_classes(recipe, class_chunk, data_path, tmp_path):
    lr = "0.1" if recipe != "DM_DDM" else "0.01"  # the sum of all terms wants smaller steps
    argv = ("--ipc", "3", "--lr_img", lr, "--class_chunk", class_chunk, "--eval_every", "0", "--num_eval", "1")
    saved, _ = run(recipe, data_path, tmp_path, *argv)
    plan, data = ready(recipe, data_path, *argv)
    settings = plan.settings

    def first_images():
        return real_images(data, plan.counts, settings.seed, 0)

    images = first_images()
    velocity = torch.zeros_like(images)
    for it in (1, 2, 3):
        fresh = get_network(settings.model, 3, 10)
        fresh.tap("none" if recipe == "DM_KNearest" else "published")
        initialise(fresh, rng.generator(settings.seed, 0, it, -1, "network"))
        images.requires_grad_()
        loss = 0
        for c in range(10):
            drawn = data.draw(c, settings.batch_real, rng.generator(settings.seed, 0, it, c, "real images"))
            seed = rng.seed_of(settings.seed, 0, it, c, "augmentation")
            img_real = DiffAugment(data.normalise(data.x_train[drawn]), settings.dsa_strategy, seed)
            img_syn = DiffAugment(images[3 * c : 3 * c + 3], settings.dsa_strategy, seed)
            with torch.no_grad():
                real = fresh.embed(img_real)
            loss = loss + plain_term(recipe, settings, real, fresh.embed(img_syn))
        (gradient,) = torch.autograd.grad(loss, images)
        velocity = 0.5 * velocity + gradient  # SGD with momentum 0.5
        images = (images - settings.lr_img * velocity).detach()
    moved = images - first_images()
    assert moved.abs().max() > 1e-3
    error = saved["data"][0][0] - images
    assert error.norm() < 1e-3 * moved.norm()
    logged = (tmp_path / "training.log").read_text().split("iter 3: loss ")[1].split()[0]
    assert float(logged) == pytest.approx(loss.item() / 10, rel=1e-3)  # the mean over classes of the last iteration


def test_clipped_pixels_are_the_nearest_in_range(data_path, tmp_path):
    """One step is the step without it, clipped; after more, all pixels are in [0, 1]."""
    line = ("--lr_img", "30", "--eval_every", "0", "--num_eval", "1")
    free, clipped = (
        run("DM_DDM", data_path, tmp_path / str(flag), "--Iteration", "1", *line, *flag)[0]["data"][0][0]
        for flag in ((), ("--clip_pixels",))
    )
    data = loading.load("CIFAR10", data_path)
    normalisation = data.normalisation
    assert torch.equal(clipped, free.clamp(*normalisation.bounds())) and not torch.equal(clipped, free)
    images = run("DM_DDM", data_path, tmp_path / "more", *line, "--clip_pixels")[0]["data"][0][0]
    mean, std = normalisation.constants
    assert (normalisation.pixels(images) - (images * std + mean)).abs().max() < 1e-6
    whitened = replace(data, normalisation=replace(normalisation, inverse=torch.eye(3)))
    with pytest.raises(UserError, match="whitened images have no"):
        maker("DM_DDM", parse("DM_DDM", *QUICK, "--clip_pixels"), whitened)


def test_iterations_and_classes_draw_differently(data_path):
    _, data = ready("DM_KNearest", data_path)
    seeds = {rng.seed_of(0, e, i, c, p) for e in range(3) for i in range(3) for c in range(3) for p in ("a", "b")}
    assert len(seeds) == 54
    first, second = (data.draw(1, 4, rng.generator(0, 0, i, 1, "real images")) for i in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("recipe", ["DM_DDM"])
def test_two_runs_are_equal_and_an_experiment_can_run_alone(recipe, data_path, tmp_path):
    saved, results = run(recipe, data_path, tmp_path / "a", "--num_exp", "2")
    torch.manual_seed(1234)
    again, results_again = run(recipe, data_path, tmp_path / "b", "--num_exp", "2")
    alone, results_alone = run(recipe, data_path, tmp_path / "c", "--first_exp", "1")
    other, _ = run(recipe, data_path, tmp_path / "d", "--seed", "1")
    for (a, la), (b, lb) in zip(saved["data"], again["data"], strict=True):
        assert torch.equal(a, b) and torch.equal(la, lb)
    assert results["accuracies"] == results_again["accuracies"]
    assert torch.equal(alone["data"][0][0], saved["data"][1][0])
    assert results_alone["accuracies"] == results["accuracies"][2:]
    assert not torch.equal(saved["data"][0][0], saved["data"][1][0])
    assert not torch.equal(other["data"][0][0], saved["data"][0][0])


def test_plain_dm_is_the_same_in_every_recipe(data_path, tmp_path):
    """Weight 0 removes a term: all recipes then give the same images (and the taps change nothing)."""
    argv = {"DM_GramMatching": "--style_ratio", "DM_MeanStd_Matching": "--style_ratio", "DM_KNearest": "--icd_ratio"}
    argv = {recipe: [flag, "0"] for recipe, flag in argv.items()} | {"DM_DDM": ["--preset", "dm"]}
    images = [run(recipe, data_path, tmp_path / recipe, *own)[0]["data"][0][0] for recipe, own in argv.items()]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


def test_noise_starts_from_noise_but_is_held_against_real_images(data_path, tmp_path):
    saved, results = run("DM_KNearest", data_path, tmp_path, "--init", "noise", "--Iteration", "1", "--lr_img", "0")
    images = saved["data"][0][0]
    assert abs(images.mean()) < 0.05 and abs(images.std() - 1) < 0.05
    grids = [next(tmp_path.glob(f"*_iter{i}.png")).read_bytes() for i in (0, 1)]
    assert grids[0] == grids[1]  # of the noise, which lr_img 0 leaves as it is, not of the real images
    _, real = run("DM_KNearest", data_path, tmp_path / "real", "--Iteration", "1", "--lr_img", "0")
    assert results["random_real"] == real["random_real"]


def test_batchnorm_networks_see_all_classes_in_a_pass(data_path):
    plan, _ = ready("DM_KNearest", data_path, "--model", "ConvNetBN", "--class_chunk", "2")
    assert plan.settings.class_chunk == 10 and list(plan.chunks()) == [range(10)]


def test_batch_real_is_cut_to_the_largest_class(data_path):
    plan, _ = ready("DM_KNearest", data_path, "--batch_real", "500")
    assert plan.settings.batch_real == 8


@pytest.mark.parametrize("bad", ["L_MMD", "L_MMD but not its gradient", "gradient"])
def test_a_non_finite_loss_stops_and_keeps_the_last_finite_images(bad, data_path, tmp_path, monkeypatch):
    recipe = importlib.import_module("DM_KNearest")
    calls = []

    def failing(real, syn, settings):
        loss = mean_matching(real.embedding, syn.embedding)
        third_step = len(calls) // 2 == 2  # two chunks a step
        calls.append(None)
        if third_step:
            loss = {"L_MMD": loss * torch.inf, "gradient": (loss * 0).sqrt()}.get(bad, loss + torch.inf)
        return {"L_MMD": loss, "L_ICD": syn.embedding.sum((1, 2)) * 0}

    monkeypatch.setattr(recipe, "objective", failing)
    argv = ("--eval_every", "0", "--class_chunk", "5", "--Iteration")
    named = "the gradient" if bad == "gradient" else "L_MMD"
    with pytest.raises(
        UserError, match=rf"experiment 0, iteration 3: {named} of classes 0 to \d is not finite"
    ) as caught:
        run("DM_KNearest", data_path, tmp_path / "a", *argv, "30")
    path = tmp_path / "a" / "last_finite_DM_CIFAR10_ConvNetW32_2ipc_exp0_iter2.pt"
    assert str(path) in str(caught.value) and not list((tmp_path / "a").glob("res_*"))
    left = torch.load(path)
    assert left["unfinished"] == [2, 30] and (left["args"]["Iteration"], left["args"]["num_exp"]) == (2, 1)
    calls.clear()
    skipping, results = run("DM_KNearest", data_path, tmp_path / "c", *argv, "3", "--on_nonfinite", "skip")
    assert results["skipped"] == [[0, 3]]
    assert torch.equal(torch.load(path)["data"][0][0], skipping["data"][0][0])
    calls.clear()
    _, results = run("DM_KNearest", data_path, tmp_path / "d", *argv, "9", "--on_nonfinite", "skip")
    assert results["skipped"] == [[0, 3]]  # and it continued from there
    calls.clear()
    two_steps, _ = run("DM_KNearest", data_path, tmp_path / "b", *argv, "2")
    assert torch.equal(torch.load(path)["data"][0][0], two_steps["data"][0][0])


def logged_iterations(folder):
    lines = (folder / "training.log").read_text().splitlines()
    return [int(line.split("iter ")[1].split(":")[0]) for line in lines if "L_MMD" in line and "iter" in line]


def test_losses_are_logged_every_ten_iterations(data_path, tmp_path):
    run("DM_GramMatching", data_path, tmp_path, "--Iteration", "11", "--eval_every", "0")
    assert logged_iterations(tmp_path) == [10, 11] and experiments.CHECK_EVERY == 10


def test_an_accelerator_is_waited_for_once_a_second(data_path, tmp_path, monkeypatch):
    """All the same, each tenth loss is in the log."""
    clock, checked = [0.0], []
    step, check = Condensation.step, Condensation.check

    def timed_step(self, iteration):
        clock[0] += 0.06
        step(self, iteration)

    def noted_check(self):
        checked.append(self.pending[-1][0])
        return check(self)

    monkeypatch.setattr(Condensation, "step", timed_step)
    monkeypatch.setattr(Condensation, "check", noted_check)
    monkeypatch.setattr(experiments.Run, "asynchronous", True)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    flags = ("--Iteration", "45", "--eval_every", "0", "--num_exp", "1", "--num_eval", "1", "--checkpoint_every", "100")
    run("DM_KNearest", data_path, tmp_path, *flags)
    assert checked == [20, 40, 45] and logged_iterations(tmp_path) == [10, 20, 30, 40, 45]


def test_cosine_and_momentum_change_the_step_as_they_say(data_path, tmp_path):
    argv = ("--Iteration", "4", "--eval_every", "0", "--num_eval", "1", "--lr_img", "0.1")
    images = [
        run("DM_KNearest", data_path, tmp_path / name, *argv, *more)[0]["data"][0][0]
        for name, more in (("a", ()), ("b", ("--lr_schedule", "cosine")), ("c", ("--momentum_img", "0")))
    ]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    factors = [SCHEDULES["cosine"](done, 4) for done in range(5)]
    assert factors == pytest.approx([1, 0.8536, 0.5, 0.1464, 0], abs=1e-4)
    # The first step has the full rate under either schedule.
    first = [
        run("DM_KNearest", data_path, tmp_path / name, *argv, "--Iteration", "1", *more)[0]["data"][0][0]
        for name, more in (("d", ()), ("e", ("--lr_schedule", "cosine")))
    ]
    assert torch.equal(*first)


def test_the_validation_split_is_scored_in_place_of_the_test_set(tmp_path, capsys):
    np.savez(tmp_path / "CIFAR10.npz", **tiny_arrays(train=20, test=7))
    _, results = run("DM_KNearest", tmp_path, tmp_path / "a", "--eval_split", "val", "--num_exp", "2")
    assert "all 20 val images" in results["protocol"] and "accuracy on the val set" in capsys.readouterr().out
    assert all(acc * 20 == pytest.approx(round(acc * 20)) for acc in results["accuracies"])
    data = loading.load("CIFAR10", tmp_path).with_validation(rng.seed_of(0, 0, 0, -1, "validation split"))
    frozen, _ = run("DM_KNearest", tmp_path, tmp_path / "c", "--eval_split", "val", "--num_exp", "2", "--lr_img", "0")
    for experiment, (images, _) in enumerate(frozen["data"]):  # lr_img 0: the real images that a run started from
        assert torch.equal(images, real_images(data, 10 * [2], 0, experiment))
    np.savez(tmp_path / "CIFAR10.npz", **tiny_arrays(train=1))
    with pytest.raises(UserError, match="--eval_split val"):
        run("DM_KNearest", tmp_path, tmp_path / "b", "--eval_split", "val", "--ipc", "1")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("classes", "n", "pixels"), [(2, 7, 2**12), (4, 3, 2**13), (1, 5, 2**20), (3, 2, 1)])
def test_real_images_in_parts_give_the_features_of_all_at_once(classes, n, pixels, data_path, monkeypatch):
    for recipe in ("DM_GramMatching", "DM_MeanStd_Matching"):
        settings = parse(recipe, *QUICK, "--model", quick_model(recipe))
        made = maker(recipe, settings, loading.load("CIFAR10", data_path))
        under = made.matcher
        initialise(under.net, rng.generator(0, 0, 1, -1, "network"))
        images = torch.randn(classes, n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        whole = matching.features(under.net, images, under.statistics, made.plan.machine)
        sizes = []
        under.net.features[0].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))  # noqa: B023
        with monkeypatch.context() as patch:
            patch.setattr(matching, "pass_pixels", lambda device: pixels)
            real = under.real_features(images)
        assert max(sizes) <= max(1, pixels // 1024) and sum(sizes) == classes * n
        torch.testing.assert_close(real.embedding, whole.embedding)
        assert list(real.style) == list(whole.style) != []
        for name, layers in whole.style.items():
            torch.testing.assert_close(real.style[name], layers)


@pytest.mark.parametrize("recipe", ["DM_DDM"])
def test_classes_with_numbers_of_their_own_are_condensed_as_in_runs_of_that_number(recipe, data_path, tmp_path):
    (tmp_path / "few.json").write_text(json.dumps({"*": 2, "cat": 3, "0": 1}))
    counts = [1, 2, 2, 3, 2, 2, 2, 2, 2, 2]
    common = ("--class_chunk", "1", "--eval_every", "0", "--num_eval", "1", "--lr_img", "0.01")
    saved, results = run(recipe, data_path, tmp_path / "few", *common, "--ipc", str(tmp_path / "few.json"))
    images, labels = saved["data"][0]
    assert torch.bincount(labels).tolist() == counts == results["images_per_class"]
    assert (tmp_path / "few" / f"res_DM_CIFAR10_{quick_model(recipe)}_fewipc.pt").exists()
    same = {n: run(recipe, data_path, tmp_path / str(n), *common, "--ipc", str(n))[0]["data"][0][0] for n in (1, 2, 3)}
    for c, n in enumerate(counts):
        assert torch.equal(images[labels == c], same[n][c * n : (c + 1) * n])
    with pytest.raises(UserError, match="is not what it was"):
        (tmp_path / "few.json").write_text(json.dumps({"*": 2}))
        run(recipe, data_path, tmp_path / "few", *common, "--ipc", str(tmp_path / "few.json"), "--num_exp", "2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cat": 1}', "names no number for it"),
        ('{"*": 1, "tiger": 2}', "no class 'tiger'"),
        ('{"*": 0}', "says 0"),
        ('{"*": true}', "says True"),
        ("[1, 2]", "not a readable .json"),
        ("{", "not a readable .json"),
        ('{"*": 1, "ship": 9}', "fewer than the 9"),
    ],
)
def test_a_wrong_file_of_numbers(content, message, data_path, tmp_path):
    (tmp_path / "n.json").write_text(content)
    with pytest.raises(UserError, match=message):
        run("DM_KNearest", data_path, tmp_path / "out", "--ipc", str(tmp_path / "n.json"))
    assert not (tmp_path / "out").exists()


def test_whitened_runs_save_what_gives_the_pictures_back(tmp_path):
    argv = ("--dataset", "Digits", "--lr_img", "0", "--eval_every", "0", "--num_eval", "1")
    saved, results = run("DM_KNearest", tmp_path, tmp_path, *argv, "--zca")
    plain, _ = run("DM_KNearest", tmp_path, tmp_path / "plain", *argv)
    images, pixels = saved["data"][0][0], plain["data"][0][0]
    mean, std = (torch.tensor(plain[name])[:, None, None] for name in ("mean", "std"))
    back = (images.flatten(1) @ saved["zca"]["inverse"] + saved["zca"]["mean"]).view_as(images)
    assert (back - (pixels * std + mean)).abs().max() < 1e-3 and (images - pixels).abs().max() > 0.1
    assert saved["mean"] == [0] and saved["std"] == [1] and "ZCA" in results["protocol"]
    grids = [next(folder.glob("vis_*_iter3.png")) for folder in (tmp_path, tmp_path / "plain")]
    a, b = (np.asarray(Image.open(grid)).astype(int) for grid in grids)
    assert np.abs(a - b).max() <= 1  # the pictures look as they did


def test_whitening_decorrelates_the_training_images_and_knows_no_others():
    data = loading.load("Digits", "nowhere")
    flat = (data.x_train.float() / 255).flatten(1).double()
    centred = flat - flat.mean(0)
    _, s, v = torch.linalg.svd(centred, full_matrices=False)
    expected = centred @ v.T / (s.square() / (len(flat) - 1) + 0.1).sqrt() @ v  # the definition, eps 0.1
    whitened = data.whitened()
    assert (whitened.x_train.flatten(1) - expected).abs().max() < 1e-3
    split = data.with_validation(0)
    kept = split.whitened().normalisation.offset
    assert not torch.equal(kept, whitened.normalisation.offset)  # fitted to what is kept
    assert torch.allclose(kept, (split.x_train.float() / 255).flatten(1).mean(0), atol=1e-5)


def test_a_chunk_of_classes_that_has_no_effect_is_named(data_path):
    data = loading.load("CIFAR10", data_path)
    for argv, lines in (
        (("--rr_ratio", "1", "--class_chunk", "5"), 1),
        (("--rr_ratio", "1"), 0),
        (("--class_chunk", "5"), 0),
    ):
        cautions = maker("DM_DDM", parse("DM_DDM", *QUICK, *argv), data).cautions()
        assert len([line for line in cautions if "--class_chunk 5 has no effect" in line]) == lines
