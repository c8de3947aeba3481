"""Which data set, and where it is."""

from ddm.settings import Role, Settings, a_path, grouped, resolution

data = grouped("data")

# The rows of catalogue.DATASETS and layouts.PREPARED, which can't be imported here: --help must not import torch.
NAMED = (
    "Digits, MNIST, FashionMNIST, SVHN, CIFAR10, CIFAR100, TinyImageNet, ImageNet, ImageNette, ImageWoof, ImageFruit, "
    "ImageMeow, ImageSquawk, ImageYellow"
)


class PathSettings(Settings):
    """Where data sets are."""

    data_path: str = data(
        "data", "folder of stores, <NAME>.npz or torchvision's files; downloads go there", check=a_path, role=Role.PLACE
    )
    res: int | None = data(None, "side of the images in pixels, where a data set leaves the choice", check=resolution)


class DataSettings(PathSettings):
    """A data set and how its pixels are normalised."""

    dataset: str = data(
        "CIFAR10", f"{NAMED}; or the path of a store, an .npz file or a folder of class folders", check=a_path
    )
    zca: bool = data(False, "whiten images (ZCA, eps 0.1) instead of normalising them")


class HeldOutSettings(Settings):
    """Which real images score a set."""

    eval_split: str = grouped("evaluation")(
        "test",
        "val: score on a seeded tenth of the training images, held out of everything else",
        choices=("test", "val"),
    )
