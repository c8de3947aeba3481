"""Architectures against the published ones, and what they promise beyond them."""

import json

import numpy as np
import pytest
import torch

import networks
from ddm.errors import UserError
from ddm.networks import ARCHITECTURES, TAPPABLE, get_network, initialise


def fill(net: torch.nn.Module) -> None:
    """The rule of the reference values: parameter j, entry i of n: sin(0.7 i + j) / sqrt(max(1, n / shape[0]))."""
    with torch.no_grad():
        for j, parameter in enumerate(net.parameters()):
            n = parameter.numel()
            values = torch.sin(0.7 * torch.arange(n, dtype=torch.float64) + j) / max(1, n / parameter.shape[0]) ** 0.5
            parameter.copy_(values.float().view_as(parameter))


def test_equal_to_the_published_networks(reference):
    shapes = json.loads((reference / "networks.json").read_text())
    values = np.load(reference / "networks.npz")
    for case, expected in shapes.items():
        name, (channel, size) = case.split("/")[0], map(int, case.split("/")[1].split("x"))
        net = get_network(name, channel, 10, (size, size)).eval()
        assert [list(p.shape) for p in net.parameters()] == expected["param_shapes"], case
        assert sum(p.numel() for p in net.parameters()) == expected["params"], case
        fill(net)
        n = 4 * channel * size * size
        x = torch.sin(0.37 * torch.arange(n, dtype=torch.float64)).float().view(4, channel, size, size)
        with torch.no_grad():
            logits, embedding = net(x), net.embed(x)
        np.testing.assert_allclose(logits, values[f"{case}/logits"], rtol=1e-4, atol=1e-4, err_msg=case)
        if isinstance(embedding, tuple):
            embedding, maps = embedding
            for i, tap in enumerate(maps):
                if f"{case}/tap{i}_mean" in values:
                    assert list(tap.shape) == expected["tap_shapes"][i], case
                    for what, found in (("mean", tap.mean((2, 3))), ("min", tap.min())):
                        np.testing.assert_allclose(found, values[f"{case}/tap{i}_{what}"], atol=1e-5, err_msg=case)
        if expected["embed_dim"] is not None:
            assert embedding.shape == (4, expected["embed_dim"]), case
            row_sum, row_sqsum = embedding.double().sum(1), embedding.double().square().sum(1)
            np.testing.assert_allclose(row_sum, values[f"{case}/embed_row_sum"], rtol=1e-4, atol=1e-3, err_msg=case)
            np.testing.assert_allclose(row_sqsum, values[f"{case}/embed_row_sqsum"], rtol=1e-4, err_msg=case)


@pytest.mark.parametrize("size", [8, 28, 32, 64, 128])
@pytest.mark.parametrize("channel", [1, 3])
def test_every_network_builds_at_every_size(size, channel):
    with torch.device("meta"):
        x = torch.empty(2, channel, size, size)
        for name in ARCHITECTURES:
            if size == 8 and not name.startswith("ConvNet"):
                continue
            if size != 32 and name.endswith("_style"):  # other names of the _gram forms
                continue
            net = get_network(name, channel, 7, (size, size))
            assert net(x).shape == (2, 7), name
            embedding = net.embed(x)
            assert isinstance(embedding, tuple) == name.endswith(("_gram", "_style")), name
            assert len(embedding[0] if isinstance(embedding, tuple) else embedding) == 2, name


@pytest.mark.parametrize("name", ["ConvNetD5", "ConvNetD4_gram", "VGG11", "ResNet18"])
def test_deep_networks_on_small_images_still_see_them(name):
    net = get_network(name, 3, 10, (8, 8) if name.startswith("ConvNet") else (28, 28))
    x = torch.randn(2, 3, 8, 8) if name.startswith("ConvNet") else torch.randn(2, 3, 28, 28)
    logits = net(x)
    assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_taps_are_where_the_published_losses_read():
    x = torch.randn(2, 3, 32, 32)
    shapes = {
        "ConvNet_gram": [(128, 32), (128, 16), (128, 8)],
        "AlexNet_gram": [(128, 16), (192, 8)],
        "VGG11_gram": [(64, 32), (128, 16), (256, 8), (256, 8), (512, 4), (512, 4), (512, 2), (512, 2)],
        "ResNet18_gram": [(64, 32), (64, 32), (128, 16)],
    }
    for name, expected in shapes.items():
        net = get_network(name, 3, 10)
        embedding, maps = net.embed(x)
        assert [(m.shape[1], m.shape[2]) for m in maps] == expected
        assert all(m.min() >= 0 for m in maps), "a tap is an activation, never negative"
        plain = get_network(name.removesuffix("_gram"), 3, 10)
        plain.load_state_dict(net.state_dict())
        assert torch.equal(plain.embed(x), embedding)
        style = get_network(name.replace("_gram", "_style"), 3, 10)
        style.load_state_dict(net.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(style.embed(x)[1], maps, strict=True))


def test_every_tappable_name_has_both_forms():
    assert {"ConvNetD5", "ConvNetBN", "AlexNet", "VGG11", "ResNet18"} <= set(TAPPABLE)
    assert all(f"{name}{suffix}" in ARCHITECTURES for name in TAPPABLE for suffix in ("_gram", "_style"))


def test_get_network_does_not_reseed():
    torch.manual_seed(5)
    first = get_network("ConvNetW32", 3, 10)
    second = get_network("ConvNetW32", 3, 10)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    torch.manual_seed(5)
    assert torch.equal(next(first.parameters()), next(get_network("ConvNetW32", 3, 10).parameters()))


def test_initialise_is_in_place_repeatable_and_like_torch():
    net = get_network("ConvNetBN", 3, 10)
    pointers = [p.data_ptr() for p in net.parameters()]
    net(torch.randn(4, 3, 32, 32))  # moves the running statistics
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(9)
    state = torch.get_rng_state()
    initialise(net, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
    first = {k: v.clone() for k, v in net.state_dict().items()}
    initialise(net, torch.Generator().manual_seed(2))
    assert not torch.equal(net.state_dict()["features.0.weight"], first["features.0.weight"])
    initialise(net, torch.Generator().manual_seed(1))
    assert all(torch.equal(v, first[k]) for k, v in net.state_dict().items())
    assert [p.data_ptr() for p in net.parameters()] == pointers
    assert first["features.1.running_mean"].abs().max() == 0 and first["features.1.weight"].eq(1).all()
    torch_default = torch.nn.Conv2d(128, 128, 3, padding=1)
    for ours, theirs in (
        (first["features.4.weight"], torch_default.weight),
        (first["features.4.bias"], torch_default.bias),
    ):
        bound = (128 * 9) ** -0.5
        assert ours.abs().max() <= bound and theirs.abs().max() <= bound
        assert abs(ours.std() - bound / 3**0.5) < 0.1 * bound and ours.abs().max() > 0.95 * bound


def test_module_is_itself_as_under_dataparallel():
    net = get_network("ConvNetW32", 3, 10)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.module.embed(x), net.embed(x))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("ConvNet_gran", "ConvNet_gram"), ("convnet", "ConvNet"), ("Resnet-18", "ResNet18"), ("zz", "MLP")],
)
def test_unknown_names_get_the_nearest(name, hint):
    with pytest.raises(UserError, match=hint):
        get_network(name, 3, 10)


def test_too_small_images_are_refused_not_made_constant():
    for name in ("LeNet", "ResNet18"):
        with pytest.raises(UserError, match=f"{name}.*8x8"):
            get_network(name, 3, 10, (8, 8))


def test_published_constructors_are_in_networks_py():
    assert networks.get_network is get_network
    net = networks.ConvNet(3, 10, 32, 2, "leakyrelu", "groupnorm", "maxpooling", im_size=(32, 32))
    assert net.embed(torch.randn(1, 3, 32, 32)).shape == (1, 32 * 8 * 8)
    for name in ("MLP", "LeNet", "AlexNet", "AlexNetBN", "VGG11", "VGG11BN", "ResNet18", "ResNet18BN", "ResNet18BN_AP"):
        assert getattr(networks, name)(3, 10)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
