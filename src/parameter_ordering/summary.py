"""Tables and numbers that the chapters show."""

import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from pandas.io.formats.style import Styler

from parameter_ordering.evidence.claims import Claims, Region
from parameter_ordering.evidence.growth import freezable, growth_ratio, mean_growth
from parameter_ordering.evidence.ledger import Row
from parameter_ordering.evidence.stability import rank_correlations, share_near_one, stability
from parameter_ordering.evidence.statistics import mean_difference
from parameter_ordering.figures import NAMES
from parameter_ordering.scores import SCORES

_NO_RATIO = "–"
_UNDECIDED = "neither faster nor more slowly, as far as these runs can tell, than"


def styled(table: pd.DataFrame) -> Styler:
    """``table.style`` with HTML ids made from the content, so that the same table is the same page.

    pandas draws them at random.
    """
    content = repr(table.to_dict("split")).encode()
    return table.style.set_uuid(hashlib.sha256(content).hexdigest()[:8])


def compare(data: xr.Dataset) -> pd.DataFrame:
    """One row an order: how the test loss grows, and how stable the order is.

    Args:
        data: of :meth:`Experiment.run`, with the order ``random`` among others.

    Returns:
        ``growth``: of the test loss from k = 0, mean over runs and interior k, in its own units;
        ``difference``, ``low``, ``high``: growth against the random order, paired by run, with its
        95 % interval over runs (NaN for the random order itself);
        ``spread``: standard deviation of the test loss over runs, mean over interior k;
        ``correlation``: Spearman's of two runs' orders, mean over pairs.
    """
    loss = data.loss.sel(split="test")
    growth = mean_growth(loss)
    rows = {}
    for order in data.order.values.tolist():
        difference, low, high = [np.nan] * 3
        if order != "random":
            paired = mean_difference(growth.sel(order=order), growth.sel(order="random"))
            difference, (low, high) = paired.value, paired.interval()
        rows[order] = {
            "growth": float(growth.sel(order=order).mean()),
            "difference": difference,
            "low": low,
            "high": high,
            "spread": float(loss.sel(order=order).isel(k=slice(1, -1)).std("run").mean()),
            "correlation": _correlation(data, order),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def show(comparison: pd.DataFrame):
    """The table of :func:`compare` for a reader."""
    table = comparison.rename(index=NAMES)
    low, high = table.pop("low"), table.pop("high")
    table.insert(2, "95 % interval", [_interval(*each) for each in zip(low, high, strict=True)])
    table.columns = [
        "growth of test loss",
        "against random",
        "95 % interval",
        "spread over runs",
        "rank correlation of runs",
    ]
    numbers = [column for column in table.columns if column != "95 % interval"]
    return styled(table).format("{:.3g}", subset=numbers, na_rep="")


def numbers(data: xr.Dataset, prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """Names and values for the prose of a chapter, each name after ``prefix``."""
    table = compare(data)
    for order, row in table.iterrows():
        for column, value in row.items():
            yield f"{prefix}{column}_{order}", float(value)
    yield f"{prefix}reading", _reading(table.loc["covariance"])
    loss = data.loss.sel(split="test", order="random").mean("run")
    yield f"{prefix}loss_first", float(loss[0])
    yield f"{prefix}loss_last", float(loss[-1])
    for order in ("covariance", "random"):
        near = share_near_one(data.ranks.sel(order=order).values, data.k.values)
        yield f"{prefix}near_one_{order}", near.value
    yield f"{prefix}dead", float((data.variance == 0).mean())


def _reading(row: pd.Series) -> str:
    if row.high < 0:
        return "more slowly than"
    return "faster than" if row.low > 0 else _UNDECIDED


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"{low:.3g} to {high:.3g}"


def sensitivity(varied: Iterable[tuple[str, str, object, xr.Dataset]]) -> pd.DataFrame:
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
        row = {"experiment": experiment, "setting": setting, "value": str(value)}
        for name, order in (("random", "random"), ("within", "random_within_tensors")):
            ratio = growth_ratio(data, "covariance", order)
            if ratio is not None:
                row[name] = ratio.value
                row[f"{name}_low"], row[f"{name}_high"] = ratio.interval()
        row["correlation"] = _correlation(data, "covariance")
        rows.append(row)
    return pd.DataFrame(rows)


def verdicts(ledger: Claims, rows: Sequence[Row]) -> Styler:
    """One row a claim, one column for each level and t0; cells count verdicts where they differ."""
    found = {}
    for row in rows:
        level, _, t0, *_ = row.case.split("/")
        found.setdefault((row.id, f"{level}, {t0}"), []).append(row.verdict)
    columns = list(dict.fromkeys(column for _, column in found))
    table = {
        claim.id: {"claim": claim.claim, "where": claim.where}
        | {column: _count(found.get((claim.id, column), [])) for column in columns}
        for claim in ledger.claims
    }
    frame = pd.DataFrame.from_dict(table, orient="index")
    return styled(frame).set_properties(**{"text-align": "left"})


def cases(rows: Sequence[Row]) -> Styler:
    """One row a verdict, with what it rests on."""
    frame = pd.DataFrame(
        {
            "claim": row.id,
            "case": row.case.replace("/", ", "),
            "estimate": row.estimate,
            "95 % interval": f"{row.low:.3g} to {row.high:.3g}",
            "unit": row.unit,
            "claimed": _region(row.region),
            "p": row.p_adjusted,
            "smallest effect": row.smallest_effect,
            "verdict": row.verdict,
        }
        for row in rows
    )
    return styled(frame).format("{:.3g}", subset=["estimate", "p", "smallest effect"]).hide()


def _count(found: Sequence[str]) -> str:
    if len(set(found)) < 2:
        return "".join(set(found))
    return ", ".join(f"{verdict} {number}" for verdict, number in Counter(found).most_common())


def _region(region: Region) -> str:
    low, high = region
    if low == -np.inf:
        return f"below {high:g}"
    return f"above {low:g}" if high == np.inf else f"{low:g} to {high:g}"


def correlations(table: pd.DataFrame) -> Styler:
    """The rank correlations of :func:`sensitivity`, one row for each setting and value."""
    settings = list(dict.fromkeys(table.setting))
    places = dict.fromkeys(zip(table.setting, table.value, strict=True))
    places = sorted(places, key=lambda place: settings.index(place[0]))
    wide = table.pivot(index=["setting", "value"], columns="experiment", values="correlation")
    wide = wide.reindex(places)[list(table.experiment.unique())]
    return styled(wide).format(_two_digits, na_rep="")


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
    return styled(frame).hide()


def growth_table(compared: Mapping[str, xr.Dataset], versus: str = "random") -> Styler:
    """Growth of the test loss as a ratio to another order's, with 95 % intervals over runs.

    One row an order, one column a data set; the smallest ratio of a column is bold, and so is
    every other whose interval of the paired difference to it contains 0.
    """
    table, best = {}, {}
    for name, data in compared.items():
        growth = mean_growth(data.loss.sel(split="test"))
        lowest = str(
            growth.mean("run").drop_sel(order="oracle", errors="ignore").idxmin("order").item()
        )
        for order in data.order.values.tolist():
            table.setdefault(order, {})[name] = ratio(data, order, versus)
            difference = mean_difference(growth.sel(order=order), growth.sel(order=lowest))
            low, high = difference.interval()
            decided = table[order][name] != _NO_RATIO
            best[order, name] = decided and (order == lowest or low <= 0 <= high)
    frame = pd.DataFrame.from_dict(table, orient="index").fillna("")
    bold = pd.DataFrame(
        [["font-weight: bold" if best.get((o, n)) else "" for n in frame] for o in frame.index],
        frame.index,
        frame.columns,
    )
    table = styled(frame).apply(lambda _: bold, axis=None).format(_interval_below)
    return table.format_index(lambda order: NAMES.get(order, order))


def freezable_table(compared: Mapping[str, xr.Dataset], orders: Sequence[str]) -> Styler:
    """Share of parameters that can be frozen for a growth of the test loss by 1, 5 and 10 %.

    With 95 % intervals over runs; the row "free" is the share whose gradient never varied.
    """
    columns = {}
    for name, data in compared.items():
        for tolerance in (0.01, 0.05, 0.1):
            column = columns.setdefault((name, f"{tolerance:.0%}"), {})
            for order in orders:
                estimate = freezable(data.loss.sel(split="test", order=order), tolerance)
                low, high = estimate.interval()
                column[NAMES[order]] = (
                    f"{estimate.value:.0%} ({max(low, 0):.0%}–{min(high, 1):.0%})"
                )
            column["free"] = f"{float((data.variance == 0).mean()):.0%}"
    return styled(pd.DataFrame(columns).T).format(_interval_below)


def stability_table(compared: Mapping[str, xr.Dataset]) -> Styler:
    """Rank correlation between runs, one row an order, one column a data set."""
    columns = {
        name: {NAMES[order]: _correlation(data, order) for order in data.order.values.tolist()}
        for name, data in compared.items()
    }
    return styled(pd.DataFrame(columns)).format(_two_digits, na_rep="")


def extras() -> Styler:
    """What each score needs beyond training with Adam, and its source, as its docstring says."""
    rows = {}
    for name, score in SCORES.items():
        text = re.sub(r":func:`(\w+)`", lambda other: NAMES[other[1]], inspect.getdoc(score))
        text = " ".join(text.replace("``", "").split())
        extra, _, source = text.partition("Extra: ")[2].partition("Source: ")
        rows[NAMES[name]] = {"extra memory and time": extra.strip(), "source": source.strip()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return styled(table).set_properties(**{"text-align": "left"})


def ratio(data: xr.Dataset, order: str, versus: str) -> str:
    """Growth of the test loss in one order as a ratio to that in another, with its interval."""
    found = growth_ratio(data, order, versus)
    if found is None:
        return _NO_RATIO
    low, high = found.interval()
    return f"{found.value:.2f} ({low:.2f}–{high:.2f})"


def _two_digits(value: float) -> str:
    return f"{round(value, 2) + 0:.2f}"  # + 0 makes 0 of -0


def _interval_below(estimate: str) -> str:
    """An estimate and its interval on two lines of HTML, each in one piece."""
    return f'<span style="white-space: nowrap">{estimate.replace(" (", "<br>(")}</span>'


def _correlation(data: xr.Dataset, order: str) -> float:
    """Spearman's correlation of one order between two runs, mean over pairs."""
    return stability(rank_correlations(data.ranks.sel(order=order).values)).value
