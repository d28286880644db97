"""The claims of the paper, as ``chapters/claims.yml`` states them before the runs that judge them.

What was found is not in that file, so its history shows when each threshold was set.
"""

from collections import Counter
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from parameter_ordering.paper.store.strict_yaml import load_yaml

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


def _distinct(items: list) -> list:
    for item, count in Counter(items).items():
        if count > 1:
            raise ValueError(f"{item!r} stands twice")
    return items


T = TypeVar("T")
Some = Annotated[list[T], Field(min_length=1), AfterValidator(_distinct)]


class Region(NamedTuple):
    """Where a claim says that its quantity lies: above ``low`` and below ``high``."""

    low: float
    high: float


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Claim(_Checked):
    """One claim, and how it is judged.

    Attributes:
        id: its name.
        kind: "claim"; "assumption", which the paper makes and does not test; or "control", ours, so
            that a claim can be read one way only.
        claim: the paper's words, in English; of a control, what it asks.
        where: in the paper.
        experiments: that judge it, each by itself.
        t0: "early", "late", or both: :mod:`parameter_ordering.paper.evidence.stage`.
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
        tolerance: share of its way that a parameter may be from the end of it.
        share: of frozen parameters, k / p.
    """

    id: Text
    kind: Literal["claim", "assumption", "control"]
    claim: Text
    where: Text
    experiments: Some[Text]
    t0: Some[Literal["early", "late"]]
    levels: Some[Literal["one data set", "new data"]]
    metric: Text
    direction: Literal["less", "greater", "within"]
    threshold: float | Annotated[list[float], Field(min_length=2, max_length=2)]
    why: Text
    test: Text
    margin: Annotated[float, Field(ge=0)]
    order: Text | None = None
    versus: Text | None = None
    splits: Some[Literal["train", "test"]] | None = None
    tolerance: Share | None = None
    share: Share | None = None

    @model_validator(mode="after")
    def _something_is_claimed(self) -> "Claim":
        if isinstance(self.threshold, list) != (self.direction == "within"):
            raise ValueError(f"threshold {self.threshold} does not fit {self.direction!r}")
        if not self.region.low < self.region.high:
            raise ValueError(f"nothing lies within {self.threshold}")
        return self

    @property
    def region(self) -> Region:
        """Where the claim says that its quantity lies."""
        if isinstance(self.threshold, list):
            return Region(*self.threshold)
        if self.direction == "less":
            return Region(-inf, self.threshold)
        return Region(self.threshold, inf)


OPTIONAL = tuple(name for name, each in Claim.model_fields.items() if not each.is_required())


class Claims(_Checked):
    """All claims, and what they share.

    Attributes:
        runs: how many a verdict needs.
        alpha: the chance that any verdict among all of one level is wrong.
        claims: in the order of the file.
    """

    runs: Annotated[int, Field(ge=3)]
    alpha: Share
    claims: Annotated[list[Claim], Field(min_length=1)]

    @model_validator(mode="after")
    def _ids_are_distinct(self) -> "Claims":
        _distinct([claim.id for claim in self.claims])
        return self


def load_claims(path: Path) -> Claims:
    """Read and check the file of claims.

    Raises:
        ValueError: for a field that is missing, unknown, of a wrong type or said twice; the place
            in the file is named.
    """
    contents = load_yaml(path)
    try:
        return Claims.model_validate(contents)
    except ValidationError as error:
        found = error.errors()[0]
        place, value = _place(contents, found["loc"]), found["input"]
        given = "" if isinstance(value, dict | list) else f", got {value!r}"
        raise ValueError(f"{path}, {place}: {found['msg']}{given}") from None


def _place(contents: dict, steps: Sequence[int | str]) -> str:
    """``claim mnist-growth, t0`` for the steps ("claims", 7, "t0", 0)."""
    if len(steps) > 1:
        number = int(steps[1])
        claim = contents["claims"][number]
        name = claim.get("id", number + 1) if isinstance(claim, dict) else number + 1
        return ", ".join([f"claim {name}", *map(str, steps[2:3])])
    return str(steps[0]) if steps else "top level"
