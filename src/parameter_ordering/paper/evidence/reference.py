r"""The book's numbers held against reference values that are committed, ``chapters/reference.csv``.

For each case of the book - an experiment at one t0, with its kind of runs - the file has the mean
over runs of the loss, by order, split and k, with its standard error. The figures draw these.

**What is exact.** One machine, backend and torch give the same bits again, whatever runs beside:
all randomness comes from seeds by run, a shard of runs is trained on one thread, and which runs
are in a shard is a setting. What another processor, BLAS, torch or device rounds otherwise differs
in the last bits; training amplifies that until single runs part, and an order may change where
variances nearly tie. So results are compared as means over runs, on the scale of their spread.

**How far a mean may move.** The unit is :math:`\sqrt 2\,\mathrm{SE}`, by which the means of two
independent sets of runs differ. A value is as it was when

.. math:: |\text{mean} - \text{reference}| \le \tfrac14 \sqrt 2\,\mathrm{SE} + f

with f the share 1e-5 of the largest mean of the case, for rounding where runs do not differ. Torch
and MKL made to run code for older processors moved means by up to 0.003 units at the early t0
(Synthetic 1, Boston, MNIST) and 0.013 at t0 = 10000 (Boston): a twentieth of what is allowed. Runs
with other seeds move about one unit, so among thousands of values they do not pass, nor does a
change that shifts the mean by more than 0.07 standard deviations of single runs.
"""

from math import sqrt
from pathlib import Path

import pandas as pd
import xarray as xr

from parameter_ordering.paper.store.files import replacing

UNITS = 0.25
FLOOR = 1e-5
WHERE = ["case", "order", "split", "k"]
Cases = dict[str, xr.Dataset]


def table(cases: Cases) -> pd.DataFrame:
    """Mean over runs of the loss and its standard error, by case, order, split and k.

    >>> loss = xr.DataArray([[[[1.0], [3.0]]]], dims=["split", "order", "run", "k"])
    >>> data = xr.Dataset({"loss": loss}, {"split": ["test"], "order": ["random"], "k": [0]})
    >>> table({"made up": data}).loc["made up", "random", "test", 0].tolist()
    [2.0, 1.0]
    """
    frames = []
    for case, data in cases.items():
        loss = data["loss"].astype(float).transpose("order", "split", "k", "run")
        error = loss.std("run", ddof=1) / sqrt(loss.sizes["run"])
        values = xr.Dataset({"mean": loss.mean("run"), "standard_error": error})
        frame = values.to_dataframe().reset_index()
        frames.append(frame.assign(case=case, k=frame["k"].astype(float).round(6)))
    return pd.concat(frames).set_index(WHERE)[["mean", "standard_error"]]


def moved(reference: pd.DataFrame, now: pd.DataFrame) -> list[str]:
    """What is not as in the reference, a line for each value that moved, is gone or is new."""
    both = reference.add_suffix("_reference").join(now, how="outer")
    largest = both["mean_reference"].abs().groupby("case").transform("max")
    allowed = UNITS * sqrt(2) * both["standard_error_reference"] + FLOOR * largest
    # Written so that NaN, on either side, is no agreement.
    agree = (both["mean"] - both["mean_reference"]).abs() <= allowed
    lines = []
    for where, row in both[~agree].iterrows():
        place = "{}: order {}, {} loss at k = {:g}".format(*where)
        lines.append(
            f"{place} is {row['mean']:.6g}, the reference {row['mean_reference']:.6g} "
            f"with standard error {row['standard_error_reference']:.2g}"
        )
    return lines


def problems(reference: Path, cases: Cases) -> list[str]:
    """What the file of reference values says against these results, a line each."""
    if not reference.is_file():
        return [f"there is no {reference.name}: look at the results, then run make accept"]
    return moved(pd.read_csv(reference).set_index(WHERE), table(cases))


def accept(reference: Path, cases: Cases) -> None:
    """Take these results as the reference."""
    with replacing(reference) as part:
        table(cases).to_csv(part, float_format="%.7g")
