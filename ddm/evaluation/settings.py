"""How a training set is scored."""

from ddm.data.settings import HeldOutSettings
from ddm.settings import Role, SeedSettings, Settings, at_least, grouped, non_negative

evaluation = grouped("evaluation")

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"


class ScoringSettings(HeldOutSettings, SeedSettings):
    """What every evaluation shares, whichever networks it trains."""

    num_eval: int = evaluation(20, "fresh networks per evaluation and architecture", check=at_least(1), role=Role.GROWS)
    batch_train: int = evaluation(256, "batch size of the evaluation networks", check=at_least(1))
    dsa_strategy: str = grouped("optimisation")(DSA_STRATEGY, "augmentations joined by _, or none")


class ProtocolSettings(ScoringSettings):
    """The evaluation of DC/DSA/DM: which networks are trained on a set, and how."""

    model: str = grouped("optimisation")(
        "ConvNet", "network whose features are matched; the published _gram names are accepted"
    )
    eval_mode: str = evaluation("SS", "SS: the model itself; S: without BatchNorm; M B W D A P N: a pool")
    epoch_eval_train: int = evaluation(1000, "E: epochs 0 .. E are trained, the last one counts", check=at_least(0))
    lr_net: float = evaluation(0.01, "learning rate of the evaluation networks", check=non_negative)


class SpaceSettings(Settings):
    """How a saved set's pixels are read, where its file does not say."""

    space: str = grouped("data")(
        "auto",
        "pixels of a file that does not say: as networks see them, in [0, 1], or in 0 .. 255; auto guesses",
        choices=("auto", "normalised", "unit", "bytes"),
    )
