"""Progress of long work: a bar on a terminal, lines everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str], None]


class Progress:
    """Tells how far work is.

    Args:
        report: Takes lines. None: standard error, with bars if that is a terminal.
    """

    def __init__(self, report: Report | None = None) -> None:
        self._report = report
        self._bars = report is None and sys.stderr.isatty()

    def line(self, text: str) -> None:
        """Say something; above the bar where there is one."""
        if self._report is not None:
            self._report(text)
        elif self._bars:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def steps(self, title: str, total: int, *, done: int = 0) -> Iterator[Report]:
        """Count steps; what is yielded takes a line about each.

        Args:
            title: Of the work, for the bar.
            total: Number of steps.
            done: Steps that an earlier attempt has done.
        """
        if not self._bars:
            count = done

            def advance(text: str) -> None:
                nonlocal count
                count += 1
                self.line(f"  [{count}/{total}] {text}")

            yield advance
            return
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc=title, unit="task", dynamic_ncols=True) as bar:

            def advance(text: str) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update()

            yield advance
