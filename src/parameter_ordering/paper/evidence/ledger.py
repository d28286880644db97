"""The claims ledger: each claim judged from results, and held against what was committed.

One row is one claim on one experiment, at one t0 and, where it is about the loss, on one part of
the data. P-values are corrected for all rows together by Holm's step-down, and the rule of
:mod:`parameter_ordering.paper.evidence.verdict` makes a verdict of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path

import xarray as xr

from parameter_ordering.paper.evidence.claims import OPTIONAL, Claim, Claims, Region
from parameter_ordering.paper.evidence.metrics import METRICS
from parameter_ordering.paper.evidence.verdict import (
    CANNOT,
    evidence,
    holm,
    smallest_effect,
    verdict,
)
from parameter_ordering.paper.store.strict_yaml import load_yaml, write_yaml

Results = Mapping[tuple[str, str], xr.Dataset]


@dataclass(frozen=True)
class Row:
    """A claim, judged.

    Attributes:
        id: of the claim.
        case: level, experiment, stage and, if any, split, joined by a slash.
        unit: of the quantity.
        region: where the claim says that the quantity lies.
        verdict: "supported", "not supported", "inconclusive" or "cannot be judged".
        why: it cannot be judged; then there are no numbers.
        estimate, low, high: the quantity with its 95 % interval, not corrected for other rows.
        p: the smallest alpha that decides this row alone.
        p_adjusted: the same among all rows.
        smallest_effect: distance from the threshold that these runs see with 80 % power, were this
            row the strictest of Holm's; for a ratio of variances or of ratios, of its logarithm.
    """

    id: str
    case: str
    unit: str
    region: Region
    verdict: str
    why: str = ""
    estimate: float = nan
    low: float = nan
    high: float = nan
    p: float = nan
    p_adjusted: float = nan
    smallest_effect: float = nan


def judge(ledger: Claims, results: Results, level: str = "one data set") -> list[Row]:
    """Judge all claims that are made at a level.

    Args:
        ledger: of :func:`parameter_ordering.paper.evidence.claims.load_claims`.
        results: of the experiments, by name and stage, "early" or "late".
        level: "one data set" or "new data".

    Raises:
        ValueError: a claim that its metric cannot judge, or results that are missing, with fewer
            runs than a verdict needs, or without an order; all of them are named at once.
    """
    problems = [problem for claim in ledger.claims for problem in _misfits(claim)]
    cases = [case for claim in ledger.claims if level in claim.levels for case in _cases(claim)]
    for claim, experiment, t0, _ in cases:
        problems += _gaps(claim, experiment, t0, results, ledger.runs)
    if problems:
        raise ValueError("no verdicts:\n" + "\n".join(dict.fromkeys(problems)))
    rows, quantities = [], {}
    for place, (claim, experiment, t0, split) in enumerate(cases):
        data = results[experiment, t0]
        data = data if split is None else data.sel(split=split)
        quantity, unit, why = METRICS[claim.metric].measure(data, claim)
        case = "/".join(filter(None, (level, experiment, t0, split)))
        rows.append(Row(claim.id, case, unit, claim.region, CANNOT, why))
        if quantity is not None:
            quantities[place] = quantity
    proofs = {place: evidence(each, *rows[place].region) for place, each in quantities.items()}
    adjusted = holm([proof.p for proof in proofs.values()])
    for (place, proof), p in zip(proofs.items(), adjusted, strict=True):
        each = quantities[place]
        low, high = each.interval(0.95)
        alpha = ledger.alpha / len(proofs)
        rows[place] = replace(
            rows[place],
            verdict=verdict(p, proof.inside, ledger.alpha),
            estimate=each.value,
            low=low,
            high=high,
            p=proof.p,
            p_adjusted=float(p),
            smallest_effect=smallest_effect(each.standard_error, each.df, alpha),
        )
    return rows


def commit(rows: Sequence[Row], path: Path) -> None:
    """Write verdicts and estimates to the file that later runs are held against."""
    verdicts: dict[str, dict] = {}
    for row in rows:
        estimate = None if isnan(row.estimate) else float(f"{row.estimate:.4g}")
        entry = {"verdict": row.verdict, "estimate": estimate, "unit": row.unit}
        verdicts.setdefault(row.id, {})[row.case] = entry
    write_yaml(path, verdicts)


def drift(ledger: Claims, rows: Sequence[Row], path: Path) -> list[str]:
    """What contradicts the committed verdicts, one line each; nothing if all is as it was.

    A verdict that changed while the estimate moved by no more than the claim's margin does not
    count: it lay on the edge of its threshold. Nor does an estimate that moved under the same
    verdict.
    """
    margins = {claim.id: claim.margin for claim in ledger.claims}
    committed = {
        (name, case): entry
        for name, entries in load_yaml(path).items()
        for case, entry in entries.items()
    }
    lines = []
    for row in rows:
        entry = committed.pop((row.id, row.case), None)
        if entry is None:
            lines.append(f"{row.id}, {row.case}: {row.verdict}, and nothing is committed")
        elif row.verdict != entry["verdict"] and not (
            row.unit == entry["unit"]
            and entry["estimate"] is not None
            and abs(row.estimate - entry["estimate"]) <= margins[row.id]
        ):
            lines.append(
                f"{row.id}, {row.case}: {row.verdict} at {row.estimate:.4g} {row.unit}, committed "
                f"is {entry['verdict']} at {entry['estimate']} {entry['unit']}"
            )
    return lines + [f"{name}, {case}: committed, and not judged" for name, case in committed]


def _cases(claim: Claim) -> Iterator[tuple[Claim, str, str, str | None]]:
    for experiment in claim.experiments:
        for t0 in claim.t0:
            splits: Sequence[str | None] = claim.splits or [None]
            for split in splits:
                yield claim, experiment, t0, split


def _misfits(claim: Claim) -> Iterator[str]:
    """What in a claim does not fit its metric."""
    if claim.metric not in METRICS:
        yield f"{claim.id}: unknown metric {claim.metric!r}; known are {', '.join(METRICS)}"
        return
    metric = METRICS[claim.metric]
    has = {name for name in OPTIONAL if getattr(claim, name) is not None}
    for name in sorted(metric.needs - has):
        yield f"{claim.id}: the metric {claim.metric} needs the field {name!r}"
    for name in sorted(has - metric.needs - metric.takes):
        yield f"{claim.id}: the metric {claim.metric} has no use for the field {name!r}"
    test = f"TOST, {metric.test}" if claim.direction == "within" else metric.test
    if claim.test != test:
        yield f"{claim.id}: the test is {test!r}, not {claim.test!r}"


def _gaps(claim: Claim, experiment: str, t0: str, results: Results, runs: int) -> Iterator[str]:
    """What a claim misses in the results."""
    data = results.get((experiment, t0))
    if data is None:
        yield f"{claim.id}: there are no results of {experiment} at t0 {t0!r}"
        return
    if data.sizes["run"] < runs:
        yield f"{claim.id}: {experiment} at t0 {t0!r} has {data.sizes['run']} runs of {runs}"
    known = {*data.variables, *(data.order.values.tolist() if "order" in data else ())}
    for order in filter(None, (claim.order, claim.versus)):
        if order not in known:
            yield f"{claim.id}: {experiment} at t0 {t0!r} has no order {order!r}"
