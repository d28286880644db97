"""The claims of the paper, as ``chapters/claims.yml`` states them before the runs that judge them.

What was found is not in that file, so its history shows when each threshold was set.
"""

from collections import Counter
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

from jsonschema import Draft202012Validator

from parameter_ordering.paper.store.strict_yaml import load_yaml

_TEXT = {"type": "string", "minLength": 1}
_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}


def _some(items: dict) -> dict:
    return {"type": "array", "items": items, "minItems": 1, "uniqueItems": True}


_CLAIM = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "claim": _TEXT,
        "where": _TEXT,
        "experiments": _some(_TEXT),
        "t0": _some({"enum": ["early", "rule"]}),
        "levels": _some({"enum": ["one data set", "new data"]}),
        "metric": _TEXT,
        "direction": {"enum": ["less", "greater", "within"]},
        "threshold": {},
        "why": _TEXT,
        "test": _TEXT,
        "margin": {"type": "number", "minimum": 0},
        "order": _TEXT,
        "versus": _TEXT,
        "splits": _some({"enum": ["train", "test"]}),
        "tolerance": _SHARE,
        "share": _SHARE,
    },
    "additionalProperties": False,
    "if": {"properties": {"direction": {"const": "within"}}},
    "then": {
        "properties": {
            "threshold": {
                "type": "array",
                "items": {"type": "number"},
                "minItems": 2,
                "maxItems": 2,
            }
        }
    },
    "else": {"properties": {"threshold": {"type": "number"}}},
}
OPTIONAL = ("order", "versus", "splits", "tolerance", "share")
_CLAIM["required"] = [name for name in _CLAIM["properties"] if name not in OPTIONAL]
_FILE = {
    "type": "object",
    "properties": {
        "runs": {"type": "integer", "minimum": 3},
        "alpha": _SHARE,
        "negligible": _SHARE,
        "claims": {"type": "array", "items": _CLAIM, "minItems": 1},
    },
    "required": ["runs", "alpha", "negligible", "claims"],
    "additionalProperties": False,
}


class Region(NamedTuple):
    """Where a claim says that its quantity lies: above ``low`` and below ``high``."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, and how it is judged.

    Attributes:
        id: its name.
        claim: the paper's words, in English.
        where: in the paper.
        experiments: that judge it, each by itself.
        t0: "early", "rule", or both.
        levels: "one data set", as in the paper, where only runs differ; "new data", where data and
            split are drawn anew for each run.
        metric: a key of :data:`parameter_ordering.paper.evidence.metrics.METRICS`.
        direction: "less" or "greater" than the threshold, or "within" two of them.
        threshold: one number, or two.
        why: this threshold.
        test: as metric and direction have it.
        margin: how far the estimate may move while the verdict changes, before the committed
            verdict counts as contradicted; in the unit of the threshold.
        order: that the claim is about.
        versus: the order, or the variable of the results, that it is compared with.
        splits: of the loss, for a metric that looks at it.
        tolerance: relative growth of the loss that counts as not significant.
        share: of frozen parameters, k / p.
    """

    id: str
    claim: str
    where: str
    experiments: list[str]
    t0: list[str]
    levels: list[str]
    metric: str
    direction: str
    threshold: float | list[float]
    why: str
    test: str
    margin: float
    order: str | None = None
    versus: str | None = None
    splits: list[str] | None = None
    tolerance: float | None = None
    share: float | None = None

    @property
    def region(self) -> Region:
        """Where the claim says that its quantity lies."""
        if self.direction == "within":
            return Region(*self.threshold)
        if self.direction == "less":
            return Region(-inf, self.threshold)
        return Region(self.threshold, inf)


@dataclass(frozen=True, kw_only=True)
class Claims:
    """All claims, and what they share.

    Attributes:
        runs: how many a verdict needs.
        alpha: the chance that any verdict among all of one level is wrong.
        negligible: share of the loss at k = 0 below which a difference of growth counts as none.
        claims: in the order of the file.
    """

    runs: int
    alpha: float
    negligible: float
    claims: list[Claim]


def load_claims(path: Path) -> Claims:
    """Read and check the file of claims.

    Raises:
        ValueError: for a field that is missing, unknown, of a wrong type or said twice; the place
            in the file is named.
    """
    contents = load_yaml(path)
    # The deepest error says most: that of a field, not that of the claim that has it.
    errors = Draft202012Validator(_FILE).iter_errors(contents)
    for error in sorted(errors, key=lambda error: -len(error.absolute_path)):
        raise ValueError(f"{path}, {_place(contents, error.absolute_path)}: {error.message}")
    claims = [Claim(**each) for each in contents["claims"]]
    for name, count in Counter(claim.id for claim in claims).items():
        if count > 1:
            raise ValueError(f"{path}: the id {name!r} stands twice")
    for claim in claims:
        if not claim.region.low < claim.region.high:
            raise ValueError(f"{path}, claim {claim.id}: nothing lies within {claim.threshold}")
    return Claims(**contents | {"claims": claims})


def _place(contents: dict, steps) -> str:
    """``claim mnist-growth, t0`` for the steps ["claims", 7, "t0", 0]."""
    steps = list(steps)
    if len(steps) > 1 and steps[0] == "claims":
        claim = contents["claims"][steps[1]]
        name = claim.get("id", steps[1] + 1) if isinstance(claim, dict) else steps[1] + 1
        return ", ".join([f"claim {name}", *(step for step in steps[2:3])])
    return steps[0] if steps else "top level"
