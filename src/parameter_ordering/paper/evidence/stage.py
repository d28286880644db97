r"""The stage of a training at which parameters are frozen: how much is still to be gained then.

An iteration is no measure of it. After 500 iterations one data set has all of its training before
it, and another has it behind. So the stage is the *share left*,

.. math:: s(t) = \frac{L(t) - \min_u L(u)}{L(0) - \min_u L(u)},

with L the test loss of a training in which nothing is frozen, averaged over runs, and u any
iteration up to the end of the learning curve. It is 1 at the start and 0 where the loss is lowest.

Two stages are common to all data sets. They were fixed before the runs that are judged at them.

``EARLY``, two thirds left.
    The only stage that can be read off the paper: its figure 3 reaches a loss of about 400 where
    all is frozen, which is the loss at t0; a network that has learnt nothing has about 590.
``LATE``, one hundredth left.
    The paper's text: quality hardly changes after t0. A hundredth of all that is gained is the
    width of a line in a figure of the learning curve.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr

from parameter_ordering.paper.evidence.growth import growth_ratio
from parameter_ordering.paper.evidence.statistics import Ratio

EARLY, LATE = 2 / 3, 0.01
STAGES = (0.9, EARLY, 0.4, 0.2, 0.1, 0.05, 0.02, LATE)


def share_left(curve: xr.Dataset) -> xr.DataArray:
    """s (iteration) of a learning curve.

    Args:
        curve: of :meth:`Experiment.learning_curve`.

    >>> loss = xr.DataArray([[[9.0, 4.0, 1.0]]], dims=["split", "run", "iteration"])
    >>> share_left(xr.Dataset({"loss": loss}, {"split": ["test"]})).values
    array([1.   , 0.375, 0.   ])
    """
    loss = curve.loss.sel(split="test").mean("run")
    lowest = loss.min()
    return (loss - lowest) / (loss.isel(iteration=0) - lowest)


def reached(curve: xr.Dataset, share: float) -> int:
    """The first iteration with no more than this share left, linear between points of the curve.

    Raises:
        ValueError: the share is not between 0 and 1, or nothing was learnt.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share left lies between 0 and 1, got {share}")
    left, t = share_left(curve).values, curve.iteration.values
    if not np.isfinite(left).all():
        raise ValueError("the test loss is lowest before any training: there is nothing to gain")
    after = int(np.argmax(left <= share))
    return int(np.ceil(np.interp(-share, -left[after - 1 : after + 1], t[after - 1 : after + 1])))


class Point(NamedTuple):
    """Growth in the proposed order as a ratio to that in another, at a stage; None: no ratio."""

    left: float
    versus: str
    ratio: Ratio | None


def ratios(data: xr.Dataset, versus: tuple[str, ...]) -> Iterator[Point]:
    """The growth of the test loss at each stage.

    Args:
        data: results with a dimension ``left``, the share left at each freeze.
        versus: orders to compare the proposed one with.
    """
    for left in data.left.values:
        for order in versus:
            yield Point(float(left), order, growth_ratio(data.sel(left=left), "covariance", order))
