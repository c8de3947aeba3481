"""The settings of every command: what it inherits from the rooms below, and its own flags."""

from ddm.data.settings import DataSettings, PathSettings
from ddm.evaluation.settings import ScoringSettings, SpaceSettings
from ddm.methods.settings import CompleteSettings, CondensingSettings, CoresetSettings, ProxySettings
from ddm.runs.settings import LikeSettings, OutputSettings, RunSettings, StepSettings
from ddm.settings import (
    DeviceSettings,
    MachineSettings,
    Role,
    SeedSettings,
    Settings,
    a_path,
    altered,
    at_least,
    declarations,
    grouped,
    non_negative,
    resolution,
    up_to_one,
)

data = grouped("data")
evaluation = grouped("evaluation")
output = grouped("output")


class RecipeSettings(CondensingSettings, StepSettings):
    """What every recipe can be told; a recipe's own class adds the weights of its terms."""


class DDMSettings(CompleteSettings, RecipeSettings):
    """Condense a data set under the complete objective of DDM: content, style and intra-class diversity.

        ddm condense --dataset CIFAR10 --ipc 10 --preset fast,dm

    L_total = mmd_ratio * L_MMD + icd_ratio * L_ICD + mm_ratio * L_MM + cm_ratio * L_CM + rr_ratio * L_RR

    In the paper's symbols: beta = icd_ratio, lambda * alpha = mm_ratio, lambda = cm_ratio. L_RR is not of the paper and
    off by default; its source is RFAD (Loo et al., NeurIPS 2022). A weight of 0 removes its term and its cost.
    """


class CoresetRunSettings(CoresetSettings, RunSettings):
    """Choose real images by a rule and evaluate them as condensed sets are: the baselines of the comparison.

        ddm coreset --method herding --dataset CIFAR10 --ipc 10

    Herding, k-center and k-means choose in the embedding of a network trained on all the real images, the difficulty
    scores by what that network found hard. `full` is the whole training set, the ceiling.
    """


class ContinualSettings(CompleteSettings, ProxySettings, OutputSettings, LikeSettings):
    """Class-incremental learning from a condensed memory: classes arrive in steps, and each leaves a few images behind.

        ddm continual --dataset CIFAR100 --steps 5 --ipc 20 --memory random,herding,dm,ddm --seeds 5 --save_path DIR

    At each step the memory of the new classes is made from their training images alone. random, herding and kmeans
    choose real images; dm condenses with L_MMD; ddm with the weights that the objective's flags give (--preset best,
    for instance). A fresh network is trained on all memory so far (GDumb, Prabhu et al., ECCV 2020) and tested on the
    test images of all classes so far. Orders of the classes are numpy's RandomState(seed).permutation. Writes
    results.json, curves.png and every memory into --save_path. The same command resumes.
    """

    save_path: str = altered(OutputSettings, "save_path", default="result_continual")
    num_eval: int = altered(ScoringSettings, "num_eval", default=1, role=Role.RESULT)
    ipc: int = altered(CondensingSettings, "ipc", default=20, help="images per class", check=at_least(1))
    zca: bool = altered(CondensingSettings, "zca", hidden=True)  # refused, as is eval_mode
    eval_mode: str = altered(CondensingSettings, "eval_mode", hidden=True)
    steps: int = grouped("optimisation")(5, "steps in which the classes arrive", check=at_least(1))
    memory: str = grouped("objective")(
        "ddm",
        "random, herding, kmeans, dm or ddm, joined by commas",
        metavar="NAMES",
        role=Role.GROWS,
    )
    seeds: int = evaluation(5, "orders of the classes, from seed 0", check=at_least(1), role=Role.GROWS)


class SavedSetSettings(SpaceSettings, DataSettings):
    """A command that reads saved sets; they say which data set they are of, unless --dataset does."""

    dataset: str | None = altered(DataSettings, "dataset", default=None)


class EvaluateSettings(SavedSetSettings, ScoringSettings, MachineSettings, OutputSettings, LikeSettings):
    """Score saved sets on any networks.

        ddm evaluate result/res_DM_CIFAR10_ConvNet_10ipc.pt --model ConvNet,AlexNet,VGG11,ResNet18 --num_eval 5

    A file is one of ours, of the DC/DSA/DM family ({'data': [[images, labels], ...]}), a pair [images, labels], an .npz
    with x_train and y_train, .safetensors, or a folder of class folders with pictures. Prints a table, one row per set
    and one column per network, with mean, (population) standard deviation and n. Writes it with every accuracy and
    learning curve into --save_path. The same command resumes.

    Our sets are scored by the networks of their own run, trained the same way (epochs, learning rate, seed, ...),
    unless flags say otherwise. So each set gets its own number again.
    """

    files: tuple[str, ...] = data(help="a saved set, or a folder of pictures", positional=True, metavar="FILE...")
    experiments: str = data("all", "which of the sets in a file: all, or a number from 0")
    baselines: str = data(
        "",
        "random: as many random real images; whole: the whole training set; joined by commas",
        metavar="NAMES",
        role=Role.GROWS,
    )
    model: str | None = evaluation(
        None,
        "networks, joined by commas; unset: the one that a set was made with, or ConvNet",
        role=Role.GROWS,
        exclusive="networks",
    )
    eval_mode: str | None = evaluation(
        None, "networks by their mode, instead of --model", role=Role.GROWS, exclusive="networks"
    )
    epochs: str | None = evaluation(
        None,
        "E: epochs 0 .. E are trained; a number, or NETWORK=NUMBER joined by commas",
        spellings=("epoch_eval_train",),
        follows="epoch_eval_train",
    )
    whole_epochs: int = evaluation(20, "E for --baselines whole", check=at_least(0))
    lr_net: str | None = evaluation(
        None, "learning rate; a number, or NETWORK=NUMBER joined by commas", follows="lr_net"
    )
    num_eval: int = altered(ScoringSettings, "num_eval", default=5)
    batch_train: int | None = altered(ScoringSettings, "batch_train", default=None, follows="batch_train")
    seed: int | None = altered(SeedSettings, "seed", default=None, follows="seed")
    dsa_strategy: str | None = altered(ScoringSettings, "dsa_strategy", default=None, follows="dsa_strategy")
    precision: str | None = altered(MachineSettings, "precision", default=None, follows="precision")
    compile: str | None = altered(MachineSettings, "compile", default=None, follows="compile")
    eval_split: str | None = altered(ScoringSettings, "eval_split", default=None, follows="eval_split")
    save_path: str = altered(OutputSettings, "save_path", default="result_evaluate")


class ExportSettings(SavedSetSettings):
    """Convert a condensed set to the format that others read.

        ddm export result/res_DM_CIFAR10_ConvNet_10ipc.pt --to png --out cifar10_10ipc

    | --to | --out | pixels |
    |---|---|---|
    | png | folder of class folders of PNG files | rounded to 8 bits, clipped |
    | npz | Keras layout: x_train uint8 [N, H, W, C], y_train, classes | rounded to 8 bits, clipped |
    | tensor | torch file of [images in [0, 1], labels] | clipped |
    | safetensors | images, labels, and metadata with their normalisation | as they are |
    | hf | Hugging Face `datasets` folder: image, label (needs the package datasets) | rounded to 8 bits, clipped |
    | dcbench | DM/<dataset>/IPC<ipc>/res_DM_<dataset>_ConvNet_<ipc>ipc.pt below --out | as they are |
    | card | Markdown that describes the set, with a picture beside it | |

    `ddm evaluate` reads the first four and dcbench.
    """

    file: str = data(help="a condensed set, of ours or of the DC/DSA/DM family", positional=True, metavar="FILE")
    experiment: int = data(0, "which of the sets in FILE", check=at_least(0))
    to: str = output(help="format, see above", choices=("png", "npz", "tensor", "safetensors", "hf", "dcbench", "card"))
    out: str = output(help="file or folder to write", check=a_path)


class ScoreSettings(SavedSetSettings, DeviceSettings, SeedSettings, OutputSettings, LikeSettings):
    """Score a condensed set as DD-Ranking does, with the package ddranking 0.2.0.

        pip install --no-deps ddranking==0.2.0 && pip install pandas timm
        ddm score result/res_DM_CIFAR10_ConvNet_10ipc.pt --num_eval 5

    The package is optional; --no-deps leaves out its old pins of numpy and scipy, which it does not need. It trains its
    own networks, with hard labels, on the set, on as many random real images (the best of five learning rates) and on
    the whole training set. It takes **the best of every tenth epoch on the test set**, so its accuracies are not those
    of `ddm evaluate`. Its scores, in points:

        HLR = accuracy(whole set) - accuracy(condensed)         hard label recovery, lower is better
        IOR = accuracy(condensed) - accuracy(random)            improvement over random, higher is better
        LRS = (exp(a) - exp(-1)) / (exp(1) - exp(-1))           label-robust score, a = w IOR - (1 - w) HLR

    with a from fractions, as the formula is meant; the package puts percentages into it, which saturates. The whole set
    takes most of the time: --full_epochs shortens it, --full_acc gives its accuracy from an earlier run. The same
    command resumes with the runs that remain.
    """

    file: str = data(help="a saved set, or a folder of pictures", positional=True, metavar="FILE", role=Role.PLACE)
    experiment: int = data(0, "which of the sets in FILE", check=at_least(0))
    model: str | None = evaluation(
        None, "ddranking's name of a network, such as ConvNet-3; unset: the one it has for the data set"
    )
    num_eval: int = evaluation(5, "runs, each with its own networks", check=at_least(1), role=Role.GROWS)
    num_epochs: int = evaluation(
        1000, "epochs of the networks on few images; at least 10, as it tests after every tenth", check=at_least(10)
    )
    full_epochs: int | None = evaluation(
        None,
        "epochs of the network on the whole training set; unset: --num_epochs, as the package does",
        check=at_least(10),
    )
    full_acc: float | None = evaluation(
        None, "that network's accuracy in %, instead of training it", check=non_negative
    )
    lr_net: float = evaluation(0.01, "learning rate on the condensed set", check=non_negative)
    lrs_lambda: float = evaluation(0.5, "w, the weight of IOR against HLR in LRS", check=up_to_one, role=Role.MANNER)
    save_path: str = altered(OutputSettings, "save_path", default="result_score")


class ReportSettings(PathSettings):
    """One self-contained HTML page about a run, or several side by side. It opens offline.

        ddm report result_digits [MORE..] --data_path data --out report.html

    Images (real beside synthetic) and how they changed, losses and accuracies, the style gap of each layer before and
    after, the spread within classes, a 2-D embedding of real and synthetic images, settings and versions.
    """

    folders: tuple[str, ...] = data(help="what a recipe or coreset wrote", positional=True, metavar="DIR...")
    embedding: str = output("pca", "projection of embeddings to the plane", choices=("pca", "tsne"))
    out: str | None = output(None, "the page; unset: report.html in the first DIR", check=a_path)


class CollectSettings(Settings):
    """Tables and curves from results.json files.

        ddm collect results/ablation --csv table.csv --plot curves.png

    Prints a Markdown table: one row per run, with mean, (population) standard deviation and n over networks, and the
    paired difference to the plain-DM run of the same data set, ipc and evaluation split, with its 95 % confidence
    interval. Pairs are experiments of the same number and seed, which start from the same images; the mean over an
    experiment's networks counts once (Student's t). With only one experiment, pairs are its networks (for recipes with
    as many iterations), which says nothing about other condensations. The table names what was paired, and with which
    run. Herding and the other rules that use a network choose the same images in every experiment. Runs that differ
    only in their experiments (`--first_exp`) are one row.
    """

    folders: tuple[str, ...] = data(help="searched for results.json, at any depth", positional=True, metavar="DIR...")
    csv: str | None = output(None, "also write the table there")
    plot: str | None = output(None, "draw accuracy over iterations there (.png, .pdf, .svg)")


class PrepareSettings(PathSettings):
    """Bring a data set into a store: uint8 arrays on disk that training reads without loading them.

        ddm prepare TinyImageNet --source tiny-imagenet-200.zip
        ddm prepare ImageNet --source /data/ILSVRC2012 --res 64

    The same command resumes. Images that can't be decoded are left out and listed. docs/datasets.md has the expected
    layout of each data set.
    """

    name: str = data(help="the data set; any other name with --own", positional=True, metavar="NAME")
    source: str = data(help="archive, folder or file that has the images", check=a_path)
    res: int | None = altered(PathSettings, "res", help="side in pixels that images are resized to", check=resolution)
    own: bool = data(False, "NAME is a new data set: your class folders, or your .npz file")


def roles() -> dict[str, Role]:
    """The role of every setting of the commands that make sets."""
    return {name: own.role for cls in (CoresetRunSettings, DDMSettings) for name, own in declarations(cls).items()}
