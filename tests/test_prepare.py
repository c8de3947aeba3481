"""Official layouts, small, through `ddm prepare`: what comes out, what is reported, and that it resumes."""

import gzip
import json
import shutil
import signal
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import command, parsed, run, tiny_arrays
from PIL import Image

from ddm import __main__ as entry
from ddm.commands import prepare_data
from ddm.data import layouts, store
from ddm.data.loading import classes_of, load
from ddm.errors import UserError
from ddm.interrupt import Stopped

WNIDS = [f"n{number:08d}" for number in range(10_000, 10_000 + 7 * 1000, 7)]


def picture(path, colour, size=(64, 64), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, tuple(int(x) for x in colour)).convert(mode)
    image.save(path, **options)


def colour_of(label):
    return np.array([label * 37 % 256, label * 91 % 256, label * 53 % 256])


def prepare(*argv):
    prepare_data.run(parsed("prepare", *argv))


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory):
    """tiny-imagenet-200.zip as it is published, with two training images a class and one of validation."""
    base = tmp_path_factory.mktemp("tiny")
    root = base / "tiny-imagenet-200"
    wnids = WNIDS[:200]
    for label, wnid in enumerate(wnids):
        for k in range(2):
            picture(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", colour_of(label), quality=95)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
        picture(root / "test" / "images" / f"test_{label}.JPEG", (0, 0, 0))
    order = np.random.default_rng(0).permutation(200)
    lines = []
    for k, label in enumerate(order):
        picture(root / "val" / "images" / f"val_{k}.JPEG", colour_of(label), quality=95)
        lines.append(f"val_{k}.JPEG\t{wnids[label]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(wnids[::-1]) + "\n")
    (root / "words.txt").write_text("".join(f"{wnid}\tthing {wnid[-3:]}, stuff\n" for wnid in WNIDS))
    with zipfile.ZipFile(base / "tiny-imagenet-200.zip", "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(base))
    return base / "tiny-imagenet-200.zip"


@pytest.fixture(scope="module")
def tiny_store(tiny_imagenet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    prepare("TinyImageNet", "--source", tiny_imagenet, "--data_path", folder)
    return folder


def assert_colours(data):
    for images, labels in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        means = images[:].float().mean((2, 3))
        expected = torch.from_numpy(np.stack([colour_of(int(label)) for label in labels])).float()
        assert (means - expected).abs().max() < 8  # JPEG


def test_tinyimagenet(tiny_store):
    data = load("TinyImageNet", tiny_store)
    assert data.x_train.shape == (400, 3, 64, 64) and data.x_test.shape == (200, 3, 64, 64)
    assert data.class_names[3] == f"thing {WNIDS[3][-3:]}" and data.mean == [0.485, 0.456, 0.406]
    assert_colours(data)
    about = json.loads((tiny_store / "TinyImageNet_64.store" / "store.json").read_text())
    assert about["wnids"] == WNIDS[:200] and about["counts"] == {"train": 400, "test": 200}
    assert any("another class order" in note for note in about["notes"])
    assert any("400 training and 200 test images" in note for note in about["notes"])
    pixels = data.x_train[:].double() / 255
    np.testing.assert_allclose(about["measured_mean"], pixels.mean((0, 2, 3)), atol=1e-9)
    np.testing.assert_allclose(about["measured_std"], pixels.std((0, 2, 3), correction=0), atol=1e-9)
    assert not list(tiny_store.glob("*.partial")) and not list(tiny_store.glob("*.source"))


def test_a_recipe_on_the_store_at_its_resolution(tiny_store, tmp_path, capsys):
    flags = "--dataset TinyImageNet --model ConvNetW32 --ipc 1 --batch_real 1 --Iteration 1 --icd_ratio 0"
    evaluation = "--num_eval 1 --epoch_eval_train 0 --eval_every 0"
    saved, results = run("DM_KNearest", tiny_store, tmp_path, *flags.split(), *evaluation.split())
    assert saved["data"][0][0].shape == (200, 3, 64, 64) and results["n"] == 1
    assert "ConvNetW32 of depth 4" in capsys.readouterr().out


def test_the_store_gives_the_run_that_memory_gives(tmp_path):
    """CIFAR10 from its .npz, and from a store made of that."""
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "CIFAR10.npz", **tiny_arrays())
    prepare("CIFAR10", "--source", tmp_path / "npz", "--data_path", tmp_path / "stores")
    argv = ("--real_sampling", "balanced", "--batch_real", "3")
    sets = [run("DM_KNearest", tmp_path / kind, tmp_path / f"out_{kind}", *argv) for kind in ("npz", "stores")]
    (a, b), (c, d) = ((saved["data"][0][0], results["accuracies"]) for saved, results in sets)
    assert torch.equal(a, c) and b == d


def test_validation_split_of_a_store(tmp_path):
    np.savez(tmp_path / "CIFAR10.npz", **tiny_arrays(20))
    prepare("CIFAR10", "--source", tmp_path / "CIFAR10.npz", "--data_path", tmp_path / "stores")
    whole = load("CIFAR10", tmp_path).with_validation(3)
    mapped = load("CIFAR10", tmp_path / "stores").with_validation(3)
    assert isinstance(mapped.x_train, store.Mapped)
    assert torch.equal(whole.x_train, mapped.x_train[:]) and torch.equal(whole.x_test, mapped.x_test[:])
    rows = torch.tensor([[3, 1], [0, 7]])
    assert torch.equal(whole.batch(rows), mapped.batch(rows)) and torch.equal(whole.x_test[4], mapped.x_test[4])
    # Cached networks are named by the digest: those of another split have seen the images that this one holds out.
    data = load("CIFAR10", tmp_path / "stores")
    digests = {data.digest, mapped.digest, data.with_validation(4).digest, data.with_validation(3).digest}
    assert len(digests) == 3


@pytest.mark.parametrize("gz", [True, False])
def test_idx_files_of_the_mnist_family(gz, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, n in (("train", 20), ("t10k", 10)):
        x, y = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10
        arrays[prefix] = x, y
        images = np.array([2051, n, 28, 28], ">i4").tobytes() + x.tobytes()
        labels = np.array([2049, n], ">i4").tobytes() + y.tobytes()
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = tmp_path / "raw" / f"{prefix}-{kind}-ubyte{'.gz' if gz else ''}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(content) if gz else content)
    prepare("FashionMNIST", "--source", tmp_path / "raw", "--data_path", tmp_path)
    data = load("FashionMNIST", tmp_path)
    assert np.array_equal(data.x_train[:][:, 0].numpy(), arrays["train"][0]) and data.class_names[0] == "T-shirt/top"
    assert np.array_equal(data.y_test.numpy(), arrays["t10k"][1]) and data.mean == [0.2861]


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory):
    """ILSVRC's train/<wnid> and flat val, two training images a class and one of validation, of any size."""
    root = tmp_path_factory.mktemp("ilsvrc")
    lines = ["ImageId,PredictionString\n"]
    for label, wnid in enumerate(WNIDS):
        for k in range(2):
            picture(root / "train" / wnid / f"{wnid}_{k}.JPEG", colour_of(label), (20 + k, 16), quality=95)
        name = f"ILSVRC2012_val_{label + 1:08d}"
        picture(root / "val" / f"{name}.JPEG", colour_of(label), (16, 18), quality=95)
        lines.append(f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n")
    (root / "LOC_val_solution.csv").write_text("".join(lines))
    return root


def test_imagenet_and_its_subsets(ilsvrc, tmp_path):
    prepare("ImageNet", "--source", ilsvrc, "--res", "16", "--data_path", tmp_path)
    data = load("ImageNet", tmp_path, 16)
    assert data.num_classes == 1000 and data.x_train.shape == (2000, 3, 16, 16)
    assert_colours(data)
    subset = load("ImageSquawk", tmp_path, 16)  # out of the whole
    prepare("ImageSquawk", "--source", ilsvrc, "--res", "16", "--data_path", tmp_path)
    alone = load("ImageSquawk", tmp_path, 16)  # from its own store
    assert subset.class_names == [WNIDS[c] for c in layouts.SQUAWK] == alone.class_names
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(subset, name)[:], getattr(alone, name)[:])
    with pytest.raises(UserError, match="other classes than ImageNette"):
        wrong = tmp_path / "wrong"
        for split in ("train", "val"):
            for wnid in WNIDS[:10]:
                shutil.copytree(ilsvrc / "train" / wnid, wrong / split / wnid)
        prepare("ImageNette", "--source", wrong, "--data_path", tmp_path)
    with pytest.raises(UserError, match="10 classes, ImageNet has 1000"):
        prepare("ImageNet", "--source", wrong, "--data_path", tmp_path)


def test_the_devkits_labels(ilsvrc, tmp_path):
    from scipy.io import savemat

    devkit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    numbers = np.random.default_rng(1).permutation(1000) + 1  # the devkit's own ids, in no order
    synsets = np.array(
        [(int(number), wnid) for number, wnid in zip(numbers, WNIDS, strict=True)],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")],
    )
    savemat(devkit / "meta.mat", {"synsets": synsets})
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in numbers))
    labels = layouts.labels_of(ilsvrc / "nowhere", tmp_path)
    assert labels["ILSVRC2012_val_00000005"] == WNIDS[4] and len(labels) == 1000


def test_the_archive_of_fastai(tmp_path):
    root = tmp_path / "imagenette2"
    for split, n in (("train", 2), ("val", 1)):
        for label, wnid in enumerate(layouts.NETTE_WNIDS):
            for k in range(n):
                picture(root / split / wnid / f"{wnid}_{k}.JPEG", colour_of(label), (30, 40), quality=95)
    (root / "noisy_imagenette.csv").write_text("path\n")
    shutil.make_archive(str(tmp_path / "imagenette2"), "gztar", tmp_path, "imagenette2")
    prepare("ImageNette", "--source", tmp_path / "imagenette2.tar.gz", "--res", "32", "--data_path", tmp_path)
    assert_colours(load("ImageNette", tmp_path, 32))


def test_the_published_tinyimagenet_pt(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"class {c:03d}" for c in range(200)]
    content = {"classes": names}
    for key, n in (("train", 400), ("val", 200)):
        content[f"images_{key}"] = torch.from_numpy(rng.integers(0, 256, (n, 3, 64, 64), dtype=np.uint8))
        content[f"labels_{key}"] = torch.arange(n) % 200
    torch.save(content, tmp_path / "tinyimagenet.pt")
    prepare("TinyImageNet", "--source", tmp_path / "tinyimagenet.pt", "--data_path", tmp_path)
    data = load("TinyImageNet", tmp_path)
    assert torch.equal(data.x_train[:], content["images_train"]) and data.class_names == names


@pytest.fixture
def mixed(tmp_path):
    """Class folders without a split: grey, RGBA, CMYK, palette, sixteen bits, and two files that are not images."""
    root = tmp_path / "mixed"
    for label, name in enumerate(("ants", "bees")):
        for k, (mode, suffix) in enumerate(
            [("L", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("P", "gif"), ("RGB", "bmp"), ("RGB", "webp")]
        ):
            picture(root / name / f"{k}.{suffix}", (200, 60 * label, 30), (40, 30), mode)
    (root / "ants" / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    whole = (root / "bees" / "4.bmp").read_bytes()
    (root / "bees" / "cut.bmp").write_bytes(whole[: len(whole) // 2])
    (root / "bees" / "notes.txt").write_text("no image")
    return root


def test_a_folder_of_any_images(mixed, tmp_path, capsys):
    prepare("Insects", "--own", "--source", mixed, "--res", "16", "--data_path", tmp_path)
    out, err = capsys.readouterr()
    warning = "images that can't be read are left out, 2: "
    assert "broken.jpg" in out and "cut.bmp" in out and "store.json lists all that were left out" in out
    assert "a fifth of every class" in out and warning in err
    data = load(str(tmp_path / "Insects_16.store"), tmp_path)
    assert warning in capsys.readouterr().err
    assert data.class_names == ["ants", "bees"] and len(data.x_train) + len(data.x_test) == 12
    assert data.x_train.shape[1:] == (3, 16, 16)
    assert torch.bincount(data.y_train).tolist() in ([4, 5], [5, 5], [5, 4], [6, 5], [5, 6], [4, 4], [6, 6])


def test_a_folder_given_as_the_dataset(mixed, tmp_path, capsys):
    for bad in ("ants/broken.jpg", "bees/cut.bmp"):
        (mixed / bad).unlink()
    argv = ("--dataset", str(mixed), "--res", "16", "--model", "ConvNetW32", "--ipc", "2", "--batch_real", "4")
    saved, _ = run("DM_GramMatching", tmp_path / "data", tmp_path / "out", *argv, "--model", "ConvNetW32_gram")
    assert saved["data"][0][0].shape == (4, 3, 16, 16) and saved["class_names"] == ["ants", "bees"]
    assert (tmp_path / "out" / "res_DM_mixed_ConvNetW32_gram_2ipc.pt").exists()
    assert (
        tmp_path / "data" / "own" / "mixed_16.store"
    ).exists() and "a fifth of every class" in capsys.readouterr().out
    load(str(mixed), tmp_path / "data", 16)  # is not made again
    picture(mixed / "ants" / "new.png", (1, 2, 3))
    with pytest.raises(UserError, match="made from other files"):
        load(str(mixed), tmp_path / "data", 16)


def test_hidden_folders_are_no_data(tmp_path):
    for name in ("a", "b"):
        for k in range(3):
            picture(tmp_path / "own" / name / f"{k}.png", (9, 9, 9), (12, 12))
    copies = tmp_path / "own" / "a" / ".ipynb_checkpoints" / "0-checkpoint.png"
    picture(copies, (9, 9, 9), (12, 12))
    data = load(str(tmp_path / "own"), tmp_path)
    assert len(data.x_train) + len(data.x_test) == 6


def test_a_store_without_a_size_in_its_name_needs_no_res(mixed, tmp_path):
    prepare("Insects", "--own", "--source", mixed, "--res", "16", "--data_path", tmp_path)
    (tmp_path / "Insects_16.store").rename(tmp_path / "ImageNette.store")
    assert load("ImageNette", tmp_path).im_size == (16, 16)
    with pytest.raises(UserError, match="16x16 pixels: leave --res 64 out"):
        load("ImageNette", tmp_path, 64)


def test_sizes_that_differ_want_res(tmp_path):
    for name in ("a", "b"):
        for k in range(3):
            picture(tmp_path / "own" / name / f"{k}.png", (9, 9, 9), (10 + k, 12))
    with pytest.raises(UserError, match="give --res"):
        load(str(tmp_path / "own"), tmp_path)


def test_an_npz_given_as_the_dataset(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (24, 12, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=np.arange(24) % 3, x_test=x[:6], y_test=np.arange(6) % 3)
    data = load(str(tmp_path / "mine.npz"), tmp_path)
    assert data.name == "mine" and data.im_size == (12, 10) and data.num_classes == 3
    np.testing.assert_allclose(data.mean, (x / 255).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, (x / 255).std((0, 1, 2)), rtol=1e-6)


def test_an_interrupted_preparation_resumes(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "PART", 3)
    prepare("Insects", "--own", "--source", mixed, "--res", "16", "--data_path", tmp_path / "whole")
    append, calls = store.Writer.append, []

    def interrupted(self, *what):
        calls.append(what)
        if len(calls) == 3:
            with open(self.partial / "x_train.npy", "ab") as file:
                file.write(b"half a part")
            signal.raise_signal(signal.SIGTERM)  # as Slurm does
        append(self, *what)

    monkeypatch.setattr(store.Writer, "append", interrupted)
    line = ("Insects", "--own", "--source", mixed, "--res", "16", "--data_path", tmp_path / "parts")
    with pytest.raises(Stopped) as stopped:
        prepare(*line)
    assert stopped.value.status == 143
    assert not (tmp_path / "parts" / "Insects_16.store").exists()
    consumed = sum(part[2] for part in calls[:2])
    prepare(*line)
    assert sum(part[2] for part in calls[3:]) == 14 - consumed  # the rest only
    for name in ("x_train", "x_test", "y_train", "y_test"):
        files = [(tmp_path / kind / "Insects_16.store" / f"{name}.npy").read_bytes() for kind in ("whole", "parts")]
        assert files[0] == files[1]
    digests = {store.read(tmp_path / kind / "Insects_16.store")[0]["digest"] for kind in ("whole", "parts")}
    assert len(digests) == 1


def test_a_mapped_array_gives_its_memory_back(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "KEPT_BYTES", 1000)
    x = np.random.default_rng(0).integers(0, 256, (500, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    mapped = store.Mapped(tmp_path / "x.npy")
    for rows in torch.randperm(500).split(50):
        assert np.array_equal(mapped[rows].numpy(), x[rows.numpy()])
    assert mapped._unreleased <= 1000
    for images, array in ((mapped, x), (mapped.subset(torch.arange(0, 500, 7)), x[::7])):
        for key in (slice(3, 9), slice(None, None, 5), slice(-4, None), slice(9, 3), 2, -1):
            assert np.array_equal(images[key].numpy(), array[key])
        with pytest.raises(IndexError):
            images[len(array)]
        with pytest.raises(ValueError, match="greater than 0"):
            images[::-1]


ERRORS = {
    "no such data": (["CIFAR1O", "--source", "."], "did you mean 'CIFAR10'"),
    "no source": (["TinyImageNet", "--source", "nowhere"], "there is no such file"),
    "no data there": (["TinyImageNet", "--source", "{tmp}"], "0 folder(s) with images"),
    "not an archive": (["TinyImageNet", "--source", "{tmp}/bad.zip"], "can't be unpacked"),
    "not the pt": (["TinyImageNet", "--source", "{tmp}/bad.pt"], "can't be read as the published file"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, tmp_path):
    argv, message = ERRORS[case]
    for name in ("bad.zip", "bad.pt"):
        (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(UserError) as error:
        prepare(*(part.format(tmp=tmp_path) for part in argv), "--data_path", tmp_path / "data")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_and_the_error_without_a_store(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ddm", "prepare", "Digits", "--source", ".", "--data_path", "data"])
    entry.main()
    assert "train 1437, test 360, 1x8x8, 10 classes" in capsys.readouterr().out
    with pytest.raises(UserError, match="ddm prepare ImageWoof --source"):
        load("ImageWoof", tmp_path / "data")


def test_another_folder_of_the_same_name_and_a_replaced_image_are_noticed(tmp_path):
    for where, colour in (("a", (9, 9, 9)), ("b", (99, 99, 99))):
        for name in ("x", "y"):
            for k in range(3):
                picture(tmp_path / where / "own" / name / f"{k}.png", colour, (8, 8))
    load(str(tmp_path / "a" / "own"), tmp_path / "data")
    with pytest.raises(UserError, match="made from other files"):
        load(str(tmp_path / "b" / "own"), tmp_path / "data")
    picture(tmp_path / "a" / "own" / "x" / "0.png", (1, 2, 3), (8, 8))
    with pytest.raises(UserError, match="made from other files"):
        load(str(tmp_path / "a" / "own"), tmp_path / "data")


def idx(folder, name, seed, images=20, labels=20):
    rng = np.random.default_rng(seed)
    for prefix in ("train", "t10k"):
        x, y = rng.integers(0, 256, (images, 28, 28), dtype=np.uint8), np.arange(labels, dtype=np.uint8) % 10
        path = folder / name / "raw"
        path.mkdir(parents=True, exist_ok=True)
        header = np.array([2051, images, 28, 28], ">i4").tobytes()
        (path / f"{prefix}-images-idx3-ubyte").write_bytes(header + x.tobytes())
        (path / f"{prefix}-labels-idx1-ubyte").write_bytes(np.array([2049, labels], ">i4").tobytes() + y.tobytes())


def test_idx_files_without_images_are_one_line(tmp_path):
    idx(tmp_path, "MNIST", 0, images=0, labels=0)
    with pytest.raises(UserError, match="the train set"):
        prepare("MNIST", "--source", tmp_path / "MNIST", "--data_path", tmp_path)


def test_of_two_families_of_idx_files_the_named_one(tmp_path):
    idx(tmp_path, "MNIST", 0)
    idx(tmp_path, "FashionMNIST", 1)
    for name in ("MNIST", "FashionMNIST"):
        prepare(name, "--source", tmp_path, "--data_path", tmp_path / "data")
    stores = [load(name, tmp_path / "data").x_train[:] for name in ("MNIST", "FashionMNIST")]
    assert not torch.equal(*stores)
    first = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert np.array_equal(stores[0][:, 0].numpy(), first)
    for folder in ("FashionMNIST/raw", "FashionMNIST", "other"):  # only the other family is there
        idx(tmp_path / "other", "fashion-mnist", 1)
        assert layouts.idx_files(tmp_path / folder, "FashionMNIST") is not None
        assert layouts.idx_files(tmp_path / folder, "MNIST") is None
    idx(tmp_path / "plain", "original-MNIST", 1)
    assert layouts.idx_files(tmp_path / "plain", "MNIST") is not None
    idx(tmp_path / "short", "MNIST", 0, labels=10)
    for name, source in (("CIFAR10", tmp_path / "MNIST"), ("MNIST", tmp_path / "short")):
        with pytest.raises(UserError, match=f"it is not {name}|has no {name}: "):
            prepare(name, "--source", source, "--data_path", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "x.png")
    image = layouts.decoded(tmp_path / "x.png", None)
    assert np.array_equal(image[0], (grey >> 8).astype(np.uint8)) and image.shape == (3, 8, 8)


def test_numbers_of_classes_that_are_called_by_numbers(tmp_path):
    from ddm.methods.plan import images_per_class

    x = np.zeros((48, 4, 4, 3), np.uint8)
    names = np.array(sorted(str(c) for c in range(12)))  # 0 1 10 11 2 ..
    y = np.repeat(np.arange(12), 4)
    np.savez(tmp_path / "n.npz", x_train=x, y_train=y, x_test=x, y_test=y, classes=names)
    data = load(str(tmp_path / "n.npz"), tmp_path)
    wanted = {str(c): c % 4 + 1 for c in range(12)}
    (tmp_path / "few.json").write_text(json.dumps(wanted))
    assert images_per_class(data, str(tmp_path / "few.json")) == [wanted[name] for name in names]


@pytest.mark.parametrize("name", ["", "..", " "])
def test_names_that_are_none(name, tmp_path, capsys):
    """They made stores called .store and ...store."""
    (tmp_path / "source").mkdir()
    with pytest.raises(SystemExit) as stopped:
        command("prepare", name, "--own", "--source", tmp_path / "source", "--data_path", tmp_path / "data")
    assert stopped.value.code == 2 and "is no name of a data set" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_the_name_of_a_published_data_set_is_not_for_own_data(tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("CIFAR10", "ImageNet"):
        with pytest.raises(UserError, match=f"--own {name}: this is the name of a published data set"):
            prepare(name, "--own", "--source", mixed, "--data_path", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def pictures(root, *folders, n=5):
    for number, folder in enumerate(folders):
        for k in range(n):
            picture(root / folder / f"{k}.png", (40 * number, 20 * k, 0), (8, 8))


def test_train_and_test_folders_of_any_case(tmp_path):
    pictures(tmp_path / "pets", "Train/cats", "Train/dogs", "Test_Set/cats", "Test_Set/dogs")
    data = load(str(tmp_path / "pets"), tmp_path / "data")
    assert data.class_names == ["cats", "dogs"] and len(data.x_train) == len(data.x_test) == 10


def test_a_class_that_is_called_train(tmp_path):
    pictures(tmp_path / "traffic", "Bus", "Car", "Train")
    assert load(str(tmp_path / "traffic"), tmp_path / "data").class_names == ["Bus", "Car", "Train"]


def test_classes_that_have_equal_folders_are_warned_of(tmp_path, capsys):
    pictures(tmp_path / "pets", "A/cats", "A/dogs", "B/cats", "B/dogs")
    load(str(tmp_path / "pets"), tmp_path / "data")
    assert "the classes are A, B, but each has the folders cats, dogs" in capsys.readouterr().err
    pictures(tmp_path / "plain", "cats/images", "dogs/images")
    load(str(tmp_path / "plain"), tmp_path / "data")
    assert "each has the folders" not in capsys.readouterr().err


def test_a_constant_channel(tmp_path):
    pictures(tmp_path / "fluo", "a", "b")  # no blue
    data = load(str(tmp_path / "fluo"), tmp_path / "data")
    assert data.batch(torch.arange(4)).isfinite().all() and data.std[2] > 0


def test_test_folders_with_other_names_and_damaged_labels(tmp_path):
    pictures(tmp_path / "cap", "train/cats", "train/dogs", "test/Cats", "test/Dogs")
    with pytest.raises(
        UserError, match=r"test has the classes Cats, Dogs, .*train has cats, dogs: give them equal names"
    ):
        load(str(tmp_path / "cap"), tmp_path / "data")
    for name, text in (("LOC_val_solution.csv", "id,label\nx,y\n"), ("val_annotations.txt", "one_word\n")):
        (tmp_path / "cap" / name).write_text(text)
        with pytest.raises(UserError, match=r"the labels of .*test can't be read \("):
            layouts.labels_of(tmp_path / "cap" / "test", tmp_path / "cap")


def test_an_empty_file_of_a_store_is_one_line(tmp_path):
    pictures(tmp_path / "pets", "cats", "dogs")
    load(str(tmp_path / "pets"), tmp_path / "data")
    (path,) = (tmp_path / "data" / "own").glob("*.store")
    (path / "x_train.npy").write_bytes(b"")
    with pytest.raises(UserError, match="is not a valid store"):
        load(str(tmp_path / "pets"), tmp_path / "data")


def test_pictures_that_do_not_fit_leave_nothing_behind(tmp_path):
    pictures(tmp_path / "raw", "cats", "dogs")
    picture(tmp_path / "raw" / "dogs" / "large.png", (1, 2, 3), (9, 9))
    shutil.make_archive(str(tmp_path / "raw"), "zip", tmp_path / "raw")
    with pytest.raises(UserError, match="give --res"):
        prepare("Mine", "--own", "--source", tmp_path / "raw.zip", "--data_path", tmp_path / "data")
    assert not any((tmp_path / "data").iterdir())


def test_a_source_without_the_data_is_not_downloaded_into(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty' has no CIFAR10: name a folder with CIFAR10\.npz"):
        prepare("CIFAR10", "--source", tmp_path / "empty", "--data_path", tmp_path / "data")
    assert not any((tmp_path / "empty").iterdir())


def test_an_array_that_changed_is_not_resumed(tmp_path):
    images = np.arange(6 * 12, dtype=np.uint8).reshape(6, 2, 2, 3)
    other = images.copy()
    other[3] += 1  # neither the first nor the last
    labels = np.zeros(6, np.int64)
    assert layouts.Array(images, labels).digest() != layouts.Array(other, labels).digest()


def test_a_broken_link_is_listed_as_damaged(tmp_path, capsys):
    pictures(tmp_path / "pets", "cats", "dogs")
    (tmp_path / "pets" / "cats" / "gone.png").symlink_to(tmp_path / "nowhere")
    data = load(str(tmp_path / "pets"), tmp_path / "data")
    assert len(data.x_train) + len(data.x_test) == 10 and "gone.png" in "".join(data.warnings) + capsys.readouterr().out


def test_a_link_to_a_folder_around_it_repeats_no_image(tmp_path):
    pictures(tmp_path / "pets", "cats", "dogs")
    (tmp_path / "pets" / "cats" / "again").symlink_to(tmp_path / "pets" / "cats")
    assert len(layouts.images_in(tmp_path / "pets" / "cats")) == 5


def test_labels_of_classes_without_training_images_are_warned_of(tmp_path):
    pictures(tmp_path / "pets", "train/cats", "train/dogs", "val")
    (tmp_path / "pets" / "val_annotations.txt").write_text(
        "".join(f"{k}.png\t{'cats' if k else 'cows'}\n" for k in range(5))
    )
    listing = layouts.folders(tmp_path / "pets", "pets")
    assert len(listing.splits["test"]) == 4 and "cows" in "".join(listing.warnings)


def test_pixels_of_32_bits_are_refused(tmp_path):
    for mode in "FI":
        Image.new(mode, (4, 4), 1).save(tmp_path / "x.tiff")
        assert "32 bits" in layouts.decoded(tmp_path / "x.tiff", None)


def test_colours_become_grey_as_in_pillow():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert np.array_equal(layouts.grey(image.transpose(2, 0, 1))[0], np.asarray(Image.fromarray(image).convert("L")))
    assert np.array_equal(layouts.grey(np.repeat(image[None, :, :, 0], 3, 0))[0], image[:, :, 0])


def test_a_damaged_gz_is_one_line(tmp_path):
    idx(tmp_path, "MNIST", 0)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(gzip.compress(path.read_bytes()))
    content[10:40] = b"\xff" * 30
    path.with_name(path.name + ".gz").write_bytes(content)
    path.unlink()
    with pytest.raises(UserError, match="is damaged"):
        prepare("MNIST", "--source", tmp_path / "MNIST", "--data_path", tmp_path)


def test_what_can_not_be_replaced_is_refused_before_the_work(tmp_path):
    pictures(tmp_path / "pets", "cats", "dogs")
    target = tmp_path / "data" / "Mine.store"
    target.mkdir(parents=True)
    (target / "notes").write_text("mine")
    with pytest.raises(UserError, match="exists and is no store"):
        prepare("Mine", "--own", "--source", tmp_path / "pets", "--data_path", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["Mine.store"]


def test_the_name_of_a_store_of_a_published_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="this is the name of a store of ImageNet"):
        prepare("ImageNet_64", "--own", "--source", tmp_path, "--data_path", tmp_path / "data")


def test_some_classes_keep_the_warnings_of_all(tmp_path):
    pictures(tmp_path / "pets", "a", "b", "c")
    data = replace(load(str(tmp_path / "pets"), tmp_path / "data"), warnings=("doubtful",))
    assert classes_of(data, "some", [2, 0]).warnings == ("doubtful",)
