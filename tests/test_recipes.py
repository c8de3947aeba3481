"""Each recipe through its real command line, and the files it leaves."""

import datetime
import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import (
    QUICK,
    RECIPES,
    ROOT,
    command_line,
    parse,
    parsed,
    quick_model,
    recipe_of,
    run,
    settings_class,
)
from PIL import Image

from ddm.commands import condense
from ddm.errors import UserError
from ddm.methods.objective import neighbours_of
from ddm.settings import checked, declarations


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_runs_and_writes_its_files(recipe, data_path, tmp_path):
    model, save_path = quick_model(recipe), tmp_path / "out" / "here"
    done = command_line(
        recipe, *QUICK, "--model", model, "--data_path", str(data_path), "--save_path", str(save_path), "--seed", "3"
    )
    assert done.returncode == 0, done.stderr
    stem = f"DM_CIFAR10_{model}_2ipc"
    grids = {f"vis_{stem}_exp0_iter{i}.png" for i in (0, 2, 3)}
    written = {
        "training.log",
        "results.json",
        f"res_{stem}.pt",
        "checkpoint.pt",
        "checkpoint_previous.pt",
        "metrics.jsonl",
    }
    assert {p.name for p in save_path.iterdir()} == written | grids

    saved = torch.load(save_path / f"res_{stem}.pt")
    (images, labels), results = saved["data"][0], json.loads((save_path / "results.json").read_text())
    assert images.shape == (20, 3, 32, 32) and images.dtype == torch.float32 and images.isfinite().all()
    assert labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert saved["accs_all_exps"] == {model: results["accuracies"]} and results["n"] == 2
    assert saved["mean"] == [0.4914, 0.4822, 0.4465] and len(saved["class_names"]) == 10 and saved["seed"] == 3
    assert saved["args"] == results["args"] and saved["args"]["Iteration"] == 3 and "torch" in saved["versions"]
    assert abs((datetime.date.today() - datetime.date.fromisoformat(results["date"])).days) <= 1
    assert results["mean"] == pytest.approx(sum(results["accuracies"]) / 2) and results["std"] >= 0
    for key in ("seconds", "iterations_per_second", "peak_memory_bytes"):
        assert results[key] > 0
    assert [e["iteration"] for e in results["evaluations"]] == [0, 2, 3]
    assert results["random_real"][model]["n"] == 2

    with Image.open(save_path / f"vis_{stem}_exp0_iter3.png") as png:
        grid = torch.from_numpy(np.array(png)).permute(2, 0, 1)
    assert grid.shape == (3, 10 * 34 + 2, 2 * 34 + 2)  # one row per class, 2 pixels between images
    mean, std = (torch.tensor(saved[k]).view(3, 1, 1) for k in ("mean", "std"))
    shown = ((images[2] * std + mean).clamp(0, 1) * 255).round()  # class 1, image 0
    assert (grid[:, 36:68, 2:34].float() - shown).abs().max() <= 1

    log = (save_path / "training.log").read_text()
    for line in re.findall(r"^exp 0 iter .*", done.stdout, re.M):
        assert re.search(r"mean \d+\.\d\d %, std \d+\.\d\d, n 2$", line) and line in log
    assert re.search(r"loss \S+ \(L_MMD \S+", log) and "\r" not in done.stderr  # a short run's bars leave no lines
    last = done.stdout.splitlines()[-5:]
    assert last[0].startswith("condensed") and last[1].startswith("random real") and last[2].endswith("iter3.png")


def test_help_names_groups_defaults_and_meanings():
    done = command_line("DM_GramMatching", "--help-all")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    for part in (
        *("objective:", "optimisation:", "data:", "evaluation:", "machine:", "output:"),
        *("weight of L_CM", "(default: 20000)", "Style matching by Gram matrices"),
    ):
        assert part in text
    declared = declarations(settings_class("DM_GramMatching"))
    assert all(own.help and re.search(rf"--{name}[ ,]", text) for name, own in declared.items())


PUBLISHED = {
    "dataset": "CIFAR10", "ipc": 10, "eval_mode": "SS", "num_exp": 5, "num_eval": 20, "epoch_eval_train": 1000,
    "Iteration": 20000, "lr_img": 1.0, "lr_net": 0.01, "batch_real": 256, "batch_train": 256, "init": "real",
    "dsa_strategy": "color_crop_cutout_flip_scale_rotate", "data_path": "data", "save_path": "result",
    "dis_metric": "ours", "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_defaults_are_the_published_ones_and_the_papers_commands_parse(recipe):
    defaults = parsed(recipe).values()
    assert {k: defaults[k] for k in PUBLISHED} == PUBLISHED and defaults["model"] == RECIPES[recipe]
    ratio = "--icd_ratio 10" if recipe in ("DM_KNearest", "DM_DDM") else "--style_ratio 10000"
    given = parsed(
        recipe,
        *f"--dataset CIFAR10 --model {RECIPES[recipe]} --ipc 10 --dsa_strategy color_crop_cutout_flip_scale_rotate "
        f"--init real --Iteration 20000 --num_exp 5 --num_eval 5 --save_path result_cifar10 {ratio}".split(),
    )
    assert given.values() == defaults | {"num_eval": 5, "save_path": "result_cifar10"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_preset_sets_its_flags_and_an_explicit_flag_overrides_it(recipe):
    cls = settings_class(recipe)
    presets = cls.PRESETS
    plain, fast = (parsed(recipe, *argv).values() for argv in ([], ["--preset", "fast"]))
    assert fast == plain | presets["fast"] | {"preset": "fast"} != plain
    given = parsed(recipe, "--batch_real", "7", "--preset", "fast").values()
    assert given == fast | {"batch_real": 7}
    for values in presets.values():
        for name, value in values.items():
            assert checked(cls, name, value) == value
            assert value is None or type(value) is type(plain[name]) or plain[name] is None


@pytest.mark.parametrize(
    ("argv", "every"), [("", 2000), ("--eval_mode S", 2000), ("--eval_mode M", 0), ("--eval_mode M --eval_every 7", 7)]
)
def test_eval_every_follows_the_mode(argv, every):
    assert parse("DM_KNearest", *argv.split()).eval_every == every


def test_the_headline_is_of_the_model_that_condensed(data_path, tmp_path):
    argv = ("--model", "ConvNetW64", "--eval_mode", "W", "--num_eval", "1", "--Iteration", "1")
    _, results = run("DM_KNearest", data_path, tmp_path, *argv)
    assert list(results["models"]) == ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"]
    assert results["accuracies"] == results["models"]["ConvNetW64"]["accuracies"]


@pytest.mark.parametrize(("ipc", "k"), [(1, 0), (2, 1), (5, 1), (10, 2), (50, 10)])
def test_k_is_a_fifth_of_ipc(ipc, k):
    assert neighbours_of(ipc) == k
    assert parse("DM_KNearest", "--ipc", ipc).k == (k or None)  # at ipc 1 the term is 0, and k stays unset


@pytest.mark.parametrize("dataset", ["Digits", "CIFAR100"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_best_and_fast_have_one_set_of_numbers(dataset, ipc):
    argv = ("--preset", "fast,best", "--dataset", dataset, "--ipc", str(ipc))
    settings = parse("DM_DDM", *argv)
    found = (settings.optimizer, settings.lr_img, settings.weights, settings.rr_ratio)
    assert found == ("normalised", 0.03, "balanced", 3.0)
    assert recipe_of("DM_DDM").needed(settings).all_classes
    settings = parse("DM_DDM", *argv, "--lr_img", "2", "--rr_ratio", "0")
    assert settings.lr_img == 2 and not recipe_of("DM_DDM").needed(settings).all_classes
    assert parse("DM_DDM", *argv, "--optimizer", "sgd").lr_img == 0.5 * ipc


def test_what_follows_ipc_is_printed_kept_and_followed_by_another_ipc(data_path, tmp_path, capsys):
    (tmp_path / "ipc.json").write_text('{"3": 3, "*": 1}')
    argv = [*QUICK, "--model", "ConvNetW32", "--data_path", str(data_path), "--preset", "dm,fast", "--Iteration", "1"]
    argv += ["--optimizer", "sgd"]
    for ipc, lr_img in (("2", 1.0), (str(tmp_path / "ipc.json"), 0.6)):
        condense.run_recipe(
            recipe_of("DM_DDM"), parsed("DM_DDM", *argv, "--ipc", ipc, "--save_path", str(tmp_path / f"{lr_img}"))
        )
        assert json.loads((tmp_path / f"{lr_img}" / "results.json").read_text())["args"]["lr_img"] == lr_img
        assert ("--lr_img 1.0" in capsys.readouterr().out) == (ipc == "2")
    like = ["--like", str(tmp_path / "1.0" / "results.json"), "--ipc", "4"]
    assert parse("DM_DDM", *like).lr_img == 2.0


def test_a_users_error_in_a_process_of_its_own(tmp_path):
    done = command_line(
        "DM_KNearest", "--dataset", "Digits", "--ipc", "4", "--k", "4", "--save_path", str(tmp_path / "x")
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--k 4" in done.stderr and not done.stdout
    (tmp_path / "file").write_text("")
    settings = parsed("DM_KNearest", "--dataset", "Digits", "--save_path", tmp_path / "file")
    with pytest.raises(UserError, match="--save_path"):
        condense.run_recipe(recipe_of("DM_KNearest"), settings)


def test_presets_join_and_later_ones_and_explicit_flags_override():
    own = parsed("DM_DDM", "--preset", "style,fast,dm", "--lr_img", "3")
    found = (own.style_tap, own.style_stats, own.mm_ratio, own.batch_real, own.lr_img)
    assert found == ("conv", "image", 0, 32, 3)
    for preset, weights in {"dm": (1, 0, 0, 0), "published": (1, 1e4, 0, 10), "paper": (1, 1e4, 1e4, 10)}.items():
        own = parsed("DM_DDM", "--preset", preset)
        assert (own.mmd_ratio, own.mm_ratio, own.cm_ratio, own.icd_ratio) == weights
    defaults, paper = (parsed("DM_DDM", *argv).values() for argv in ([], ["--preset", "paper"]))
    assert paper == defaults | {"preset": "paper"}


def test_like_repeats_a_run_from_either_of_its_files(data_path, tmp_path, capsys, monkeypatch):
    argv = [*QUICK, "--model", "ConvNetW32", "--data_path", str(data_path), "--icd_form", "spread", "--seed", "5"]
    argv += ["--ipc", "1"]  # where k, which follows ipc, is 0
    first = parsed("DM_DDM", *argv, "--preset", "style", "--cm_ratio", "1", "--save_path", str(tmp_path / "a"))
    condense.run_recipe(recipe_of("DM_DDM"), first)
    stem = "res_DM_CIFAR10_ConvNetW32_1ipc.pt"
    for name in ("results.json", stem):
        again = ["--like", str(tmp_path / "a" / name), "--data_path", str(data_path), "--save_path"]
        monkeypatch.setattr(sys, "argv", ["DM_DDM.py", *again, str(tmp_path / name)])
        runpy.run_path(str(ROOT / "DM_DDM.py"), run_name="__main__")
        a, b = (torch.load(folder / stem) for folder in (tmp_path / "a", tmp_path / name))
        assert torch.equal(a["data"][0][0], b["data"][0][0]) and a["accs_all_exps"] == b["accs_all_exps"]
        ran = {"save_path", "data_path", "preset", "like"}
        assert {k: v for k, v in a["args"].items() if k not in ran} == {
            k: v for k, v in b["args"].items() if k not in ran
        }
    capsys.readouterr()
    like = ["--like", str(tmp_path / "a" / "results.json")]
    own = parsed("DM_DDM", *like, "--cm_ratio", "2", "--ipc", "5")
    assert (own.cm_ratio, own.style_tap, own.seed, own.save_path) == (2, "conv", 5, "result")
    assert own.k is None and own.class_chunk == 0 and not capsys.readouterr().err  # they follow ipc again
    assert own.precision == "fp32" and not own.clip_pixels  # the precision that the machine of the file chose
    path = tmp_path / "a" / "results.json"
    record = json.loads(path.read_text())
    for name, value in {"clip_pixels": True, "zca": True}.items():
        record["asked"][name] = value
    path.write_text(json.dumps(record))
    own = parsed("DM_DDM", *like, "--no-zca")
    assert own.clip_pixels and not own.zca
    parsed("DM_GramMatching", *like)
    err = capsys.readouterr().err
    assert "no --ce_ratio, --cm_ratio" in err and "has none: --style_ratio" in err


@pytest.mark.parametrize("run", ["ablation/ipc10/best", "choices/optimizer/sgd"])  # of 0.1.0 and 0.2.0
def test_like_repeats_best_of_earlier_versions(run):
    """Their preset had other values, which their files have kept."""
    own = parse("DM_DDM", "--like", ROOT / "docs/results" / run / "results.json")
    found = (own.optimizer, own.lr_img, own.lr_schedule, own.weights, own.rr_ratio, own.clip_pixels)
    assert found == ("sgd", 5.0, "cosine", "absolute", 30.0, False)


def test_like_takes_what_a_command_can_repeat_of_another_commands_file(tmp_path):
    path = tmp_path / "results.json"
    given = {"model": "ConvNetW32", "eval_mode": "S", "rr_ratio": None, "seed": None}  # rr_ratio of 0.2.0's preset best
    path.write_text(json.dumps({"args": given | {"rr_ratio": 3.0, "seed": 1}, "asked": given}))
    own = parsed("evaluate", "set.pt", "--like", path)
    assert (own.model, own.eval_mode) == (None, "S")  # they exclude each other
    own = parsed("evaluate", "set.pt", "--like", path, "--model", "AlexNet")
    assert (own.model, own.eval_mode) == ("AlexNet", None)
    own = parsed("DM_DDM", "--like", path)
    assert (own.model, own.eval_mode, own.rr_ratio, own.seed) == ("ConvNetW32", "S", 3.0, 1)  # which can't be unset


@pytest.mark.parametrize(
    "content",
    [
        '{"args": {"zca": "no"}}',
        '{"args": {"ipc": true}}',
        "",
        "[]",
        '{"args": 1}',
        '{"args": {"ipc": "many"}}',
        '{"args": {"ipc": [2]}}',
        '{"args": {"init": "x"}}',
    ],
)
def test_like_refuses_what_is_not_a_result(content, tmp_path, capsys):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        parsed("DM_DDM", "--like", tmp_path / "results.json")
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and "--like" in err


PRESETS = {
    "style": {"mm_ratio": 180, "cm_ratio": 700, "icd_ratio": 0, "style_tap": "conv", "style_scale": "relative"},
    "best": {"rr_ratio": 3, "rr_ridge": 0.1, "clip_pixels": True, "optimizer": "normalised", "weights": "balanced"},
    "strong": {"rr_ratio": 0.3, "ce_ratio": 3, "networks": "mixed", "factor": None, "weights": "balanced"},
    "fast": {"Iteration": 1000, "batch_real": 32, "real_sampling": "balanced", "lr_schedule": "cosine"},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_values_that_docs_and_results_name(preset):
    values = parsed("DM_DDM", "--preset", preset).values()
    assert {name: values[name] for name in PRESETS[preset]} == PRESETS[preset]
