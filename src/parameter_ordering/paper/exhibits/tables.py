"""How tables, and estimates in them, are written."""

import hashlib

import pandas as pd
import xarray as xr
from pandas.io.formats.style import Styler

from parameter_ordering.paper.evidence.growth import growth_ratio
from parameter_ordering.paper.evidence.statistics import Ratio

NO_RATIO = "–"


def styled(table: pd.DataFrame) -> Styler:
    """``table.style`` with HTML ids made from the content, so that the same table is the same page.

    pandas draws them at random.
    """
    content = repr(table.to_dict("split")).encode()
    return table.style.set_uuid(hashlib.sha256(content).hexdigest()[:8])


def markdown_table(frame: pd.DataFrame, caption: str = "", **options: str) -> str:
    """A table as Markdown, whose cells may hold formulas.

    Args:
        frame: its index and columns are shown too.
        caption: above the table.
        options: of the directive ``csv-table``, "name" to refer to it among others.
    """
    lines = [f":{name}: {value}" for name, value in options.items()]
    head = "\n".join([f"```{{csv-table}} {caption}", ":header-rows: 1", *lines])
    return f"{head}\n\n{frame.to_csv()}```"


def ratio(data: xr.Dataset, order: str, versus: str) -> str:
    """Growth of the test loss in one order as a ratio to that in another, with its interval."""
    return tell(growth_ratio(data, order, versus))


def tell(found: Ratio | None) -> str:
    """A ratio with its 95 % interval, or a dash where there is none."""
    if found is None:
        return NO_RATIO
    low, high = found.interval()
    return f"{found.value:.2f} ({low:.2f}–{high:.2f})"


def two_digits(value: float) -> str:
    """For a table; 0 never has a sign."""
    return f"{round(value, 2) + 0:.2f}"
