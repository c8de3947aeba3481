"""The library: condensing without a command line gives what the command gives; mistakes are one line."""

import numpy as np
import pytest
import torch
from conftest import QUICK, maker, parse, parsed, run, tiny_arrays
from torch import nn

import ddm
from ddm.data.loading import load
from ddm.errors import UserError
from ddm.evaluation import sets
from ddm.methods.matching import Needs

TINY = tuple(tiny_arrays()[name] for name in ("x_train", "y_train", "x_test", "y_test"))
SMALL = {"ipc": 2, "batch_real": 6, "Iteration": 3, "num_eval": 2, "epoch_eval_train": 2, "model": "ConvNetW32"}


def test_it_gives_what_the_command_gives(data_path, tmp_path):
    saved, results = run("DM_DDM", data_path, tmp_path, "--preset", "dm")
    made = ddm.condense(dataset="CIFAR10", data_path=str(data_path), preset="dm", **SMALL)
    assert torch.equal(made.images, saved["data"][0][0]) and torch.equal(made.labels, saved["data"][0][1])
    assert made.accuracies == {"ConvNetW32": results["accuracies"]} == saved["accs_all_exps"]
    assert (made.mean, made.std, made.class_names) == (saved["mean"], saved["std"], saved["class_names"])
    made.save(tmp_path / "made.pt")
    again = ddm.load(tmp_path / "made.pt")
    assert torch.equal(again.images, made.images) and again.accuracies == made.accuracies
    loaded = ddm.load(tmp_path / "res_DM_CIFAR10_ConvNetW32_2ipc.pt")
    assert torch.equal(loaded.pixels(), made.pixels()) and 0 <= made.pixels().min() <= made.pixels().max() <= 1
    assert set(saved["args"]) - set(made.metadata["args"]) == set()


def test_settings_of_a_recipe_explicit_values_override_presets(data_path):
    settings = ddm.DDMSettings(dataset="CIFAR10", data_path=str(data_path), eval_every=0)
    made = ddm.condense(settings, preset="fast,best", **SMALL | {"rr_ratio": 0.0, "lr_img": 0.5})
    args = made.metadata["args"]
    assert (args["rr_ratio"], args["lr_img"], args["real_sampling"], args["Iteration"]) == (0.0, 0.5, "balanced", 3)


@pytest.mark.parametrize("name", ["set.npz", "set.safetensors", None])
def test_a_set_is_not_saved_under_the_suffix_of_another_format(name, data_path, tmp_path):
    found = ddm.CondensedDataset.from_tensors(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), {})
    with pytest.raises(UserError, match=r"name it \*\.pt"):
        found.save(name and tmp_path / name)


def test_skipped_steps_are_logged():
    lines = []
    ddm.condense(data=TINY, preset="dm", lr_img=1e37, on_nonfinite="skip", log=lines.append, **SMALL)
    assert [line for line in lines if line.startswith("iteration 2: ") and line.endswith("the step is skipped")]


def test_own_arrays_network_and_objective():
    arrays = tiny_arrays()
    data = tuple(arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    seen = []

    def network(channel, num_classes, im_size):
        layers = [nn.Conv2d(channel, 4, 3, padding=1), nn.AvgPool2d(8)]
        return ddm.networks.Network(layers, 4 * (im_size[0] // 8) ** 2, num_classes)

    def objective(real, syn, settings):
        seen.append((real.embedding.shape, syn.embedding.shape, settings.icd_ratio))
        return {"L": ddm.losses.mean_matching(real.embedding, syn.embedding)}

    before = dict(ddm.networks.ARCHITECTURES)
    made = ddm.condense(data=data, network=network, objective=objective, **SMALL | {"model": "ConvNet", "icd_ratio": 7})
    assert before == ddm.networks.ARCHITECTURES  # nothing stays behind
    assert {shape for shape, _, _ in seen} == {(10, 6, 64)} and {ratio for *_, ratio in seen} == {7}
    assert list(made.accuracies) == ["network"] and made.images.shape == (20, 3, 32, 32)
    assert "dataset" not in made.metadata["args"]
    mean = torch.tensor(np.asarray(data[0]).mean((0, 1, 2)) / 255)
    torch.testing.assert_close(torch.tensor(made.mean), mean.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda r, s: {"L": ddm.losses.mean_matching(r, s).mean()}, r"term 'L' is \[\].*\[10\]"),
        (lambda r, s: {"L": (r.mean(1) - s.mean(1)).square()}, r"term 'L' is \[10, .*\[10\]"),
        (lambda r, s: ddm.losses.mean_matching(r, s), "returned a Tensor: return a dict"),
        (lambda r, s: {"L": 3.0}, "term 'L' is float"),
    ],
)
@pytest.mark.parametrize("compile", ["off", "on"])
def test_an_objective_must_return_one_value_per_class(returned, message, compile, data_path):
    """Defect U5: a scalar made the loss depend on class_chunk."""

    def objective(real, syn, settings):
        return returned(real.embedding, syn.embedding)

    with pytest.raises(UserError, match=message):
        ddm.condense(
            dataset="CIFAR10", data_path=str(data_path), objective=objective, compile=compile, precision="fp32", **SMALL
        )


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


class Halved(Scaled):
    """Its reset_parameters() forgets the buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.ones(1))

    def reset_parameters(self):
        nn.init.constant_(self.scale, 0.5)


class Masked(nn.Conv2d):
    """A convolution that fills all it has."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.register_buffer("mask", torch.ones(1))

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "mask"):  # not yet in the constructor
            self.mask.fill_(0.25)


def appended(net, layer):
    net.features.append(layer)
    return net


def test_mistakes_are_one_line(data_path):
    for wrong, message in (
        ({"ipcc": 3}, "no setting 'ipcc'"),
        ({"ipc": 0}, "argument --ipc: 0 is below 1"),
        ({"ipc": 2.5}, "argument --ipc"),
        ({"ipc": None}, "argument --ipc: None is not a valid value"),
        ({"preset": "bets"}, "argument --preset"),
        ({"dataset": "CIFAR11"}, "did you mean 'CIFAR10'"),
        ({"init": "zeros"}, "argument --init: 'zeros' is none of real, noise"),
        ({"clip_pixels": 1}, "argument --clip_pixels"),
        ({"ipc": (2, 3)}, "argument --ipc"),
        ({"preset": ["fast"]}, "argument --preset"),
        ({"settings": {"ipc": 2}}, "settings are a dict: give a ddm.DDMSettings"),
        ({"network": "ConvNet"}, "network is a str"),
        ({"network": lambda c, n, s: nn.Sequential()}, "network returned a Sequential"),
        (
            {"network": lambda c, n, s: ddm.networks.ConvNet(c, n + 1, im_size=s)},
            "has 11 outputs: give it num_classes, here 10",
        ),
        (
            {"network": lambda c, n, s: appended(ddm.networks.ConvNet(c, n, im_size=s), Scaled())},
            r"features\.\d+\.scale",
        ),
        (
            {"network": lambda c, n, s: appended(ddm.networks.ConvNet(c, n, im_size=s), Halved())},
            r"features\.\d+\.kernel",
        ),
        ({"data": "x.npz"}, "data is not"),
        ({"data": TINY, "res": 16}, "res is for data sets by name"),
        ({"data": (TINY[0].transpose(0, 3, 1, 2), *TINY[1:])}, r"\[N, H, W, C\] with C 1 or 3"),
        ({"network": nn.Linear(2, 2)}, "network is a Linear: give a function"),
        ({"network": lambda c, n: nn.Sequential()}, r"called as <lambda>\(channel, num_classes, im_size\): too many"),
        ({"objective": lambda r, s: {}}, r"called as <lambda>\(real, syn, settings\): too many"),
        ({"objective": lambda r, s, q: {}, "needs": {"gram": None}}, "are a dict: give Needs"),
        ({"objective": lambda r, s, q: {}}, "returned an empty dict"),
        ({"objective": lambda r, s, q: {"L": r.embedding.sum((1, 2))}}, "no term of the objective depends"),
        (
            {"objective": lambda r, s, q: {"L": r.style["gram"][0]}},
            "'gram': if it is a statistic of feature maps, name it",
        ),
    ):
        with pytest.raises(UserError, match=message) as error:
            ddm.condense(**{"dataset": "CIFAR10", "data_path": data_path, **SMALL} | wrong)
        assert "\n" not in str(error.value)


def test_a_maker_is_driven_by_anyone(data_path):
    """What a run drives can be stepped by hand, and gives the run's images."""
    settings = parse("DM_KNearest", *QUICK, "--model", "ConvNetW32", "--data_path", str(data_path))
    own = maker("DM_KNearest", settings, load("CIFAR10", data_path))
    own.prepare()
    own.start(0, None)
    for iteration in (1, 2):
        own.step(iteration)
    half = own.state()
    own.step(3)
    whole, reports = own.images().clone(), own.check()
    assert [report.iteration for report in reports] == [1, 2, 3] and set(reports[0].terms) == {"L_MMD", "L_ICD"}
    own.start(0, half)
    own.step(3)
    assert torch.equal(own.images(), whole)


@pytest.mark.parametrize(
    ("argument", "says"), [({"log": "train.log"}, "log is a str"), ({"needs": Needs()}, "needs is")]
)
def test_arguments_without_use_are_refused_before_the_work(argument, says):
    with pytest.raises(UserError, match=says):
        ddm.condense(dataset="Digits", ipc=1, Iteration=1, **argument)


@pytest.mark.parametrize("needs", [Needs, 5, lambda settings: Needs])
def test_needs_of_another_kind_are_one_line(needs, tmp_path):
    with pytest.raises(UserError, match=r"the needs of library are a .*: give Needs\(\.\.\.\)"):
        ddm.condense(dataset="Digits", ipc=1, Iteration=1, objective=lambda real, syn, settings: {}, needs=needs)


def test_one_of_several_sets_saves_as_itself(data_path, tmp_path):
    saved, _ = run("DM_DDM", data_path, tmp_path, "--preset", "dm", "--num_exp", "2")
    second = ddm.load(tmp_path / "res_DM_CIFAR10_ConvNetW32_2ipc.pt", 1)
    for pixels in (False, True):
        own = ddm.load(tmp_path / "res_DM_CIFAR10_ConvNetW32_2ipc.pt", 1, pixels=pixels)
        own.save(tmp_path / "second.pt")
        again = ddm.load(tmp_path / "second.pt")
        assert torch.equal(again.images, own.images) and torch.equal(again.pixels(), second.pixels())
        assert again.accuracies == {"ConvNetW32": saved["accs_all_exps"]["ConvNetW32"][2:]}
        assert (again.metadata["args"]["first_exp"], again.metadata["args"]["num_exp"]) == (1, 1)
        (read,), notes = sets.read(tmp_path / "second.pt", load("CIFAR10", data_path))
        expected = load("CIFAR10", data_path).normalisation.normalise(second.pixels()) if pixels else second.images
        assert torch.equal(read.images, expected)
        assert not notes


def test_presets_of_a_settings_object_are_applied(data_path):
    told = {"dataset": "CIFAR10", "data_path": data_path}
    one = ddm.condense(ddm.DDMSettings(preset="dm", **told, **SMALL))
    assert torch.equal(one.images, ddm.condense(preset="dm", **told, **SMALL).images)
    with pytest.raises(UserError, match="argument --preset: 'nope' is none of fast, dm"):
        ddm.DDMSettings(preset="nope")


def test_own_data_are_split_and_whitened_and_numbers_may_be_numpys():
    data = (TINY[0][:, ::4, ::4], TINY[1], TINY[2][:, ::4, ::4], TINY[3])  # 8x8 pixels: whitening 32x32 takes a while
    plain, val, zca = (
        ddm.condense(data=data, preset="dm", **SMALL | {"ipc": np.int64(2)} | more)
        for more in ({}, {"eval_split": "val"}, {"zca": True})
    )
    assert not torch.equal(plain.images, val.images) and not torch.equal(plain.images, zca.images)
    assert "zca" in zca.metadata and zca.pixels().max() <= 1
    lists = ddm.condense(data=(torch.tensor(data[0]), data[1].tolist(), *data[2:]), preset="dm", **SMALL)
    assert torch.equal(lists.images, plain.images)


def test_needs_may_be_a_function_and_saving_elsewhere_is_refused(tmp_path):
    made = ddm.condense(
        data=TINY, objective=ddm.terms.objective, needs=ddm.terms.needs, lr_img=0.01, preset="paper", **SMALL
    )
    with pytest.raises(UserError, match="can't be written"):
        made.save(tmp_path / "no" / "set.pt")
    for wrong in (None, 3, ""):
        with pytest.raises(UserError, match="is no path"):
            ddm.load(wrong)


def test_a_set_of_the_library_is_repeated_with_other_settings(data_path, tmp_path):
    """k and eval_every depend on other settings: they stay unset in what was requested."""
    ddm.condense(dataset="CIFAR10", data_path=data_path, preset="published", **SMALL).save(tmp_path / "lib.pt")
    again = parsed("DM_DDM", "--like", tmp_path / "lib.pt", "--ipc", "20")
    assert (again.k, again.eval_every) == (None, None)


def test_an_objective_may_add_a_term_later(data_path):
    calls = []

    def objective(real, syn, settings):
        calls.append(0)
        terms = {"L_MMD": ddm.losses.mean_matching(real.embedding, syn.embedding)}
        return terms | ({"L_2": terms["L_MMD"]} if len(calls) > 1 else {})

    ddm.condense(dataset="CIFAR10", data_path=data_path, objective=objective, **SMALL | {"Iteration": 3})
    assert len(calls) >= 3


@pytest.mark.parametrize("suffix", ["_gram", "_style"])
def test_a_network_of_any_name_has_a_pool(suffix, data_path):
    def network(channel, num_classes, im_size):
        return ddm.networks.ConvNet(channel, num_classes, net_width=8, im_size=im_size)

    network.__name__ = f"tiny{suffix}"
    ddm.condense(dataset="CIFAR10", data_path=data_path, network=network, networks="online", pool=2, **SMALL)


def test_a_layer_that_fills_all_its_values_is_drawn_by_itself(data_path):
    nets = []

    def masked(channel, num_classes, im_size):
        layers = [Masked(channel, 4, 3), nn.AdaptiveAvgPool2d(2)]
        nets.append(ddm.networks.Network(layers, 16, num_classes))
        return nets[-1]

    made = ddm.condense(dataset="CIFAR10", data_path=data_path, network=masked, preset="dm", **SMALL)
    assert made.images.isfinite().all()
    net = ddm.networks.initialise(masked(3, 10, (32, 32)), torch.Generator().manual_seed(0))
    assert net.features[0].mask.item() == 0.25 and 0 < net.features[0].weight.abs().max() < 27**-0.5
