"""The choices that the paper leaves open, and what a reasonable author could have taken.

A *world* is one value of every choice. Its number alone gives it: it is that point of a scrambled
Sobol sequence, so that worlds fill the space evenly and more of them can be added to those that are
there. All data sets of a world share its choices, since one author makes them. Ranges and reasons
were written down before any of the worlds was run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import qmc

from parameter_ordering.paper import experiments
from parameter_ordering.paper.experiments.experiment import Experiment

DataSet = Literal["synthetic_1", "boston_housing", "synthetic_3", "mnist", "synthetic_2"]
DATA_SETS: tuple[DataSet, ...] = (
    "synthetic_1",
    "boston_housing",
    "synthetic_3",
    "mnist",
    "synthetic_2",
)
RUNS = 4
GRID = 5  # so k is at a quarter, a half and three quarters of p
READINGS = ("covariance", "all_samples", "first_not_centred", "not_cleared")
ORDERS = (*READINGS, "random", "covariance_descending")
SEED = 1_000_000  # of world 0; the book's own runs and all trials have other seeds
CONFIRMED = 2_000_000  # of world 0 where it is run again
_SCRAMBLE = 2020  # the year of the paper
SGD_RANGE = 10.0  # SGD's learning rates are so many times Adam's


@dataclass(frozen=True)
class Choice:
    """One open choice.

    Attributes:
        name: the setting of :class:`Experiment`.
        values: those that are taken, one as often as another; one that stands twice, twice.
        low, high: or the ends of a range in which the logarithm is uniform.
        by_data: or these ends by data set.
        integer: whether the value is rounded.
        only: the data sets that have this setting; all if empty.
        why: the reason for the range.
    """

    name: str
    why: str
    values: tuple[object, ...] = ()
    low: float = 0.0
    high: float = 0.0
    by_data: tuple[tuple[str, float, float], ...] = ()
    integer: bool = False
    only: tuple[str, ...] = ()

    def at(self, u: float, data_set: str) -> Any:
        """The value at u in [0, 1)."""
        if self.values:
            return self.values[int(u * len(self.values))]
        low, high = self.ends(data_set)
        value = low * (high / low) ** u
        return round(value) if self.integer else float(f"{value:.3g}")

    def ends(self, data_set: str) -> tuple[float, float]:
        """The ends of the range for one data set."""
        ends = {name: (low, high) for name, low, high in self.by_data}
        return ends.get(data_set, (self.low, self.high))


CHOICES = (
    Choice(
        "optimizer",
        "The paper puts (2.6) into Adam, but writes (2.5) for any gradient method: one world in "
        "four has SGD with a momentum of 0.9.",
        values=("adam", "adam", "adam", "sgd"),
    ),
    Choice(
        "lr",
        "Adam's own paper and torch take 0.001. Half of it to twenty times it for Adam, as "
        "trainings are short here; ten times as much for SGD, around the 0.01 of torch's example "
        "for MNIST.",
        low=5e-4,
        high=2e-2,
    ),
    Choice(
        "S",
        "Powers of two around the 32 and 64 of tutorials of those years; fewer are as noisy as "
        "one object, and more than 128 cost too much here.",
        values=(8, 16, 32, 64, 128),
    ),
    Choice(
        "t0",
        "The paper sets it by hand for each data set. From where a training has hardly begun to "
        "where, at most learning rates, its curve is flat; later ones cost too much here.",
        by_data=(
            ("synthetic_1", 20, 640),
            ("boston_housing", 15, 600),
            ("synthetic_3", 50, 1200),
            ("mnist", 10, 320),
            ("synthetic_2", 25, 800),
        ),
        integer=True,
    ),
    Choice(
        "iterations",
        "Of training after the freeze: the paper says nothing of it. About as many as before a "
        "late freeze; the protocol's are more, and cost too much here.",
        by_data=(
            ("synthetic_1", 120, 400),
            ("boston_housing", 150, 500),
            ("synthetic_3", 250, 750),
            ("mnist", 50, 160),
            ("synthetic_2", 150, 500),
        ),
        integer=True,
    ),
    Choice(
        "objects",
        "In each half of the synthetic data; round numbers of that time, our guess. The protocol "
        "has 10,000 and, for Synthetic 3, 20,000, which costs too much here.",
        low=1000,
        high=10_000,
        integer=True,
        only=("synthetic_1", "synthetic_3", "synthetic_2"),
    ),
    Choice(
        "noise",
        "The variance of a scalar y is printed as I_n. Its value 1; its trace, n = 200, as if a "
        "vector were drawn and added up; 0.01, a deviation of 0.1, our guess.",
        values=(1.0, 1.0, 200.0, 0.01),
        only=("synthetic_1", "synthetic_3"),
    ),
    Choice(
        "probability",
        "Be(w^T x) is printed, which is no probability: its sigmoid, or clipped to 0 and 1.",
        values=("sigmoid", "clipped"),
        only=("synthetic_2",),
    ),
    Choice(
        "initial_weights",
        "torch's default, uniform; Xavier's, the default of Keras; He's for ReLU; and N(0, 0.01), "
        "as tutorials for TensorFlow had it.",
        values=("torch", "torch", "xavier uniform", "kaiming normal", "normal"),
    ),
    Choice(
        "shared_weights",
        "Independent runs may start from weights of their own, or from one seed.",
        values=(False, True),
    ),
    Choice(
        "minibatches",
        "torch's DataLoader gives shuffled epochs if asked to and the order of the file if not; an "
        "own loop often draws with replacement.",
        values=("epochs", "replacement", "fixed order"),
    ),
    Choice(
        "fresh_optimizer",
        "The state of the optimizer is carried over t0, or a new optimizer is made there.",
        values=(False, True),
    ),
    Choice(
        "standardized",
        "Features of real data; the paper says nothing. torch's example for MNIST standardizes, "
        "Boston Housing as scikit-learn gave it is not.",
        values=(True, False),
        only=("boston_housing", "mnist"),
    ),
    Choice(
        "kappa",
        "1 / t is printed, and makes the random C_0 useless; 1 / (t + 1) is it counted from 0; "
        "0.01, a fixed window, our guess.",
        values=("1/t", "1/t", "1/(t+1)", "0.01"),
    ),
)


def world(number: int) -> np.ndarray:
    """The point of a world, one coordinate in [0, 1) for each choice.

    Raises:
        ValueError: for a number below 0.

    >>> world(37).shape
    (14,)
    """
    if number < 0:
        raise ValueError(f"worlds are counted from 0, got {number}")
    sobol = qmc.Sobol(len(CHOICES), scramble=True, rng=_SCRAMBLE)
    if number:
        sobol.fast_forward(number)
    return sobol.random(1)[0]


def chosen(number: int, data_set: str) -> dict[str, Any]:
    """What a world takes on a data set, by setting."""
    point = dict(zip(CHOICES, world(number), strict=True))
    values = {
        choice.name: choice.at(u, data_set)
        for choice, u in point.items()
        if not choice.only or data_set in choice.only
    }
    if values["optimizer"] == "sgd":
        values["lr"] *= SGD_RANGE
    return values


def experiment(number: int, data_set: str, length: float = 1.0, **other: Any) -> Experiment:
    """The experiment of a world on a data set.

    Args:
        number: of the world.
        data_set: one of ``DATA_SETS``.
        length: the share of its iterations that is run.
        other: settings in place of the world's, such as runs and seeds.
    """
    seed, settings = SEED + number, chosen(number, data_set)
    common = {"runs": RUNS, "grid": GRID, "orders": ORDERS, "seed": seed, "data_seed": seed}
    for name in ("t0", "iterations"):
        settings[name] = max(2, round(length * settings[name]))
    return getattr(experiments, data_set)(**(common | settings | other))


def choices(worlds: int, data_set: str) -> pd.DataFrame:
    """What the first worlds take on a data set: a row a world, a column a choice.

    The columns depend on each other nowhere: ``lr`` is Adam's, also where ``SGD_RANGE`` times it is
    taken by SGD.
    """
    rows = [chosen(number, data_set) for number in range(worlds)]
    table = pd.DataFrame(rows, index=pd.RangeIndex(worlds, name="world"))
    return table.assign(lr=table.lr.where(table.optimizer == "adam", table.lr / SGD_RANGE))


def described(names: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Every choice with its range and the reason.

    Args:
        names: of the data sets for a reader; without them, their own.
    """
    shown = names or {name: name for name in DATA_SETS}
    rows = []
    for choice in CHOICES:
        ends = [f"{shown[name]}: {low:g} to {high:g}" for name, low, high in choice.by_data]
        if choice.values:
            ends = [", ".join(map(str, dict.fromkeys(choice.values)))]
        elif not ends:
            ends = [f"{choice.low:g} to {choice.high:g}"]
        rows.append({"setting": choice.name, "range": "; ".join(ends), "why": choice.why})
    return pd.DataFrame(rows)
