"""The interface of makers. A maker makes one set per experiment; runs/experiments.py does everything else."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ddm.errors import UserError


class Report(NamedTuple):
    """The losses of one iteration."""

    iteration: int
    terms: dict[str, float]  # weighted terms, each the mean over classes; empty if the step was skipped
    skipped: str = ""  # the reason for skipping

    @property
    def text(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self.terms.items())


class Diverged(UserError):
    """A loss, gradient or pixel is not finite; `images` and `velocity` are the state before the iteration."""

    def __init__(self, message: str, iteration: int, images: Tensor, velocity: Tensor):
        super().__init__(message)
        self.iteration, self.images, self.velocity = iteration, images, velocity


class Maker(Protocol):
    """Makes sets. Images are [N, C, H, W], normalised, in class order."""

    kind: str  # the kind of images in results.json: 'condensed', or the coreset method
    iterations: int  # steps per experiment; 0: the set is complete after `start`
    data: Any  # ImageData, on the device
    plan: Any  # settings, counts, machine and ranks; may change when the device is out of memory

    def arguments(self) -> Mapping[str, Any]:
        """All settings with their final values, for results.json and the set's file."""

    def cautions(self) -> list[str]:
        """Warnings, one line each, about settings that are valid but have no effect or a doubtful one."""

    def prepare(self, remaining: int) -> None:
        """Compute everything that the `remaining` experiments share. May raise UserError; no file exists yet."""

    def start(self, experiment: int, saved: tuple[Tensor, Tensor, Tensor | None] | None) -> None:
        """Start an experiment, or resume it from an earlier `state()`."""

    def step(self, iteration: int) -> None:
        """Take one iteration, without a host sync."""

    def check(self) -> list[Report]:
        """The losses since the last check. Raises Diverged if a value is not finite."""

    def images(self) -> Tensor:
        """The current set, gathered from all ranks."""

    def state(self) -> tuple[Tensor, Tensor, Tensor | None] | tuple[None, None, None]:
        """Images, velocity and networks to resume from, copied to the CPU; all None without steps.

        Networks are None unless they are more than a function of (seed, experiment, iteration).
        """

    def training_set(self, experiment: int, images: Tensor) -> tuple[Any, Tensor]:
        """The images (a tensor or Normalised) and labels for training the evaluation networks."""

    def baseline(self, experiment: int) -> Tensor:
        """As many random real images as the set has, evaluated for comparison."""
