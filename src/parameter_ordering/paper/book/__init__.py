"""The Sphinx extension that runs papermill on the chapters of the book. It computes nothing.

`settings` says where the book is and what is in it; `chapters` what a chapter is, what it depends
on and whether it is up to date. `execute` runs chapters side by side, `worker` papermill on one.
`pages` makes the notebook that Sphinx is given, and `provenance` writes under each figure where it
comes from. `extension` joins them to Sphinx, and `check` looks at what was built.
"""

from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry: ``extra_extensions: [parameter_ordering.paper.book]``."""
    from parameter_ordering.paper.book.extension import setup

    return setup(app)
