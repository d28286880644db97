"""The reproduction of the paper. It needs the extra ``paper``; the method needs nothing of it."""

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version


def require() -> None:
    """Make sure that what the extra brings is there.

    Raises:
        ImportError: it is not; the message says how to install it.
    """
    if missing := [name for name in _of_the_extra() if not _is_installed(name)]:
        raise ImportError(
            f"the experiments of the paper need {', '.join(missing)}: "
            "pip install 'parameter-ordering[paper]'"
        )


def command() -> int:
    """The command ``parameter-ordering``."""
    try:
        require()
    except ImportError as error:
        sys.exit(f"parameter-ordering: {error}")
    from parameter_ordering.paper.cli.main import main

    return main()


def _of_the_extra() -> list[str]:
    needed = requires("parameter-ordering") if _is_installed("parameter-ordering") else None
    lines = (line.partition(";") for line in needed or [])
    return [re.split(r"[^\w.-]", name)[0] for name, _, extra in lines if re.search("paper", extra)]


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
