"""A run drives any maker; what it records in results.json and in the set's file is one and the same."""

import json

import pytest
import torch
from conftest import QUICK, maker, parse, parsed, quick_model, recipe_of, run

from ddm.commands import condense
from ddm.data.images import Normalised
from ddm.errors import UserError
from ddm.maker import Diverged, Report
from ddm.methods import condensation
from ddm.runs import experiments, progress, resume


@pytest.mark.parametrize("recipe", ["DM_GramMatching"])
def test_results_and_the_sets_file_agree_after_memory_ran_out(recipe, data_path, tmp_path, monkeypatch):
    """Defect G11: the arguments were snapshots taken at different times."""
    whole, calls = condensation.condensation_step, []

    def scarce(*args):
        drawn, plan = args[-2:]
        calls.append(plan.chunk)
        if drawn["done"] == 1 and plan.chunk > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args)

    monkeypatch.setattr(condensation, "condensation_step", scarce)
    saved, results = run(recipe, data_path, tmp_path, "--class_chunk", "10", "--eval_every", "0")
    assert calls == [10, 10, 5, 2, 2] and results["args"]["class_chunk"] == "10,2@0:2"
    assert saved["args"] == results["args"] and saved["asked"] == results["asked"]
    assert saved["asked"]["class_chunk"] == 10
    assert saved["accs_all_exps"] == {quick_model(recipe): results["accuracies"]}
    # Defect G7: the record repeats the run bit for bit, where no chunk alone does.
    monkeypatch.setattr(condensation, "condensation_step", whole)
    argv = ("--eval_every", "0", "--num_eval", "1", "--class_chunk")
    again, repeated = run(recipe, data_path, tmp_path / "again", *argv, results["args"]["class_chunk"])
    assert repeated["args"]["class_chunk"] == "10,2@0:2"
    assert torch.equal(again["data"][0][0], saved["data"][0][0])


class Counting:
    """A maker of the tests: images that say how often they were stepped."""

    kind, iterations = "counted", 4

    def __init__(self, data, plan):
        self.data, self.plan, self.value, self.pending = data, plan, 0.0, []

    def arguments(self):
        return self.plan.settings.values()

    def cautions(self):
        return ["a caution of the maker"]

    def prepare(self, remaining):
        self.remaining = remaining

    def start(self, experiment, saved):
        self.value = 0.0 if saved is None else saved[0].mean().item()

    def step(self, iteration):
        self.value += 1
        self.pending.append(iteration)

    def check(self):
        done, self.pending = self.pending, []
        if self.value == 3 and self.plan.settings.seed == 13:
            raise Diverged("L_TEST is not finite", done[-1], self.images(), self.images())
        return [Report(i, {"L_TEST": 1.0 / i}) if i != 2 else Report(i, {}, "L_TEST of classes 0 to 1") for i in done]

    def images(self):
        return torch.full((20, 3, 32, 32), self.value)

    def state(self):
        return self.images(), self.images(), None

    def training_set(self, experiment, images):
        return Normalised(self.data, self.data.x_train), self.data.y_train

    def baseline(self, experiment):
        raise AssertionError("--eval_every 0 has no baseline")


def drive(data_path, save_path, *argv):
    line = [*QUICK, "--model", "ConvNetW32", "--eval_every", "0", *argv]
    line += ["--data_path", data_path, "--save_path", save_path]
    asked, settings = parsed("DM_DDM", *line), parse("DM_DDM", *line)
    made = []

    def make(data, own, group, say):
        made.append(Counting(data, maker("DM_DDM", own, data).plan))
        return made[-1]

    experiments.carry_out(asked, settings, "counting", "", make, "COUNT", "20 images")
    return made[0]


def test_a_run_drives_any_maker(data_path, tmp_path, capsys):
    made = drive(data_path, tmp_path, "--Iteration", "4", "--num_exp", "2")
    assert made.remaining == 2
    results = json.loads((tmp_path / "results.json").read_text())
    saved = torch.load(tmp_path / "res_COUNT.pt")
    assert [images.unique().tolist() for images, _ in saved["data"]] == [[4.0], [4.0]]
    assert results["skipped"] == [[0, 2], [1, 2]] and results["args"]["recipe"] == "counting"
    assert {entry["images"] for entry in results["evaluations"]} == {"counted"} and results["n"] == 4
    log = (tmp_path / "training.log").read_text()
    assert "exp 1 iter 4: loss 0.25 (L_TEST 0.25)" in log and "L_TEST of classes 0 to 1; the step is skipped" in log
    assert log.count("warning: a caution of the maker") == 1
    assert "2 experiment(s) of 20 images" in capsys.readouterr().out


def test_a_maker_that_diverges_leaves_its_last_images(data_path, tmp_path):
    with pytest.raises(UserError, match="experiment 0, iteration 3: L_TEST is not finite; the images before it are in"):
        drive(data_path, tmp_path, "--Iteration", "4", "--seed", "13", "--checkpoint_every", "1")
    assert torch.load(tmp_path / "last_finite_COUNT_exp0_iter2.pt")["data"][0][0].unique().tolist() == [3.0]
    assert not (tmp_path / "results.json").exists()


def test_every_recipe_names_itself(data_path, tmp_path):
    for name in ("DM_KNearest", "DM_DDM"):
        assert recipe_of(name).name == name
        _, results = run(name, data_path, tmp_path / name, "--Iteration", "1", "--num_eval", "1", "--eval_every", "0")
        assert results["args"]["recipe"] == name
    assert condense.DDM.name == "DM_DDM"  # `ddm condense` resumes and repeats what DM_DDM.py began


def test_what_has_grown_does_not_shrink_again(data_path, tmp_path):
    """The set's file would have more sets than its arguments say."""
    quick = ("--eval_every", "0", "--num_eval", "1", "--Iteration", "1")
    for number in ("1", "3"):
        saved, results = run("DM_DDM", data_path, tmp_path, "--num_exp", number, *quick)
    assert len(saved["data"]) == results["n"] == results["args"]["num_exp"] == 3
    with pytest.raises(UserError, match="--num_exp 3 there, 2 now"):
        run("DM_DDM", data_path, tmp_path, "--num_exp", "2", *quick)


def test_a_changed_objective_is_warned_of_on_resume(data_path, tmp_path, capsys):
    line = [*QUICK, "--model", "ConvNetW32", "--eval_every", "0", "--num_eval", "1", "--data_path", data_path]
    line = parsed("DM_KNearest", *line, "--save_path", tmp_path)
    first = condense.Recipe(
        "mine", lambda r, s, settings: {"L": (r.embedding.mean(1) - s.embedding.mean(1)).norm(dim=1)}
    )
    same = condense.Recipe(
        "mine",
        lambda r, s, settings: {"L": (r.embedding.mean(1) - s.embedding.mean(1)).norm(dim=1)},  # elsewhere, commented
    )
    other = condense.Recipe(
        "mine", lambda r, s, settings: {"L": 2 * (r.embedding.mean(1) - s.embedding.mean(1)).norm(dim=1)}
    )
    for recipe, warned in ((first, 0), (same, 0), (other, 1)):
        condense.run_recipe(recipe, line)
        assert capsys.readouterr().err.count("the objective's code is not the code") == warned


def test_another_python_compiles_the_same_objective_otherwise(data_path, tmp_path, monkeypatch, capsys):
    line = [*QUICK, "--model", "ConvNetW32", "--eval_every", "0", "--num_eval", "1", "--data_path", data_path]
    settings = parse("DM_KNearest", *line, "--save_path", tmp_path)
    run("DM_KNearest", data_path, tmp_path, "--eval_every", "0", "--num_eval", "1")
    state = progress.read(tmp_path / "checkpoint.pt")
    monkeypatch.setattr(resume, "versions", lambda: state.versions | {"python": "3.99"})
    resume.accept(state, settings, "DM_KNearest", "compiled by 3.99")
    assert state.code == "compiled by 3.99" and "objective's code" not in capsys.readouterr().err
