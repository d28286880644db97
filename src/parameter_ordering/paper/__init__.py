"""The reproduction of the paper. It needs the extra ``paper``; the method needs nothing of it."""

import sys
from importlib.util import find_spec

_NEEDED = (
    "filelock",
    "h5netcdf",
    "joblib",
    "matplotlib",
    "pandas",
    "pydantic",
    "sklearn",
    "tqdm",
    "xarray",
)


def require() -> None:
    """Make sure that what the extra brings is there.

    Raises:
        ImportError: it is not; the message says how to install it.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
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
