"""What a run drives: a maker makes one set per experiment; runs/experiments.py does everything else."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ddm.errors import UserError


class Report(NamedTuple):
    """The losses of one iteration."""

    iteration: int
    terms: dict[str, float]  # weighted terms, each the mean over classes; empty where the step was skipped
    skipped: str = ""  # why it was skipped

    @property
    def text(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self.terms.items())


class Diverged(UserError):
    """A loss, gradient or pixel is not finite; `images` and `velocity` are those before the iteration."""

    def __init__(self, message: str, iteration: int, images: Tensor, velocity: Tensor):
        super().__init__(message)
        self.iteration, self.images, self.velocity = iteration, images, velocity


class Maker(Protocol):
    """Makes sets. Images are [N, C, H, W], normalised, classes one after the other."""

    kind: str  # of images, in results.json: 'condensed', or a coreset's method
    iterations: int  # steps per experiment; 0: the set is complete after `start`
    data: Any  # ImageData, on the device
    plan: Any  # with settings, counts, machine and ranks; may change when memory is out

    def arguments(self) -> Mapping[str, Any]:
        """Every setting with its final value, for results.json and the set's file."""

    def prepare(self, remaining: int) -> None:
        """Compute what the `remaining` experiments share. May raise UserError; nothing is written before."""

    def start(self, experiment: int, saved: tuple[Tensor, Tensor] | None) -> None:
        """Begin an experiment, or resume it from images and their velocity."""

    def step(self, iteration: int) -> None:
        """One iteration, without a host sync."""

    def check(self) -> list[Report]:
        """Read the losses since the last check. Raises Diverged."""

    def images(self) -> Tensor:
        """The whole set as it is now, of all ranks."""

    def state(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Images and velocity to resume from, copied to the CPU."""

    def scored(self, experiment: int, images: Tensor) -> tuple[Any, Tensor]:
        """The images (a tensor or Normalised) and labels that evaluation networks are trained on."""

    def baseline(self, experiment: int) -> Tensor:
        """Random real images, as many as the set has: they are evaluated beside it."""
