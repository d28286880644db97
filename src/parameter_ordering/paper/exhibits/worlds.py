"""Figures and tables of the chapter on worlds."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from pandas.io.formats.style import Styler

from parameter_ordering.paper.evidence.worlds import (
    GROWTH,
    PAPER,
    SLOWER,
    Statement,
    contrast_of,
    holds,
    ratio_of,
)
from parameter_ordering.paper.exhibits.style import COLOURS, DATA_SETS, INK, PALE, describe
from parameter_ordering.paper.exhibits.tables import styled

READINGS = {
    "covariance": "as printed",
    "all_samples": "all objects",
    "first_not_centred": "not centred",
    "not_cleared": "gradients not cleared",
}
_TICKS = (0.1, 0.5, 1, 2, 10)


def space_table(described: pd.DataFrame) -> Styler:
    """The open choices as a reader writes them.

    Args:
        described: of :func:`.experiments.space.described`.
    """
    shown = described.assign(setting=described.setting.str.replace("_", " "))
    return styled(shown).hide().set_properties(**{"text-align": "left"})


def specification_figure(rows: pd.DataFrame, choices: Mapping[str, pd.DataFrame]) -> Figure:
    """The specification curve: worlds by their effect, and what each of them had chosen below.

    Args:
        rows: of :func:`.evidence.worlds.effects`.
        choices: by data set, a row a world and a column a choice.
    """
    figure, axes = plt.subplots(
        2, len(GROWTH), figsize=(7.4, 5.6), sharex="col", height_ratios=[1, 1.25], squeeze=False
    )
    settings = list(dict.fromkeys(name for name in GROWTH for name in choices[name]))
    found = []
    for (name, statement), (above, below) in zip(GROWTH.items(), axes.T, strict=True):
        some = _of_paper(rows, name).sort_values("seen", ignore_index=True)
        _curve(above, some, statement)
        above.set_title(DATA_SETS[name], fontsize="small")
        levels = choices[name].reindex(columns=settings).apply(_level).loc[some.world]
        below.imshow(
            levels.T, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest"
        )
        below.set(yticks=range(len(settings)), xlabel="worlds by effect")
        below.set_yticklabels([each.replace("_", " ") for each in settings], fontsize="x-small")
        below.tick_params(labelleft=name == next(iter(GROWTH)))
        true = int(holds(some, statement).sum())
        found.append(f"{DATA_SETS[name]}, {statement.text}: in {true} of {len(some)}")
    for axis in axes[0, 1:]:
        axis.tick_params(labelleft=False)
    axes[0, 0].set_ylabel("growth as a ratio\nto random's")
    return describe(figure, f"Worlds in which the paper's statement holds. {'; '.join(found)}.")


def _curve(axis: Axes, some: pd.DataFrame, statement: Statement) -> None:
    axis.axhspan(statement.low, statement.high, color=PALE, alpha=0.2, lw=0)
    axis.axhline(0, color=PALE, lw=1)
    axis.vlines(some.index, some.seen_low, some.seen_high, color=COLOURS[PAPER], alpha=0.35, lw=1)
    axis.plot(some.index, some.seen, "o", ms=2.5, color=COLOURS[PAPER])
    _ratio_axis(axis)


def _ratio_axis(axis: Axes) -> None:
    axis.set_ylim(-1, 1)
    axis.set_yticks([contrast_of(each) for each in _TICKS], [f"{each:g}" for each in _TICKS])


def _of_paper(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return rows[(rows.data_set == name) & (rows.reading == PAPER) & ~rows.diverged]


def _level(column: pd.Series) -> pd.Series:
    """From 0 to 1 by the place of a value among all; missing where there is no such choice."""
    if column.isna().all():
        return column.astype(float)
    order = column if pd.api.types.is_numeric_dtype(column) else column.astype(str)
    rank = order.rank(method="dense") - 1
    return rank / max(rank.max(), 1)


def left_figure(rows: pd.DataFrame) -> Figure:
    """The effect of each world against the share of the gain that was left at t0."""
    figure, axes = plt.subplots(1, len(GROWTH), figsize=(7.4, 2.8), sharey=True)
    found = []
    for axis, (name, statement) in zip(axes, GROWTH.items(), strict=True):
        axis.axhspan(statement.low, statement.high, color=PALE, alpha=0.2, lw=0)
        axis.axhline(0, color=PALE, lw=1)
        some = _of_paper(rows, name)
        axis.plot(some.left.clip(1e-3, 1), some.seen, "o", ms=3.5, color=COLOURS[PAPER])
        rho = some.left.corr(some.seen, method="spearman")
        found.append(f"{DATA_SETS[name]} {rho:.2f}")
        axis.set(xscale="log", xlim=(1.3, 7e-4), title=DATA_SETS[name], xlabel="left to gain")
        axis.set_xticks(
            [1, 0.1, 0.01, 0.001], ["100 %", "10 %", "1 %", "0.1 %"], fontsize="x-small"
        )
        _ratio_axis(axis)
    axes[0].set_ylabel("growth as a ratio\nto random's")
    return describe(figure, f"Rank correlation of both: {', '.join(found)}.")


def importance_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Which choices decide: their share of the variance between worlds, by data set.

    Args:
        tables: of :func:`.evidence.importance.importance`, by data set.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(7.4, 3.6), sharex=True, sharey=True)
    settings = list(dict.fromkeys(name for table in tables.values() for name in table.index))[::-1]
    found = []
    for axis, (name, table) in zip(np.atleast_1d(axes), tables.items(), strict=True):
        table = table.reindex(settings)
        beyond = table.share > table.chance
        y = np.arange(len(settings))
        axis.hlines(y, table.share - table.error, table.share + table.error, color=PALE, lw=1.5)
        axis.plot(table.share[beyond], y[beyond], "o", ms=5, color=COLOURS[PAPER])
        axis.plot(table.share[~beyond], y[~beyond], "o", ms=5, mfc="none", color=COLOURS[PAPER])
        axis.plot(table.chance, y, "|", ms=9, color=INK)
        axis.set(title=DATA_SETS[name], xlim=(0, 1), xlabel="share", yticks=y)
        axis.set_yticklabels([each.replace("_", " ") for each in settings], fontsize="small")
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.tick_params(axis="x", labelsize="x-small")
        names = ", ".join(table.index[beyond][::-1]).replace("_", " ")
        found.append(f"{DATA_SETS[name]}: {names or 'none'}")
    return describe(figure, f"Beyond chance. {'; '.join(found)}.")


def in_words(rows: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """For the prose: what stands ``beyond`` chance, and where the proposed order is ``better``.

    Args:
        rows: effects of the paper's reading.
        tables: of :func:`.evidence.importance.importance`, by data set.
    """
    beyond = [
        f"{choice.replace('_', ' ')} on {DATA_SETS[name]}"
        for name, table in tables.items()
        for choice in table.index[table.share > table.chance]
    ]
    found = {"beyond": ", ".join(beyond) or "nothing"}
    for name in GROWTH:
        better = holds(_of_paper(rows, name), SLOWER).dropna()
        found[f"better {name}"] = f"{better.mean():.0%}"
    return found


def shares_table(table: pd.DataFrame) -> Styler:
    """In which share of the worlds a statement holds.

    Args:
        table: of :func:`.evidence.worlds.shares`.
    """
    shown = [
        {
            "data": DATA_SETS[row.data_set],
            "statement": row.statement,
            "holds": _interval(row),
            "sure": _sure(row),
        }
        for row in table.itertuples()
    ]
    return styled(pd.DataFrame(shown)).hide().set_properties(**{"text-align": "left"})


def _interval(row) -> str:
    return f"{row.share:.0%} ({row.low:.0%}–{row.high:.0%})"


def _sure(row) -> str:
    return "" if np.isnan(row.surely) else f"{row.surely:.0%} / {row.surely_not:.0%}"


def growth_shares(table: pd.DataFrame) -> dict[str, str]:
    """In which share of the worlds each statement about growth holds, by data set.

    Args:
        table: of :func:`.evidence.worlds.shares`.
    """
    found = table.set_index(["data_set", "statement"])
    return {name: _interval(found.loc[(name, each.text)]) for name, each in GROWTH.items()}


def readings_table(tables: Mapping[str, pd.DataFrame]) -> Styler:
    """The statements about growth by reading of (2.6).

    Args:
        tables: of :func:`.evidence.worlds.shares`, by reading.
    """
    found = {READINGS[reading]: growth_shares(table) for reading, table in tables.items()}
    rows = [
        {"data": DATA_SETS[name], "statement": statement.text}
        | {reading: shares[name] for reading, shares in found.items()}
        for name, statement in GROWTH.items()
    ]
    return styled(pd.DataFrame(rows)).hide().set_properties(**{"text-align": "left"})


def nearest_table(table: pd.DataFrame, number: int = 5) -> Styler:
    """The worlds that come nearest to the paper's four statements about growth.

    Args:
        table: of :func:`.evidence.worlds.together`.
        number: how many are shown.
    """
    shown = []
    for row in table.head(number).to_dict("records"):
        ratios = {DATA_SETS[name]: f"{ratio_of(row[name]):.2f}" for name in GROWTH}
        key = {"world": row["world"], "reading": READINGS[row["reading"]], "hold": row["hold"]}
        shown.append(key | ratios)
    return styled(pd.DataFrame(shown)).hide()


def again_table(first: Sequence[Mapping], again: Sequence[Mapping]) -> Styler:
    """Effects as they were found, and in 25 runs on seeds of their own.

    Args:
        first: rows of effects.
        again: the same, run again.
    """
    shown = [
        {
            "world": before["world"],
            "data": DATA_SETS[before["data_set"]],
            "found": _ratio(before),
            "again": _ratio(after),
        }
        for before, after in zip(first, again, strict=True)
    ]
    return styled(pd.DataFrame(shown)).hide()


def _ratio(row: Mapping) -> str:
    if row["diverged"]:
        return "diverged"
    value, low, high = (ratio_of(row[each]) for each in ("contrast", "low", "high"))
    return f"{value:.2f} ({low:.2f}–{high:.2f})".replace("inf", "∞")
