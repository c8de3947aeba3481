"""A step as one CUDA graph: its hundreds of launches become one call of the host."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddm.device import release
from ddm.errors import first_line
from ddm.methods.step import Step

WARM_UP = 3  # eager steps before the capture: libraries choose their algorithms and torch.compile compiles in these


class Graphed:
    """A step that is captured as a CUDA graph after a few calls, and replayed from then on.

    The tensors that the step reads and writes must stay at their addresses. If those of the draws change, it is
    captured again. If it can't be captured, it stays eager, after one warning.
    """

    def __init__(self, step: Callable[[dict[str, Tensor]], Step], say: Callable[[str], None]):
        self.step, self.say = step, say
        self.calls, self.failed = 0, False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.addresses: list[int] = []

    def __call__(self, drawn: dict[str, Tensor]) -> Step:
        self.calls += 1
        if self.calls <= WARM_UP:
            return self.step(drawn)
        addresses = [x.data_ptr() for x in drawn.values()]
        if not self.failed and (self.graph is None or addresses != self.addresses):
            self._capture(drawn, addresses)
        if self.failed:
            return self.step(drawn)
        self.graph.replay()
        # The next replay overwrites the results.
        return self.result._replace(
            **{name: getattr(self.result, name).clone() for name in ("terms", "gradient_finite", "finite")}
        )

    def _capture(self, drawn: dict[str, Tensor], addresses: list[int]) -> None:
        self.graph = None  # its memory is free again
        torch.cuda.empty_cache()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads may use CUDA meanwhile: those of draws.py allocate pinned memory.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.result = self.step(drawn)
        except RuntimeError as error:  # also out of memory: the eager steps had enough
            self.failed = True
            torch.cuda.set_stream(stream)  # torch does not leave the stream of a broken capture
            torch.cuda.synchronize()
            release()
            self.say(f"warning: steps run eagerly, as the capture of a CUDA graph failed: {first_line(error)}")
            return
        self.say("steps run as a CUDA graph")
        self.graph, self.addresses = graph, addresses
