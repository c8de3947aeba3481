"""SIGTERM and SIGINT, which Slurm and Ctrl-C send, stop a run where it can be resumed."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal stopped the run; `status` is the exit status, 128 + the signal's number.

    It is a BaseException, so that no `except Exception` around reading or compiling swallows it.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class Interrupts:
    """Remembers the first signal until `check` is called where stopping is safe. A second signal exits at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._anywhere = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
        if self._anywhere:
            raise Stopped(signum)

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.received is not None:
            raise Stopped(self.received)

    @contextlib.contextmanager
    def anywhere(self) -> Iterator[None]:
        """Inside, a signal raises Stopped at once. For work that a resumed run repeats from its start."""
        self.check()
        self._anywhere = True
        try:
            yield
        finally:
            self._anywhere = False

    @contextlib.contextmanager
    def installed(self) -> Iterator["Interrupts"]:
        """Inside, signals come here. Python delivers them to the main thread only; in others nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
