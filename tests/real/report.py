"""What the parts found: a line each, passed, failed or not run."""

from __future__ import annotations

import subprocess
import time
import traceback
from collections.abc import Callable

Lines = list[tuple[str, bool | None]]  # None: not run
_WORDS = {True: "PASSED", False: "FAILED", None: "NOT RUN"}


class Report:
    """Prints as it goes, and remembers what failed."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_WORDS.values(), 0)

    def part(self, name: str, run: Callable[[], Lines]) -> None:
        start = time.perf_counter()
        try:
            lines = run()
        except subprocess.CalledProcessError as error:
            lines = [(f"{' '.join(map(str, error.cmd))} ended with {error.returncode}: {error.stderr}", False)]
        except Exception:  # the other parts go on
            lines = [(traceback.format_exc(), False)]
        for line, passed in lines:
            self.counts[_WORDS[passed]] += 1
            print(f"{_WORDS[passed]:8} {name}: {line}", flush=True)
        print(f"         {name}: {time.perf_counter() - start:.0f} s", flush=True)

    def close(self) -> int:
        print(", ".join(f"{count} {word.lower()}" for word, count in self.counts.items()))
        return 1 if self.counts["FAILED"] else 0
