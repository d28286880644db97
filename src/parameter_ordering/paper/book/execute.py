"""Executes chapters side by side, each in its own process, and shows how far they are."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress

import nbformat
from filelock import FileLock

from parameter_ordering.paper.book.chapters import RECORD, Chapter, tags
from parameter_ordering.paper.book.settings import BookError, Settings
from parameter_ordering.paper.store.files import lock, sweep

_THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")


def take_turn(settings: Settings, say: Callable[[str], None]) -> FileLock:
    """Wait until no one else builds or executes this book; release what is returned when done."""
    turn = lock(settings.build / ".lock")
    try:
        turn.acquire(blocking=False)
    except TimeoutError:
        say("waiting for another build of this book to end")
        turn.acquire()
    return turn


def execute(
    settings: Settings, chapters: Sequence[Chapter], say: Callable[[str], None] = print
) -> None:
    """Run papermill on the chapters; call it in turn, see `take_turn`.

    All are run, also when one fails, so that no finished work is lost.

    Raises:
        BookError: naming each chapter that failed, the cell and the error.
    """
    sweep(settings.build / "executed")
    side_by_side, cores = shares(_cores(), len(chapters))
    environment = _environment(settings, cores)
    longest_first = sorted(chapters, key=_minutes, reverse=True)
    runs = [_Run(chapter, environment) for chapter in longest_first]
    failures = {}
    with ThreadPoolExecutor(side_by_side) as pool:
        try:
            pending = {pool.submit(run): run for run in runs}
            progress = _Progress(runs, say)
            while pending:
                done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    run = pending.pop(future)
                    outcome = future.result()
                    if "error" in outcome:
                        failures[run.chapter.docname] = outcome["error"]
                    progress.finished(run, outcome)
                progress.show()
        except BaseException:
            for run in runs:
                run.stop()
            raise
    if failures:
        texts = (f"{name}: {error}" for name, error in failures.items())
        raise BookError("\n\n".join(["the run of a chapter failed", *texts]))


def shares(cores: int, chapters: int) -> tuple[int, int]:
    """How many chapters run side by side, and how many cores each has.

    >>> [shares(cores, 12) for cores in (1, 2, 4, 8, 16)]
    [(1, 1), (2, 1), (2, 2), (3, 2), (4, 4)]
    >>> shares(8, 1)
    (1, 8)
    """
    side_by_side = min(math.isqrt(cores - 1) + 1, chapters)  # the square root, rounded up
    return side_by_side, cores // side_by_side


class _Run:
    """One chapter's process; calling it waits for the outcome."""

    def __init__(self, chapter: Chapter, environment: dict[str, str]) -> None:
        self.chapter = chapter
        self.line = ""
        self._environment = environment
        self._process: subprocess.Popen | None = None
        self._stopped = False

    def __call__(self) -> dict:
        if self._stopped:
            return {"error": "stopped"}
        command = [sys.executable, "-m", "parameter_ordering.paper.book.worker"]
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for the build, which then stops its workers
        )
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self.line = "starting"
        threading.Thread(target=self._listen, args=(process.stderr,), daemon=True).start()
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(self._job()) + "\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        status = process.wait()
        if answer:
            return json.loads(answer)
        return {"error": f"its process ended with status {status}, last heard: {self.line}"}

    def stop(self) -> None:
        """End the process, and with it the kernel."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def _listen(self, heard: Iterable[str]) -> None:
        """Keep the last line of progress. A carriage return ends a line too."""
        for line in heard:
            self.line = line.strip() or self.line

    def _job(self) -> dict:
        chapter = self.chapter
        return {
            "notebook": nbformat.writes(chapter.notebook),
            "folder": str(chapter.path.parent),
            "executed": str(chapter.executed),
            "results": str(chapter.settings.results),
            "record": {
                "profile": chapter.settings.profile,
                "parameters": dict(chapter.parameters),
                "inputs": chapter.inputs,
            },
        }


class _Progress:
    """One line that is redrawn on a terminal; a line now and then elsewhere."""

    def __init__(self, runs: Sequence[_Run], say: Callable[[str], None]) -> None:
        self._waiting, self._say = list(runs), say
        self._total, self._last = len(runs), time.monotonic()
        self._terminal = sys.stderr.isatty()
        noun = "chapter" if self._total == 1 else "chapters"
        say(f"executing {self._total} {noun}")

    def finished(self, run: _Run, outcome: dict) -> None:
        self._clear()
        self._waiting.remove(run)
        what = "failed" if "error" in outcome else f"executed in {outcome['seconds']:.1f} s"
        self._say(
            f"[{self._total - len(self._waiting)}/{self._total}] {run.chapter.docname} {what}"
        )

    def show(self) -> None:
        running = [f"{r.chapter.docname.split('/')[-1]}: {r.line}" for r in self._waiting if r.line]
        if self._terminal:
            self._clear()
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            sys.stderr.write(" | ".join(running)[:width])
            sys.stderr.flush()
        elif time.monotonic() - self._last > 30:
            self._last = time.monotonic()
            for line in running:
                self._say(f"      {line}")

    def _clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")


def _cores() -> int:
    """The cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed or 1


def _environment(settings: Settings, cores: int) -> dict[str, str]:
    """One thread a process, so that results do not depend on how many run side by side.

    A chapter's experiments may start as many processes as it has ``cores``.
    """
    return {
        **os.environ,
        **{f"{name}_NUM_THREADS": "1" for name in _THREADS},
        "LOKY_MAX_CPU_COUNT": str(cores),  # joblib's n_jobs=-1
        "PARAMETER_ORDERING_RESULTS": str(settings.results),
        "PARAMETER_ORDERING_PROFILE": settings.profile,
        "PYTHONHASHSEED": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _minutes(chapter: Chapter) -> float:
    """About how long a chapter takes: as its metadata say, or else a minute for an experiment."""
    takes_parameters = any("parameters" in tags(cell) for cell in chapter.notebook.cells)
    hint = chapter.notebook.metadata.get(RECORD, {})
    return hint.get("minutes", 1.0 if takes_parameters else 0.0)
