"""Reading, normalising and sampling."""

import numpy as np
import pytest
import torch
from conftest import tiny_arrays

import data as datasets
from data import DATASETS, Batches, get_dataset, load
from errors import UserError


def test_npz_gives_the_same_images_channels_first(data_path):
    data, arrays = load("CIFAR10", data_path), tiny_arrays()
    assert data.x_train.dtype == torch.uint8 and data.im_size == (32, 32) and data.channel == 3
    assert torch.equal(data.x_train.permute(0, 2, 3, 1), torch.from_numpy(arrays["x_train"]))
    assert torch.equal(data.y_test, torch.from_numpy(arrays["y_test"]))
    assert data.num_classes == 10 and data.class_names == [str(c) for c in range(10)]


def test_keras_layouts_and_class_names(tmp_path):
    arrays = tiny_arrays()
    arrays |= {"y_train": arrays["y_train"][:, None].astype(np.uint8), "classes": np.array(list("abcdefghij"))}
    np.savez_compressed(tmp_path / "CIFAR10.npz", **arrays)
    data = load("CIFAR10", tmp_path)
    assert data.y_train.shape == (80,) and data.y_train.dtype == torch.int64 and data.class_names == list("abcdefghij")
    grey = {k: v[..., 0][:, :28, :28] if k[0] == "x" else v for k, v in tiny_arrays().items()}
    np.savez(tmp_path / "FashionMNIST.npz", **grey)
    assert load("FashionMNIST", tmp_path).x_train.shape == (80, 1, 28, 28)


def test_normalise_is_the_published_transform_and_denormalise_its_inverse(data_path):
    data = load("CIFAR10", data_path)
    x = data.normalise(data.x_train[:4])
    expected = (data.x_train[:4].float() / 255 - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(
        3, 1, 1
    )
    torch.testing.assert_close(x, expected)
    assert torch.equal((data.denormalise(x) * 255).round().to(torch.uint8), data.x_train[:4])
    assert data.denormalise(torch.full((3, 2, 2), 99.0)).max() == 1
    assert data.mean == [0.4914, 0.4822, 0.4465] and data.std == [0.2023, 0.1994, 0.2010]


def test_digits_is_real_data_without_a_network():
    data = load("Digits", "nowhere")
    assert data.x_train.shape == (1437, 1, 8, 8) and data.x_test.shape == (360, 1, 8, 8)
    pixels = data.x_train.float() / 255
    assert data.mean == [pytest.approx(pixels.mean().item(), abs=1e-4)]
    assert data.std == [pytest.approx(pixels.std().item(), abs=1e-4)]
    assert torch.equal(load("Digits", "nowhere").x_train, data.x_train)


def test_draw_is_without_replacement_until_the_class_is_used_up(data_path):
    data = load("CIFAR10", data_path)
    g = torch.Generator().manual_seed(0)
    drawn = data.draw(3, 8, g)
    assert sorted(drawn.tolist()) == sorted(data.indices[3].tolist()) and data.y_train[drawn].eq(3).all()
    drawn = data.draw(3, 21, g)
    counts = torch.bincount(drawn)[data.indices[3]]
    assert len(drawn) == 21 and counts.min() == 2 and counts.max() == 3
    assert not torch.equal(drawn[:8], drawn[8:16])


def test_batches_cover_the_set_once_each_pass():
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    batches = Batches(x, y, 4, shuffle=True, generator=torch.Generator().manual_seed(0))
    first, second = ([lab.tolist() for _, lab in batches] for _ in range(2))
    assert [len(b) for b in first] == [4, 4, 2] == [len(b) for b in second] and len(batches) == 3
    assert sorted(label for batch in first for label in batch) == list(range(10)) and first != second
    assert all(torch.equal(img[:, 0].long(), lab) for img, lab in batches)
    assert [lab.tolist() for _, lab in Batches(x, y, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_get_dataset_is_the_published_tuple(data_path):
    channel, im_size, num_classes, names, mean, std, dst_train, dst_test, testloader = get_dataset("CIFAR10", data_path)
    assert (channel, im_size, num_classes, len(names), len(mean), len(std)) == (3, (32, 32), 10, 10, 3, 3)
    image, label = dst_train[5]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and isinstance(label, int)
    assert len(dst_train) == 80 and len(dst_test) == 30
    images, labels = next(iter(testloader))
    assert images.shape == (30, 3, 32, 32) and labels.tolist() == dst_test.targets


def broken(**change) -> dict:
    arrays = tiny_arrays() | change
    return {k: v for k, v in arrays.items() if v is not None}


X, Y = (tiny_arrays()[k] for k in ("x_train", "y_train"))
BAD_NPZ = {
    "missing": (broken(y_test=None), "y_test"),
    "float pixels": (broken(x_train=X.astype(np.float32)), "float32"),
    "channels first": (broken(x_train=X.transpose(0, 3, 1, 2)), r"\[80, 3, 32, 32\]"),
    "grey": (broken(x_train=X[..., 0]), r"needs uint8 \[N, 32, 32, 3\]"),
    "fewer labels": (broken(y_train=Y[:-1]), r"\[79\]"),
    "float labels": (broken(y_train=Y.astype(float)), "float64"),
    "label 10": (broken(y_train=Y + 1), "1 to 10"),
    "empty": (broken(x_test=X[:0], y_test=Y[:0]), "x_test is empty"),
    "pickled": (broken(y_train=np.array([None] * 80, dtype=object)), "not a readable"),
    "names": (broken(classes=np.array(["a", "b"])), "2 class names"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_bad_npz_is_named(tmp_path, case):
    arrays, message = BAD_NPZ[case]
    np.savez(tmp_path / "CIFAR10.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        load("CIFAR10", tmp_path)
    assert "CIFAR10.npz" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04garbage", b"\x93NUMPY"])
def test_an_unreadable_npz_is_named(tmp_path, content):
    (tmp_path / "CIFAR10.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"CIFAR10\.npz: not a readable"):
        load("CIFAR10", tmp_path)


def test_no_data_and_no_network_says_where_the_file_may_be_put(tmp_path, monkeypatch):
    def no_network(data_path):
        (data_path / "MNIST" / "raw").mkdir(parents=True)
        raise RuntimeError("Error downloading x:\nTried mirror, got:\n<urlopen error no network>\n")

    monkeypatch.setitem(datasets.DATASETS, "MNIST", DATASETS["MNIST"]._replace(read=no_network))
    with pytest.raises(UserError, match=r"no MNIST in .*no network.*MNIST\.npz") as caught:
        load("MNIST", tmp_path / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()
