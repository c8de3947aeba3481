"""The expected duration of a run, as one line."""

import time
from typing import Any, NamedTuple

AFTER_SECONDS = 60  # a run prints the line once, after its first minute


class Work(NamedTuple):
    """Units of the remaining work, and the seconds of each."""

    number: int
    seconds: float

    @property
    def total(self) -> float:
        return self.number * self.seconds


def duration(seconds: float) -> str:
    """A text such as '45 s', '12 min', '3 h 20 min' or '4 days 3 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} day{'s' if days > 1 else ''}{f' {hours} h' if hours else ''}"


class Meter:
    """Counts the parts of a session's work; `done` returns a line once, after the first minute."""

    def __init__(self, parts: int, name: str):
        self.left, self.name = parts, name
        self.began, self.finished, self.printed = time.perf_counter(), 0, False

    def done(self, parts: int = 1) -> str | None:
        """Count finished parts. Return the line on the expected duration of the others, or None."""
        self.left, self.finished = self.left - parts, self.finished + parts
        passed = time.perf_counter() - self.began
        if self.printed or not self.left or passed < AFTER_SECONDS:
            return None
        self.printed = True
        each = passed / self.finished
        return f"this command needs about {duration(self.left * each)} more for {self.left} {self.name}"


def line(settings: Any, steps: Work, networks: Work) -> str:
    """The remaining time of a run by kind of work, and the flags that shorten the longer one."""
    parts = []
    if steps.number:
        parts.append(f"{duration(steps.total)} for {steps.number:,} iterations of condensing")
    if networks.number:
        epochs = settings.epoch_eval_train + 1
        of = f"{networks.number:,} evaluation network{'s' if networks.number > 1 else ''} of {epochs:,} epochs"
        parts.append(f"{duration(networks.total)} for {of}")
    text = f"this command needs about {duration(steps.total + networks.total)} more: {' and '.join(parts)}"
    return text + shorter(settings, steps.total, networks.total)


def shorter(settings: Any, condensing: float, evaluating: float) -> str:
    """The flags that shorten a run, with a leading semicolon; '' if there are none.

    A part of the work that takes less than a fifth of the seconds is left out.
    """
    values, total = settings.values(), condensing + evaluating
    use, lower = [], []
    if condensing > 0.2 * total:
        use += [] if "fast" in (values.get("preset") or "").split(",") else ["--preset fast"]
        lower += ["Iteration", "batch_real"]
    if evaluating > 0.2 * total:
        use += ["--eval_every 0"] if values.get("eval_every") else []
        lower += [name for name in ("num_eval", "epoch_eval_train") if values[name] > 1]
    lower += ["num_exp"] if settings.num_exp > 1 else []
    ways = [*use, *([f"a smaller {', '.join(f'--{name}' for name in lower)}"] if lower else [])]
    return f"; shorten it with {' or '.join(ways)}" if ways else ""
