"""How a command's experiments are run, and where their files go."""

from ddm.settings import Role, Settings, a_path, at_least, grouped

output = grouped("output")


class OutputSettings(Settings):
    """Where everything is written."""

    save_path: str = output("result", "folder for everything that is written", check=a_path, role=Role.PLACE)


class LikeSettings(Settings):
    """Repeating an earlier run."""

    like: str | None = grouped("data")(
        None,
        "reuse a run's arguments from its results.json or res_*.pt, except paths and device; explicit flags override",
        metavar="FILE",
        role=Role.PLACE,
    )


class RunSettings(OutputSettings, LikeSettings):
    """Independent experiments, resumable."""

    num_exp: int = grouped("optimisation")(5, "independent experiments", check=at_least(1), role=Role.GROWS)
    first_exp: int = grouped("optimisation")(
        0, "number of the first experiment: runs one of several alone", check=at_least(0)
    )
    resume: str = output(
        "auto",
        "auto: resume from the checkpoint in save_path if there is one; never: want an empty folder; must: want one",
        choices=("auto", "never", "must"),
        role=Role.PLACE,
    )
    tensorboard: bool = output(False, "also write losses, accuracies and images for TensorBoard", role=Role.MANNER)


class StepSettings(RunSettings):
    """Experiments that take steps."""

    eval_every: int | None = grouped("evaluation")(
        None,
        "evaluate random real images at the start, and the set every so many steps and at the end; 0: only at the "
        "end; unset: 2000 in modes S and SS, else 0",
        check=at_least(0),
    )
    checkpoint_every: int = output(
        200, "steps between checkpoints; one is taken every 5 minutes too", check=at_least(1), role=Role.MANNER
    )
