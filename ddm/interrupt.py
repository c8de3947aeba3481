"""Stop a run at a resumable point on SIGTERM (Slurm) or SIGINT (Ctrl-C)."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
Handler = Callable[[int, FrameType | None], None] | signal.Handlers


class Stopped(BaseException):
    """A signal stopped the run; `status` is the exit status, 128 + signal number.

    It is a BaseException, so that no `except Exception` catches it.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class Interrupts:
    """Stores the first signal until `check` is called at a safe point. A second signal exits immediately."""

    def __init__(self) -> None:
        self.received: int | None = None  # by this process, or by another rank
        self._immediate = self._signalled = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._signalled:
            os._exit(128 + signum)
        self._signalled, self.received = True, signum
        if self._immediate:
            raise Stopped(signum)

    def check(self) -> None:
        """Raise Stopped if a signal was received."""
        if self.received is not None:
            raise Stopped(self.received)

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside, a signal raises Stopped immediately. For work that a resumed run repeats from its start."""
        self.check()
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    @contextlib.contextmanager
    def installed(self) -> Iterator["Interrupts"]:
        """Inside, this object handles the signals. In threads other than the main thread it has no effect."""
        with handled_by(self._handle):
            yield self


@contextlib.contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Inside, `handler` handles the signals. In threads other than the main thread it has no effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)
