"""Reading, normalising and sampling."""

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import tiny_arrays

from ddm.compat import get_dataset
from ddm.data import loading
from ddm.data.catalogue import DATASETS, Arrays
from ddm.data.images import Batches
from ddm.data.loading import load
from ddm.errors import UserError


def test_npz_gives_the_same_images_channels_first(data_path):
    data, arrays = load("CIFAR10", data_path), tiny_arrays()
    assert data.x_train.dtype == torch.uint8 and data.im_size == (32, 32) and data.channel == 3
    assert torch.equal(data.x_train.permute(0, 2, 3, 1), torch.from_numpy(arrays["x_train"]))
    assert torch.equal(data.y_test, torch.from_numpy(arrays["y_test"]))
    assert data.num_classes == 10 and data.class_names[:2] == ["airplane", "automobile"]


def test_keras_layouts_and_class_names(tmp_path):
    arrays = tiny_arrays()
    arrays |= {
        "y_train": arrays["y_train"][:, None].astype(np.uint8),
        "classes": np.array(list("abcdefghij"), dtype="S1"),
    }
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
    assert torch.equal((data.normalisation.pixels(x) * 255).round().to(torch.uint8), data.x_train[:4])
    assert data.normalisation.pixels(torch.full((3, 2, 2), 99.0)).max() == 1
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
    "not an array": (broken(x_train=None), "x_train"),
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


def test_damage_inside_the_archive_is_named(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", **tiny_arrays())
    good = zipfile.ZipFile(tmp_path / "good.npz")
    for case in ("header", "member", "huge"):
        with zipfile.ZipFile(tmp_path / "CIFAR10.npz", "w") as bad:
            for name in good.namelist():
                content = good.read(name)
                if name == "x_train.npy":
                    shape = b"(80, 32, 32, 3)"
                    content = {
                        "header": content.replace(b"'shape'", b"'sh\x00\xffe'"),
                        "member": b"no array at all",
                        "huge": content.replace(shape, b"(9" + b"0" * (len(shape) - 4) + b",)"),
                    }[case]
                bad.writestr(name, content)
        with pytest.raises(UserError, match=r"CIFAR10\.npz: ") as caught:
            load("CIFAR10", tmp_path)
        assert "\n" not in str(caught.value), case


def idx_file(path, array):
    """MNIST's format: 0, 0, type 8 (uint8), dimensions, sizes, values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def test_torchvisions_own_files_are_read_and_damage_to_them_is_named(tmp_path):
    arrays = {k: v[..., 0][:, :28, :28] if k[0] == "x" else v.astype(np.uint8) for k, v in tiny_arrays().items()}
    raw = tmp_path / "FashionMNIST" / "raw"
    for split, name in (("train", "train"), ("test", "t10k")):
        idx_file(raw / f"{name}-images-idx3-ubyte", np.ascontiguousarray(arrays[f"x_{split}"]))
        idx_file(raw / f"{name}-labels-idx1-ubyte", arrays[f"y_{split}"])
    data = load("FashionMNIST", tmp_path)
    assert torch.equal(data.x_train[:, 0], torch.from_numpy(arrays["x_train"].copy()))
    assert torch.equal(data.y_test, torch.from_numpy(arrays["y_test"]).long()) and data.class_names[9] == "Ankle boot"
    for size in (3, 1000):
        with open(raw / "train-images-idx3-ubyte", "r+b") as file:
            file.truncate(size)
        with pytest.raises(UserError, match=r"FashionMNIST files in .* can't be read .*delete them"):
            load("FashionMNIST", tmp_path)


@pytest.mark.parametrize(("name", "labels"), [("CIFAR10", "targets"), ("SVHN", "labels")])
def test_torchvisions_layouts(name, labels, monkeypatch, tmp_path):
    """SVHN comes channels first with `labels`, CIFAR channels last with `targets`."""
    arrays = tiny_arrays()

    class Fake:
        def __init__(self, root, download, train=None, split=None):
            which = "train" if train or split == "train" else "test"
            x = arrays[f"x_{which}"]
            self.data = x.transpose(0, 3, 1, 2) if name == "SVHN" else x
            setattr(self, labels, arrays[f"y_{which}"].tolist())

    monkeypatch.setattr(torchvision.datasets, name, Fake)
    data = load(name, tmp_path)
    assert torch.equal(data.x_train.permute(0, 2, 3, 1), torch.from_numpy(arrays["x_train"]))
    assert torch.equal(data.x_test.permute(0, 2, 3, 1), torch.from_numpy(arrays["x_test"]))
    assert data.y_test.tolist() == arrays["y_test"].tolist()


PUBLISHED_CONSTANTS = {
    "MNIST": ([0.1307], [0.3081]),
    "FashionMNIST": ([0.2861], [0.3530]),
    "SVHN": ([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]),
    "CIFAR10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "CIFAR100": ([0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]),
}


def test_published_constants_and_class_counts():
    assert {name: (DATASETS[name].mean, DATASETS[name].std) for name in PUBLISHED_CONSTANTS} == PUBLISHED_CONSTANTS
    assert {name: len(set(spec.class_names)) for name, spec in DATASETS.items()} == dict.fromkeys(DATASETS, 10) | {
        "CIFAR100": 100
    }


def test_constants_of_own_images_are_their_mean_and_std_and_need_little_memory():
    x = np.random.default_rng(0).integers(0, [256, 40, 1], (1100, 24, 20, 3), dtype=np.uint8)
    labels = np.arange(len(x)) % 2
    tracemalloc.start()
    spec = loading.user_spec("own", Arrays(x, labels, x[:2], labels[:2]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spec.shape == (3, 24, 20) and peak < 2 * x.nbytes  # NumPy's std alone needs 8 times the images
    np.testing.assert_allclose(spec.mean, x.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(spec.std, x.std((0, 1, 2)) / 255, rtol=1e-12)
    with pytest.raises(UserError, match=r"x_train is uint8 \[1100, 0, 20, 3\]"):
        loading.user_spec("own", Arrays(x[:, :0], labels, x[:2], labels[:2]))


@pytest.mark.parametrize("existing", ["", "data", "data/kept"])
def test_no_data_and_no_network_says_where_the_file_may_be_put(existing, tmp_path, monkeypatch):
    (tmp_path / existing).mkdir(parents=True, exist_ok=True)

    def no_network(folder, **options):
        (Path(folder) / "MNIST" / "raw").mkdir(parents=True)
        raise RuntimeError("Error downloading x:\nTried mirror, got:\n<urlopen error no network>\n")

    monkeypatch.setattr(torchvision.datasets, "MNIST", no_network)
    with pytest.raises(UserError, match=r"no MNIST in .*no network.*MNIST\.npz") as caught:
        load("MNIST", tmp_path / "data" / "deeper" if not existing else tmp_path / "data")
    assert "\n" not in str(caught.value)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"", "data", existing} - {""} if existing else not left


def test_a_path_that_can_not_be_looked_at_is_named():
    with pytest.raises(UserError, match="--data_path"):
        load("CIFAR10", "d" * 300)


def test_validation_holds_out_a_seeded_tenth_of_every_class(tmp_path):
    np.savez(tmp_path / "CIFAR10.npz", **tiny_arrays(train=20))
    data = load("CIFAR10", tmp_path)
    split, again, other = (data.with_validation(seed) for seed in (3, 3, 4))
    assert torch.equal(split.x_test, again.x_test) and not torch.equal(split.x_test, other.x_test)
    assert split.y_test.bincount().tolist() == [2] * 10 and split.y_train.bincount().tolist() == [18] * 10
    assert all(split.y_train[own].eq(c).all() and len(own) == 18 for c, own in enumerate(split.indices))
    rows = {split_name: {tuple(x.flatten().tolist()) for x in images} for split_name, images in (
        ("train", split.x_train), ("val", split.x_test), ("all", data.x_train), ("test", data.x_test)
    )}  # fmt: skip
    assert not rows["train"] & rows["val"] and rows["train"] | rows["val"] == rows["all"]
    assert not rows["val"] & rows["test"]


def test_a_registered_reader_that_fails_is_named(tmp_path, monkeypatch):
    rows = torch.arange(20).numpy()
    arrays = (np.zeros((20, 8, 8, 1), np.uint8), rows % 2, np.zeros((20, 8, 8, 1), np.uint8), rows % 2)
    spec = DATASETS["Digits"]._replace(shape=(1, 8, 8), class_names=["a", "b"], read=lambda data_path: arrays)
    monkeypatch.setitem(loading.DATASETS, "Mine", spec)
    assert load("Mine", tmp_path).num_classes == 2  # a plain tuple will do
    for error, text in (
        (NameError("np"), r"reading Mine raises NameError \(np\): correct"),
        (UserError("x y"), "x y"),
    ):

        def failing(data_path, error=error):
            raise error

        monkeypatch.setitem(loading.DATASETS, "Mine", spec._replace(read=failing))
        with pytest.raises(UserError, match=text):
            load("Mine", tmp_path)


def test_class_names_have_the_order_of_the_published_labels():
    names = "airplane automobile bird cat deer dog frog horse ship truck"  # the order of the published labels
    assert DATASETS["CIFAR10"].class_names == names.split()
    assert DATASETS["CIFAR100"].class_names == sorted(DATASETS["CIFAR100"].class_names)
