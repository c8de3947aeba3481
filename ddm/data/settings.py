"""Settings of data sets and their folders."""

from ddm.settings import Role, Settings, a_path, grouped, resolution

data = grouped("data")

# The names in catalogue.DATASETS and layouts.PREPARED, which can't be imported here: --help must not import torch.
NAMED = (
    "Digits, MNIST, FashionMNIST, SVHN, CIFAR10, CIFAR100, TinyImageNet, ImageNet, ImageNette, ImageWoof, ImageFruit, "
    "ImageMeow, ImageSquawk, ImageYellow"
)


class PathSettings(Settings):
    """The folder and resolution of data sets."""

    data_path: str = data(
        "data", "folder of stores, <NAME>.npz or torchvision's files, and of downloads", check=a_path, role=Role.PLACE
    )
    imports: str | None = data(
        None,
        "Python files to run first, joined by commas: they register networks, data sets, ... (docs/extending.md)",
        check=a_path,
        metavar="FILES",
        role=Role.PLACE,
        spellings=("import",),
        rare=True,
    )
    res: int | None = data(None, "image side in pixels, for data sets with a choice", check=resolution, rare=True)


class DataSettings(PathSettings):
    """A data set and the normalisation of its pixels."""

    dataset: str = data(
        "CIFAR10",
        f"{NAMED}; or the path of a store, an .npz file or a folder of class folders",
        check=a_path,
        metavar="NAME_OR_PATH",
    )
    zca: bool = data(False, "whiten images (ZCA, eps 0.1) instead of normalising them", rare=True)


class HeldOutSettings(Settings):
    """The real images that evaluate a set."""

    eval_split: str = grouped("evaluation")(
        "test",
        "val: evaluate on a seeded tenth of the training images, which is used for nothing else",
        choices=("test", "val"),
    )
