"""How far a long stage is: a bar on a terminal, a line at least every minute anywhere else.

A bar in a log file is one endless line of carriage returns, and silence for an hour tells nobody
whether a run still lives. So there is one ``Progress`` for all that takes long.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from minionerec.experiment.run import is_main_process

SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Counts what is done and shows it on stderr, in the first process of a launch only.

    Args:
        what: is being done, in a word or two; "" shows nothing.
        total: how much there is to do; None where nobody knows.
        unit: of ``total``, in the plural.
        done: how much of it an earlier run has done.
    """

    def __init__(self, what: str, total: int | None, unit: str, done: int = 0):
        self.what = what
        self.total = total
        self.unit = unit
        self.done = done
        self._done_before = done
        self._started = time.monotonic()
        self._last_line = self._started
        self._is_shown = bool(what) and is_main_process()
        self._bar: tqdm | None = None
        if self._is_shown and sys.stderr.isatty():
            # leave=None: a bar below another one vanishes when it is full
            self._bar = tqdm(
                total=total, initial=done, desc=what, unit=f" {unit}", mininterval=1.0, leave=None
            )

    def update(self, number: int = 1, **figures: str) -> None:
        """Count some more as done.

        Args:
            number: how much; 0 only shows that the work goes on.
            figures: to show beside it, by name.
        """
        self.done += number
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(number)
            return
        now = time.monotonic()
        if self._is_shown and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            line = self.line(now - self._started, figures)
            print(line, file=sys.stderr, flush=True)

    def line(self, seconds: float, figures: dict[str, str]) -> str:
        """``ranking: 640 of 4,533 users (14 %), 10.7 users/s, 6 min left``.

        Args:
            seconds: that what this run has done took.
            figures: to show behind it.
        """
        parts = [f"{self.done:,} {self.unit}"]
        if self.total:
            share = self.done / self.total
            parts = [
                f"{self.done:,} of {self.total:,} {self.unit} ({share:.0%})".replace("%", " %")
            ]
        rate = self.rate(seconds)
        if rate:
            # Less than one a second is told as the time that each takes
            each = f"{1 / rate:.1f} s each"
            parts.append(f"{rate:,.1f} {self.unit}/s" if rate >= 1 else each)
            if self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        parts += [f"{name} {figure}" for name, figure in figures.items()]
        return f"{self.what}: {', '.join(parts)}"

    def rate(self, seconds: float | None = None) -> float:
        """Units a second in this run; 0 before the first.

        Args:
            seconds: since it began; None: until now.
        """
        passed = time.monotonic() - self._started if seconds is None else seconds
        return (self.done - self._done_before) / passed if passed > 0 else 0.0

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        """Nothing to do: it counts from the moment it was made."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away, whatever has happened."""
        self.close()


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> [duration(seconds) for seconds in (4.2, 59.9, 600, 5400, 200000)]
    ['4 s', '60 s', '10 min', '1 h 30 min', '55 h 33 min']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
