"""The Sphinx extension that runs papermill on the chapters of the book. It computes nothing.

`chapters` says what a chapter is, what it depends on and whether it is up to date; `execute` runs
papermill; `provenance` writes under each figure where it comes from; `extension` joins them to
Sphinx; `check` looks at what was built; `cli` is the command ``parameter-ordering``.
"""

from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry: ``extra_extensions: [parameter_ordering.book]``."""
    from parameter_ordering.book.extension import setup

    return setup(app)
