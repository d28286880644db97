"""One setting varied at a time: how the loss grows, and how stable the order is, at each value."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from parameter_ordering.paper.evidence.growth import growth_ratio
from parameter_ordering.paper.exhibits.chapter_tables import correlation, styled
from parameter_ordering.paper.exhibits.style import (
    COLOURS,
    DATA_SETS,
    LOOKS,
    PALE,
    describe,
    number,
)


def measure(varied: Iterable[tuple[str, str, object, xr.Dataset]]) -> pd.DataFrame:
    """One row for each experiment, setting and value.

    Args:
        varied: experiment, setting, value and the results with that value.

    Returns:
        ``random`` and ``within``: growth of the test loss in the proposed order as a ratio to that
        in the random order, and in the random order within tensors, each followed by its 95 %
        interval over runs, ``_low`` and ``_high``, and missing where the random order's growth is
        not well above 0; ``correlation``: rank correlation between runs.
    """
    rows = []
    for experiment, setting, value, data in varied:
        row: dict[str, str | float] = {
            "experiment": experiment,
            "setting": setting,
            "value": str(value),
        }
        for name, order in (("random", "random"), ("within", "random_within_tensors")):
            ratio = growth_ratio(data, "covariance", order)
            if ratio is not None:
                row[name] = ratio.value
                row[f"{name}_low"], row[f"{name}_high"] = ratio.interval()
        row["correlation"] = correlation(data, "covariance")
        rows.append(row)
    return pd.DataFrame(rows)


def growth_figure(table: pd.DataFrame) -> Figure:
    """Growth in the proposed order against two others, one panel for each setting and experiment.

    Args:
        table: of :func:`measure`.
    """
    versus = {
        "random": ("random", "to the random order's"),
        "within": ("random_within_tensors", "to that of the random order within tensors"),
    }
    figure, panels = _panels(table)
    for axis, rows in panels:
        axis.axhline(1, color=PALE, lw=1)
        for offset, (column, (order, label)) in zip((-0.08, 0.08), versus.items(), strict=True):
            low, value, high = (rows[f"{column}{end}"] for end in ("_low", "", "_high"))
            x, error = np.arange(len(rows)) + offset, [value - low, high - value]
            look = {"fmt": LOOKS[order].mark, "ms": 4, "color": COLOURS[order], "label": label}
            axis.errorbar(x, value, error, **look)
        axis.set(yscale="log", ylim=(0.05, 6))
        axis.set(yticks=[0.1, 0.3, 1, 3], yticklabels=["0.1", "0.3", "1", "3"])
        axis.minorticks_off()
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
        title="growth in the proposed order, as a ratio",
    )  # fmt: skip
    ranges = (
        f"{DATA_SETS.get(name, name)} {number(rows.random.min(), 0.05)} to "
        f"{number(rows.random.max(), 0.05)}"
        for name, rows in table.groupby("experiment", sort=False)
    )
    return describe(figure, f"Ratio to the random order's growth: {'; '.join(ranges)}.")


def correlation_figure(table: pd.DataFrame) -> Figure:
    """Rank correlation of the proposed order between two runs, in the panels of the growth.

    Args:
        table: of :func:`measure`.
    """
    figure, panels = _panels(table)
    for axis, rows in panels:
        axis.axhline(0, color=PALE, lw=1)
        axis.plot(np.arange(len(rows)), rows.correlation, "o", ms=5, color=COLOURS["covariance"])
        axis.set(ylim=(-0.1, 1.1), yticks=[0, 0.5, 1])
    ranges = (
        f"{DATA_SETS.get(name, name)} {number(rows.correlation.min(), 0.05)} to "
        f"{number(rows.correlation.max(), 0.05)}"
        for name, rows in table.groupby("experiment", sort=False)
    )
    return describe(figure, f"Rank correlation of two runs: {'; '.join(ranges)}.")


def _panels(table: pd.DataFrame) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A row of panels for each setting, a column for each experiment, and what each panel shows."""
    names, settings = table.experiment.unique(), table.setting.unique()
    figure, axes = plt.subplots(
        len(settings), len(names), figsize=(7.4, 1.5 * len(settings)), sharey=True
    )
    panels = []
    for setting, row in zip(settings, axes, strict=True):
        row[0].set_ylabel(setting.replace("_", " "))
        for axis, name in zip(row, names, strict=True):
            rows = table[(table.experiment == name) & (table.setting == setting)]
            if rows.empty:
                axis.set_axis_off()
            else:
                axis.set(xticks=range(len(rows)), xticklabels=rows.value, xlim=(-0.5, 2.5))
                panels.append((axis, rows))
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(DATA_SETS.get(name, name))
    return figure, panels


def flips(table: pd.DataFrame) -> Styler:
    """Where the proposed order is better than random at one value of a setting, worse at another.

    Both intervals are clear of 1.
    """
    found = []
    for (experiment, setting), rows in table.groupby(["experiment", "setting"], sort=False):
        better, worse = rows[rows.random_high < 1].value, rows[rows.random_low > 1].value
        if len(better) and len(worse):
            found.append((experiment, setting, ", ".join(better), ", ".join(worse)))
    frame = pd.DataFrame(found, columns=["experiment", "setting", "better at", "worse at"])
    return styled(frame).hide().set_properties(**{"text-align": "left"})
