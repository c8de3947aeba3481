"""Settings of experiments and their files."""

from ddm.settings import Role, Settings, a_path, at_least, grouped

output = grouped("output")


class OutputSettings(Settings):
    """The folder for all files."""

    save_path: str = output("result", "folder for all files", check=a_path, role=Role.PLACE)


class LikeSettings(Settings):
    """The repetition of an earlier run."""

    like: str | None = output(
        None,
        "reuse a run's arguments from its results.json, res_*.pt or .safetensors, except paths and device; explicit "
        "flags override",
        metavar="FILE",
        check=a_path,
        role=Role.PLACE,
    )


class RunSettings(OutputSettings, LikeSettings):
    """Independent experiments, resumable."""

    num_exp: int = grouped("optimisation")(5, "independent experiments", check=at_least(1), role=Role.GROWS)
    first_exp: int = grouped("optimisation")(
        0, "number of the first experiment, for running experiments separately", check=at_least(0), rare=True
    )
    resume: str = output(
        "auto",
        "auto: resume from the checkpoint in save_path, if any; never: require an empty folder; must: require one",
        choices=("auto", "never", "must"),
        role=Role.PLACE,
        rare=True,
    )
    tensorboard: bool = output(False, "write losses, accuracies and images for TensorBoard", role=Role.MANNER)
    wandb: bool = output(False, "write losses, accuracies and images for Weights & Biases", role=Role.MANNER)


class StepSettings(RunSettings):
    """The settings of experiments with steps."""

    eval_every: int | None = grouped("evaluation")(
        None,
        "steps between evaluations of the set, with random real images at the start; 0: only at the end; unset: 2000, "
        "or 0 for pools of networks (--eval_mode)",
        check=at_least(0),
    )
    checkpoint_every: int = output(
        200,
        "steps between checkpoints; one is also written every 5 minutes",
        check=at_least(1),
        role=Role.MANNER,
        rare=True,
    )
