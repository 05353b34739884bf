"""How far long work is: a bar with the remaining time on a terminal, a plain line now and then otherwise."""

import time
from collections.abc import Iterable, Iterator, Sized

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Seconds between two lines where there is no terminal.
QUIET_S = 15.0


class Work:
    """Progress of one piece of work: iterate over it, or use it as a context and call ``advance``.

    ``items`` is an iterable (its length is used where it has one) or the total number of steps.
    """

    def __init__(self, items: Iterable | int, label: str, console: Console):
        self._items = range(items) if isinstance(items, int) else items
        self.total = len(self._items) if isinstance(self._items, Sized) else None
        self.label, self.done, self._console = label, 0, console
        self._started = self._said = time.monotonic()
        self._bar = self._task = None

    def __enter__(self) -> "Work":
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self.label, total=self.total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Tell that ``steps`` more are done."""
        self.done += steps
        if self._bar is not None:
            self._bar.advance(self._task, steps)
            return
        now = time.monotonic()
        if now - self._said >= QUIET_S:
            self._said = now
            left = f", about {(now - self._started) * (self.total / self.done - 1):.0f} s left" if self.total else ""
            self._console.print(f"    {self.label}: {self.done} of {self.total or '?'}{left}", highlight=False)

    def __iter__(self) -> Iterator:
        with self:
            for item in self._items:
                yield item
                self.advance()
