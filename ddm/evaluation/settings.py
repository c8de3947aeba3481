"""Settings of the evaluation."""

from ddm.data.settings import HeldOutSettings
from ddm.settings import Role, SeedSettings, Settings, at_least, grouped, non_negative

evaluation = grouped("evaluation")

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"


LAST, PEERS = "last", "peers"  # --eval_protocol


class ScoringSettings(HeldOutSettings, SeedSettings):
    """The settings of every evaluation, independent of the networks."""

    num_eval: int = evaluation(20, "fresh networks per evaluation and architecture", check=at_least(1), role=Role.GROWS)
    batch_train: int = evaluation(256, "batch size of the evaluation networks", check=at_least(1), rare=True)
    dsa_strategy: str = grouped("optimisation")(DSA_STRATEGY, "augmentations joined by _, or none", rare=True)


class ProtocolSettings(ScoringSettings):
    """The evaluation of DC/DSA/DM: networks and their training."""

    model: str = grouped("optimisation")(
        "ConvNet", "network that makes and evaluates the set; published _gram names are accepted"
    )
    eval_mode: str = evaluation(
        "SS", "SS: the model itself; S: without BatchNorm; M B W D A P N: pools of networks", rare=True
    )
    epoch_eval_train: int = evaluation(1000, "E: train epochs 0 .. E, test after the last", check=at_least(0))
    lr_net: float = evaluation(0.01, "learning rate of the evaluation networks", check=non_negative, rare=True)


class SpaceSettings(Settings):
    """The space of a saved set's pixels, if its file does not record it."""

    space: str = grouped("data")(
        "auto",
        "space of the pixels, if the file does not record it: normalised, in [0, 1] (unit) or in 0 .. 255 (bytes); "
        "auto guesses",
        choices=("auto", "normalised", "unit", "bytes"),
        rare=True,
    )
