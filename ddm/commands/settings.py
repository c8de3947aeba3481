"""The settings class of every command: inherited settings and the flags of that command."""

from typing import Any, ClassVar

from ddm.data.settings import DataSettings, PathSettings
from ddm.evaluation.settings import LAST, PEERS, ScoringSettings, SpaceSettings
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
    """The settings of every recipe; the class of a recipe adds the weights of its terms."""


class DDMSettings(CompleteSettings, RecipeSettings):
    """Condense a data set by matching its content, style and intra-class diversity.

        ddm condense --dataset CIFAR10 --ipc 10 --preset fast,dm

    L_total = mmd_ratio * L_MMD + icd_ratio * L_ICD + mm_ratio * L_MM + cm_ratio * L_CM
    + rr_ratio * L_RR + ce_ratio * L_CE

    In the paper's symbols: beta = icd_ratio, lambda * alpha = mm_ratio, lambda = cm_ratio. A weight of 0 removes a term
    and its cost. L_RR and L_CE are off by default and not of the DDM paper. L_RR: RFAD (Loo et al., 2022), like KIP
    (Nguyen et al., 2021) and FRePo (Zhou et al., 2022). L_CE: IDM (Zhao et al., 2023).
    """

    COMMAND: ClassVar = "ddm condense"
    HINTS: ClassVar = {"style_ratio": "--mm_ratio weights L_MM, --cm_ratio weights L_CM"}
    RECIPE: ClassVar = "DM_DDM"


class CoresetRunSettings(CoresetSettings, RunSettings):
    """Select real images by a rule and evaluate them like condensed sets: the baselines of a comparison.

        ddm coreset --method herding --dataset CIFAR10 --ipc 10

    All methods except random and full use one network trained on all real images. Herding, k-center and k-means use its
    embeddings; the others use its difficulty scores. `full` is the whole training set, the upper baseline.
    """

    COMMAND: ClassVar = "ddm coreset"
    RECIPE: ClassVar = "coreset"


class ContinualSettings(CompleteSettings, ProxySettings, OutputSettings, LikeSettings):
    """Class-incremental learning from a condensed memory: classes arrive in steps, and a few images of each are stored.

        ddm continual --dataset CIFAR100 --steps 5 --ipc 20 --memory random,herding,dm,ddm --seeds 5 --save_path DIR

    At each step the memory of the new classes is made from their training images only. The memories random, herding and
    kmeans are real images. ddm is condensed with the objective's flags. dm, published, paper, style, best and strong
    are condensed with the preset of that name, which overrides the flags. A fresh network is trained on all memories
    so far (GDumb, Prabhu et al., ECCV 2020) and tested on the test images of all classes so far. The class order is
    numpy's RandomState(seed).permutation. The command writes table.md, table.tex, table.csv, curves.png, results.json
    and all memories into --save_path. The same command resumes.
    """

    COMMAND: ClassVar = "ddm continual"

    save_path: str = altered(OutputSettings, "save_path", default="result_continual")
    num_eval: int = altered(ScoringSettings, "num_eval", default=1, role=Role.RESULT)
    ipc: int = altered(CondensingSettings, "ipc", default=20, help="images per class", check=at_least(1))
    zca: bool = altered(CondensingSettings, "zca", hidden=True)  # not supported, like eval_mode
    eval_mode: str = altered(CondensingSettings, "eval_mode", hidden=True)
    steps: int = grouped("optimisation")(5, "number of steps in which the classes arrive", check=at_least(1))
    memory: str = grouped("objective")(
        "ddm",
        "random, herding, kmeans, ddm or presets of the objective, joined by commas",
        metavar="NAMES",
        role=Role.GROWS,
    )
    seeds: int = evaluation(5, "number of class orders, from seed 0", check=at_least(1), role=Role.GROWS)


class SavedSetSettings(SpaceSettings, DataSettings):
    """Commands that read saved sets; --dataset overrides the data set recorded in their files."""

    dataset: str | None = altered(DataSettings, "dataset", default=None)


class EvaluateSettings(SavedSetSettings, ScoringSettings, MachineSettings, OutputSettings, LikeSettings):
    """Evaluate saved sets on any networks.

        ddm evaluate result/res_DM_CIFAR10_ConvNet_10ipc.pt --model ConvNet,AlexNet,VGG11,ResNet18 --num_eval 5

    FILE is a set of ddm or the folder of its run; a file of the DC/DSA/DM family ({'data': [[images, labels], ...]}); a
    pair [images, labels]; an .npz with x_train and y_train; .safetensors; or a folder of class folders with pictures.
    The command prints a table with one row per set and one column per network: mean, (population) standard deviation
    and n. It writes table.md, table.tex, table.csv, results.json (all accuracies and learning curves) and training.log
    into --save_path, by default result_evaluate. The same command resumes. Other networks, sets and settings are added
    to the table; nothing is overwritten.

    By default a set of ddm is evaluated with the settings of its run (network seeds, epochs, learning rate, ...). So it
    gets the same accuracies again. Explicit flags override these settings.
    """

    COMMAND: ClassVar = "ddm evaluate"

    files: tuple[str, ...] = data(
        help="a saved set, the folder of its run, or a folder of pictures", positional=True, metavar="FILE..."
    )
    experiments: str = data("all", "sets of a file to evaluate: all, or a number from 0")
    baselines: str = data(
        "",
        "random: random real images, as many as are stored in the first set; whole: the whole training set; joined by "
        "commas",
        metavar="NAMES",
        role=Role.GROWS,
    )
    model: str | None = evaluation(
        None,
        "networks, joined by commas; unset: the network that a set was made with, or ConvNet",
        role=Role.GROWS,
        exclusive="networks",
    )
    eval_mode: str | None = evaluation(
        None, "networks of an evaluation mode, instead of --model", role=Role.GROWS, exclusive="networks"
    )
    epochs: str | None = evaluation(
        None,
        "E: epochs 0 .. E are trained; a number, or NETWORK=NUMBER joined by commas",
        spellings=("epoch_eval_train",),
        follows="epoch_eval_train",
    )
    eval_protocol: str = evaluation(
        LAST,
        "last: accuracy after the last epoch; peers: best epoch on the test images, 2,000 epochs of AdamW 0.001, batch "
        "128, CutMix, as NCFM and its peers report: only for comparison with their papers",
        choices=(LAST, PEERS),
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


# setting -> the argument of the sets' runs that replaces an unset value, if all sets agree
FOLLOWED = {name: setting.follows for name, setting in declarations(EvaluateSettings).items() if setting.follows}


class ExportSettings(SavedSetSettings):
    """Convert a condensed set to another format.

        ddm export result/res_DM_CIFAR10_ConvNet_10ipc.pt --to png --out cifar10_10ipc

    | --to | --out | pixels |
    |---|---|---|
    | png | folder: class folders of PNG files, classes.json | rounded to 8 bits, clipped |
    | npz | file *.npz: Keras layout x_train uint8 [N, H, W, C], y_train, classes | rounded to 8 bits, clipped |
    | tensor | file, such as *.pt: torch's [images in [0, 1], labels] | clipped |
    | safetensors | file *.safetensors: images, labels, metadata with their normalisation | normalised, unchanged |
    | hf | folder for load_dataset and the Hub: Parquet, card (extra hf) | rounded to 8 bits, clipped |
    | dcbench | folder: DM/<dataset>/IPC<ipc>/res_DM_<dataset>_ConvNet_<ipc>ipc.pt | normalised, unchanged |
    | card | folder: Markdown description of the set, with a picture | |

    `ddm evaluate` reads the first four and dcbench. --out must not exist. Clipping can lower accuracy: see
    --clip_pixels of the recipes. A partitioned set (--factor) is written decoded, for any reader. --stored writes its
    stored images and their factor instead, in png, npz or safetensors, which `ddm evaluate` decodes.
    """

    COMMAND: ClassVar = "ddm export"

    file: str = data(help="a condensed set of ddm or the DC/DSA/DM family", positional=True, metavar="FILE")
    experiment: int = data(0, "number of the set in FILE", check=at_least(0))
    to: str = output(help="format, see above", choices=("png", "npz", "tensor", "safetensors", "hf", "dcbench", "card"))
    out: str = output(help="file or folder to write, see above", check=a_path)
    stored: bool = output(False, "write the stored images of a partitioned set (--factor), not the decoded ones")
    push: str | None = output(
        None,
        "with --to hf: upload the folder to this dataset repository of the Hugging Face Hub; first log in with `hf "
        "auth login`",
        metavar="USER/NAME",
    )


class ScoreSettings(SavedSetSettings, DeviceSettings, SeedSettings, OutputSettings, LikeSettings):
    """Compute the DD-Ranking scores of a condensed set, with the package ddranking 0.2.0.

        pip install --no-deps ddranking==0.2.0 && pip install pandas timm
        ddm score result/res_DM_CIFAR10_ConvNet_10ipc.pt --num_eval 5

    The package is optional; --no-deps ignores its old pins of numpy and scipy, which it does not need. It trains
    networks with hard labels on the set, on as many random real images (the best of five learning rates) and on the
    whole training set. It takes **the best of every tenth epoch on the test set**, so its accuracies differ from those
    of `ddm evaluate`. Its scores, HLR and IOR in percentage points:

        HLR = accuracy(whole set) - accuracy(condensed)         hard label recovery, lower is better
        IOR = accuracy(condensed) - accuracy(random)            improvement over random, higher is better
        LRS = (exp(a) - exp(-1)) / (exp(1) - exp(-1))           label-robust score, a = w IOR - (1 - w) HLR

    This command computes a from fractions, as the formula intends; the package uses percentages, which saturate. The
    whole training set takes most of the time: use --full_epochs to shorten it, or --full_acc to give its accuracy. The
    same command resumes.
    """

    COMMAND: ClassVar = "ddm score"

    file: str = data(
        help="a saved set, the folder of its run, or a folder of pictures",
        positional=True,
        metavar="FILE",
        role=Role.PLACE,
    )
    experiment: int = data(0, "number of the set in FILE", check=at_least(0))
    model: str | None = evaluation(
        None, "ddranking's name of a network, such as ConvNet-3; unset: its network for the data set"
    )
    num_eval: int = evaluation(5, "runs, each with fresh networks", check=at_least(1), role=Role.GROWS)
    num_epochs: int = evaluation(
        1000, "epochs on the set and on random images; at least 10, as every tenth is tested", check=at_least(10)
    )
    full_epochs: int | None = evaluation(
        None,
        "epochs on the whole training set; unset: --num_epochs, as in the package",
        check=at_least(10),
    )
    full_acc: float | None = evaluation(
        None, "accuracy of the whole training set in %, instead of training on it", check=non_negative
    )
    lr_net: float = evaluation(0.01, "learning rate on the condensed set", check=non_negative)
    lrs_lambda: float = evaluation(0.5, "w, the weight of IOR against HLR in LRS", check=up_to_one, role=Role.MANNER)
    save_path: str = altered(OutputSettings, "save_path", default="result_score")


class ReportSettings(PathSettings):
    """Write one self-contained HTML page about one or more runs. It opens offline.

        ddm report result_digits [MORE..] --data_path data --out report.html

    The page shows real and synthetic images, images during condensation, losses, accuracies and settings. It also shows
    the style gap of each layer before and after, the spread within classes, and a 2-D embedding of the images.
    """

    COMMAND: ClassVar = "ddm report"

    folders: tuple[str, ...] = data(
        help="--save_path of a recipe, coreset or `ddm evaluate --baselines whole`", positional=True, metavar="DIR..."
    )
    embedding: str = output("pca", "2-D projection of embeddings", choices=("pca", "tsne"))
    out: str | None = output(None, "file of the page; unset: report.html in the first DIR", check=a_path)


class CollectSettings(Settings):
    """Make tables and plots of results.json files.

        ddm collect results/sweep --group_by auto --out table.tex --plot accuracy.png

    The table has one row per run: mean, (population) standard deviation and n over networks, and a column for each
    setting that differs. With --group_by a row has one value per seed, its mean over networks. The table then has the
    mean, (population) standard deviation and number of these values. The LaTeX table needs the package booktabs. The
    best accuracy of a data set and ipc is bold, except that of all real images.

    The table also has the paired difference to the comparable run of plain DM, or of --baseline (same data set, ipc,
    protocol and seed), with its 95 % confidence interval by Student's t. Pairs are experiments with equal numbers: they
    start from the same images, and each counts with its mean over networks. With a single experiment, pairs are its
    networks, if the iterations are equal; such an interval does not cover other condensations. The table names the
    pairs and the run. Coreset methods with a network, except kmeans, select the same images in every experiment. Runs
    that differ only in their experiments (`--first_exp`) share one row.
    """

    COMMAND: ClassVar = "ddm collect"

    folders: tuple[str, ...] = data(help="searched for results.json, at any depth", positional=True, metavar="DIR...")
    group_by: str | None = output(
        None,
        "average the runs that are equal in these settings, joined by commas; auto: in all settings but the seed; "
        "unset: one row per run",
        metavar="NAMES",
    )
    columns: str = output(
        "auto", "settings shown as columns, joined by commas; auto: those that differ; none: none", metavar="NAMES"
    )
    iteration: int | None = output(
        None,
        "use the evaluation after this iteration, and leave out runs without one; unset: the last",
        check=at_least(1),
    )
    baseline: str | None = output(
        None, "run that the others are compared with, by the name of its folder; unset: plain DM", metavar="NAME"
    )
    format: str | None = output(
        None,
        "format of the table; unset: by the suffix of --out (.md, .csv, .tex), else markdown",
        choices=("markdown", "csv", "latex"),
    )
    out: str | None = output(None, "file for the table; unset: print it", check=a_path)
    csv: str | None = output(None, "file for the same table as CSV, besides --out", check=a_path)
    plot: str | None = output(
        None,
        "file for a plot (.png, .pdf, .svg): accuracy over iterations; with --group_by, over the numeric setting that "
        "differs",
        check=a_path,
    )


class PrepareSettings(PathSettings):
    """Convert a data set into a store: uint8 arrays on disk that are read without loading them whole.

        ddm prepare TinyImageNet --source tiny-imagenet-200.zip
        ddm prepare ImageNet --source /data/ILSVRC2012 --res 64

    The same command resumes. Images that can't be decoded are left out and listed. docs/datasets.md describes the
    expected layout of each data set.
    """

    COMMAND: ClassVar = "ddm prepare"

    name: str = data(help="name of a data set; with --own a new name", positional=True, metavar="NAME")
    source: str = data(help="archive, folder or file with the images", check=a_path)
    res: int | None = altered(
        PathSettings, "res", help="image side in pixels after resizing", check=resolution, rare=False
    )
    own: bool = data(False, "NAME is a new data set: your class folders, or your .npz file")


MAKERS = (CoresetRunSettings, DDMSettings)  # settings of the commands that make sets


def roles() -> dict[str, Role]:
    """The role of each setting of the commands that make sets."""
    return {name: setting.role for cls in MAKERS for name, setting in declarations(cls).items()}


def defaults() -> dict[str, Any]:
    """The default of each of these settings."""
    return {name: cls.__dataclass_fields__[name].default for cls in MAKERS for name in declarations(cls)}
