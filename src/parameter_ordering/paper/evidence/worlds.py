r"""What many worlds say of the paper's claims. Written down before any of the worlds was run.

A world is one value of every choice that the paper leaves open, see :mod:`.experiments.space`. Its
effect is a contrast. For two orders whose loss grows by a and b, means over interior k and runs, it
is :math:`(a - b) / (|a| + |b|)`: from -1 to 1, below 0 if the first is better, and for two orders
that grow it says the same as their ratio, see :func:`contrast_of` and :func:`ratio_of`.
Where a and b differ by less than ``NEGLIGIBLE`` of the loss at k = 0, less than the width of a line
in a figure, nobody sees a difference, and the contrast that is *seen* is 0.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from parameter_ordering.paper.evidence.growth import mean_growth
from parameter_ordering.paper.evidence.statistics import jackknife, quantile

NEGLIGIBLE = 0.01
PAPER = "covariance"  # the reading of (2.6) that is printed
_COLUMNS = [
    "world", "data_set", "reading", "diverged", "contrast", "error", "low", "high", "seen",
    "seen_low", "seen_high", "train", "descending", "spread", "correlation", "left",
]  # fmt: skip


def contrast_of(ratio: float) -> float:
    """The contrast of two orders whose growth has this ratio.

    >>> contrast_of(0.5), float(ratio_of(contrast_of(0.5)))
    (-0.333..., 0.5...)
    """
    return (ratio - 1) / (ratio + 1)


def ratio_of(contrast: ArrayLike) -> np.ndarray:
    """The ratio of growth that a contrast stands for; 0 and infinity where one order falls."""
    c = np.clip(np.asarray(contrast, float), -1, 1)
    with np.errstate(divide="ignore"):
        return np.asarray((1 + c) / (1 - c))


class Statement(NamedTuple):
    """A claim of the paper, as an effect of a world and the region in which it holds.

    The thresholds are those of the ledger of claims.
    """

    text: str
    effect: str
    low: float
    high: float


SLOWER = Statement("slower than random", "seen", -1, contrast_of(0.95))
MUCH_SLOWER = Statement("much slower than random", "seen", -1, contrast_of(0.5))
SAME = Statement("the same as random", "seen", contrast_of(0.8), contrast_of(1.25))
LESS_SPREAD = Statement("much less spread than random", "spread", 0, 0.25)
STABLE = Statement("a stable order", "correlation", 0.5, 1)
VERY_STABLE = Statement("an order that does not change", "correlation", 0.9, 1)
SMALL_FIRST = Statement("small variances first is better", "descending", -1, contrast_of(0.95))

# The four statements about growth, of which one protocol made all.
GROWTH = {
    "synthetic_1": SLOWER,
    "boston_housing": SAME,
    "synthetic_3": MUCH_SLOWER,
    "mnist": SAME,
}
STATEMENTS: tuple[tuple[str, Statement], ...] = (
    *GROWTH.items(),
    ("synthetic_3", LESS_SPREAD),
    ("synthetic_1", STABLE),
    ("boston_housing", STABLE),
    ("synthetic_3", VERY_STABLE),
    ("mnist", STABLE),
    *((name, SMALL_FIRST) for name in (*GROWTH, "synthetic_2")),
)


def effects(worlds: Mapping[str, xr.Dataset], readings: ArrayLike) -> pd.DataFrame:
    """One row for each world, data set and reading of (2.6): effects on the test loss.

    Args:
        worlds: by data set, outcomes along a dimension ``world``.
        readings: the orders that are readings of (2.6).

    Returns:
        ``contrast`` to the random order, with its error and 95 % interval (``low``, ``high``) by
        jackknife over runs, and as ``seen``, with ``seen_low`` and ``seen_high``; ``train``, the
        same contrast on the training part; ``descending``, that to the reverse of the paper's
        order, as seen, of the paper's reading alone; ``spread``, the variance over runs as a share
        of the random order's; ``correlation`` of the order between runs; ``left``, which share of
        all that training gains it had still to gain at t0. Of a world that diverged, with
        ``diverged``, all are missing.
    """
    rows = []
    for name, data in worlds.items():
        for number in data.world.values.tolist():
            of_world = data.sel(world=number)
            diverged = bool(of_world.diverged)
            for reading in np.asarray(readings).tolist():
                key = {"world": number, "data_set": name, "reading": reading, "diverged": diverged}
                rows.append(key | ({} if diverged else _effect(of_world, reading)))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _effect(data: xr.Dataset, reading: str) -> dict[str, float]:
    test = data.loss.sel(split="test")
    found = _contrast(test, reading, "random")
    train = _contrast(data.loss.sel(split="train"), reading, "random")
    spread = np.log(test.isel(k=slice(1, -1)).var("run").clip(1e-30)).mean("k")
    at_zero, at_t0 = (float(test.isel(k=end).mean()) for end in (0, -1))
    start = float(data.start_loss.sel(split="test").mean())
    runs = data.sizes["run"]
    correlation = data.correlation.sel(order=reading).values
    found |= {
        "train": train["seen"],
        "spread": float(np.exp(spread.sel(order=reading) - spread.sel(order="random"))),
        "correlation": float((correlation.sum() - runs) / (runs * (runs - 1))),
        "left": (at_t0 - at_zero) / (start - at_zero) if start > at_zero else np.nan,
    }
    if reading == PAPER:
        found["descending"] = _contrast(test, reading, "covariance_descending")["seen"]
    return found


def _contrast(loss: xr.DataArray, order: str, versus: str) -> dict[str, float]:
    growth = mean_growth(loss.sel(order=[order, versus])).transpose("order", "run").values
    found = jackknife(_of_means, *growth)
    half = quantile(0.95, found.df) * found.standard_error
    low, high = max(-1.0, found.value - half), min(1.0, found.value + half)
    ours, theirs = growth.mean(1)
    seen = abs(ours - theirs) >= NEGLIGIBLE * float(loss.isel(k=0).mean())
    return {
        "contrast": found.value, "error": found.standard_error, "low": low, "high": high,
        "seen": found.value * seen, "seen_low": low * seen, "seen_high": high * seen,
    }  # fmt: skip


def _of_means(ours: np.ndarray, theirs: np.ndarray) -> float:
    a, b = ours.mean(), theirs.mean()
    return float((a - b) / (abs(a) + abs(b))) if a or b else 0.0


def holds(rows: pd.DataFrame, statement: Statement) -> pd.Series:
    """Whether a statement holds by the estimate of each row; missing where it diverged."""
    value = rows[statement.effect]
    inside = (value >= statement.low) & (value <= statement.high)
    return inside.astype("boolean").where(value.notna())


def surely(rows: pd.DataFrame, statement: Statement) -> pd.DataFrame:
    """Whether the 95 % interval lies all inside, or all outside, the region of a statement."""
    low, high = rows.seen_low, rows.seen_high
    inside = (low >= statement.low) & (high <= statement.high)
    outside = (high < statement.low) | (low > statement.high)
    return pd.DataFrame({"holds": inside, "fails": outside})


def shares(rows: pd.DataFrame, reading: str = PAPER) -> pd.DataFrame:
    """In which share of the worlds each statement holds, with its Wilson interval.

    A statement that needs the spread or the correlation has no interval in a world; of the others
    ``surely`` and ``surely_not`` are the shares of worlds whose own interval decides.
    """
    found = []
    whole = rows[(rows.reading == reading) & ~rows.diverged]
    for data_set, statement in STATEMENTS:
        some = whole[whole.data_set == data_set]
        true = holds(some, statement).dropna()
        row: dict[str, Any] = {"data_set": data_set, "statement": statement.text}
        row |= {"worlds": len(true), **_share(int(true.sum()), len(true))}
        if statement.effect == "seen":
            certain = surely(some, statement)
            row |= {"surely": certain.holds.mean(), "surely_not": certain.fails.mean()}
        found.append(row)
    return pd.DataFrame(found)


def _share(true: int, all_: int) -> dict[str, float]:
    if not all_:
        return {"share": np.nan, "low": np.nan, "high": np.nan}
    interval = binomtest(true, all_).proportion_ci(method="wilson")
    return {"share": true / all_, "low": interval.low, "high": interval.high}


def together(rows: pd.DataFrame) -> pd.DataFrame:
    """How near each world comes to the four statements about growth, by reading of (2.6).

    Returns:
        ``hold``, how many of the four do; ``distance``, by how much the contrasts that are seen
        miss their regions, added up over data sets; and these contrasts, by data set. The nearest
        come first. Worlds in which one of the four diverged are left out.
    """
    seen = rows.pivot(index=["world", "reading"], columns="data_set", values="seen")
    seen = seen[list(GROWTH)].dropna()
    miss = seen.apply(lambda each: _distance(each, GROWTH[each.name]))
    table = seen.assign(hold=(miss == 0).sum(axis=1), distance=miss.sum(axis=1))
    order = ["hold", "distance"]
    return table.reset_index().sort_values(order, ascending=[False, True], ignore_index=True)


def _distance(value: pd.Series, statement: Statement) -> pd.Series:
    return (statement.low - value).clip(lower=0) + (value - statement.high).clip(lower=0)


def strongest(rows: pd.DataFrame, number: int = 3) -> pd.DataFrame:
    """The rows of the paper's reading whose interval is furthest from 0, one of a data set."""
    some = rows[(rows.reading == PAPER) & ~rows.diverged]
    clear = np.where(some.seen > 0, some.seen_low, -some.seen_high)
    some = some.assign(clear=clear).sort_values("clear", ascending=False)
    return some.drop_duplicates("data_set").head(number).reset_index(drop=True)
