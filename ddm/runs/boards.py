"""Dashboards that a run writes for: TensorBoard and Weights & Biases. Both packages are optional.

A dashboard is one class and one row of BOARDS. Its name is its flag.
"""

import secrets
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ddm.errors import UserError, first_line


class Board:
    """A dashboard: `start` makes its writer on first use, `finish` closes it.

    Subclasses have `scalars` (a point of each named curve), `image` (a grid [3, H, W] in [0, 1]) and `hyper_parameters`
    (the settings and the final accuracy).
    """

    @cached_property
    def writer(self) -> Any:
        return self.start()

    def close(self) -> None:
        if "writer" in vars(self):
            self.finish()


class TensorBoard(Board):
    """A Board in <folder>/tensorboard. Raises UserError without the package."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.start = lambda: SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, iteration)

    def image(self, name: str, grid: Tensor, iteration: int) -> None:
        self.writer.add_image(name, grid, iteration)

    def hyper_parameters(self, args: dict[str, Any], summary: dict[str, Any]) -> None:
        values = {key: value if value is not None else "unset" for key, value in args.items()}
        self.writer.add_hparams(values, summary, run_name=".")

    def finish(self) -> None:
        self.writer.close()


class WandB(Board):
    """A Board of Weights & Biases, with its files in <folder>/wandb. Raises UserError without the package.

    A resumed run continues the same run there: its id is in <folder>/wandb/id.txt. The package reads its own
    environment variables, such as WANDB_PROJECT and WANDB_MODE=offline.
    """

    def __init__(self, folder: Path):
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs the package wandb: pip install wandb") from None
        self.wandb, self.folder = wandb, folder

    def start(self) -> Any:
        path = self.folder / "wandb" / "id.txt"
        earlier = path.read_text().strip() if path.exists() else ""
        identity = earlier or secrets.token_hex(4)
        try:
            started = self.wandb.init(name=self.folder.name, dir=str(self.folder), id=identity, resume="allow")
        except Exception as error:  # no login, no network, an unknown mode, ...
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"--wandb can't start ({reason}): run `wandb login`, or set WANDB_MODE=offline") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(identity)
        started.define_metric("*", step_metric="iteration")  # each experiment starts at 0 again
        return started

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        self.writer.log({"iteration": iteration, **values})

    def image(self, name: str, grid: Tensor, iteration: int) -> None:
        pixels = (grid * 255).round().byte().permute(1, 2, 0).numpy()
        self.writer.log({"iteration": iteration, name: self.wandb.Image(pixels)})

    def hyper_parameters(self, args: dict[str, Any], summary: dict[str, Any]) -> None:
        self.writer.config.update(args, allow_val_change=True)
        self.writer.summary.update(summary)

    def finish(self) -> None:
        self.writer.finish()


BOARDS: dict[str, Callable[[Path], Board]] = {"tensorboard": TensorBoard, "wandb": WandB}
