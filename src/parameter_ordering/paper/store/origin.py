"""Where and when a result came about: version, commit, machine, clock."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def origin() -> dict[str, str | int]:
    """The facts that a reader needs beside settings and seeds; values go into JSON as they are."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": _version(),
        "commit": commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit of the checkout that this package stands in, with ``+changes`` if edited."""
    # Without optional locks: a build that is killed must not leave the checkout's index locked.
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    try:
        run = subprocess.run(
            [*git, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or an installed copy
        return "unknown"
    return run.stdout.strip()


def _version() -> str:
    try:
        return version("parameter-ordering")
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
