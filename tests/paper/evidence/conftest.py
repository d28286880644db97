"""Made-up results whose truth is known, claims about them, and what a simulated rate can be."""

import json
import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from parameter_ordering.paper.evidence.claims import Claim, Claims
from parameter_ordering.paper.evidence.ledger import judge

RUNS, P = 25, 60
K = np.arange(0, P + 1, 3)
SHARE = K / P


@pytest.fixture
def plausible():
    """Whether so many of n can be, if each has a probability between low and high."""

    def plausible(count, n, low, high):
        return stats.binom.ppf(0.0001, n, low) <= count <= stats.binom.ppf(0.9999, n, high)

    return plausible


@pytest.fixture
def claim():
    """A claim; by default that growth is slower than in random order."""
    return _claim


@pytest.fixture
def ledger():
    """Claims, with what they share."""
    return _ledger


@pytest.fixture
def results():
    """Results of one experiment."""
    return _results


@pytest.fixture
def judge_one():
    """Judges one claim, of the given fields, alone."""

    def judge_one(data, **changes):
        (row,) = judge(_ledger(_claim(**changes)), {("made_up", "early"): data})
        return row

    return judge_one


def _claim(**changes):
    fields = {
        "id": "slower",
        "kind": "claim",
        "claim": "The loss grows more slowly.",
        "where": "figure 1",
        "experiments": ["made_up"],
        "t0": ["early"],
        "levels": ["one data set"],
        "metric": "growth",
        "order": "covariance",
        "versus": "random",
        "splits": ["test"],
        "direction": "less",
        "threshold": 0.95,
        "why": "It shows.",
        "test": "paired t",
        "margin": 0.05,
    }
    fields |= changes
    return Claim(**{name: value for name, value in fields.items() if value is not None})


def _ledger(*every, **changes):
    return Claims(**{"runs": RUNS, "alpha": 0.05, "claims": list(every)} | changes)


def _results(seed=0, ratio=0.5, size=1.0, stable=0.9, start=0.3, shared_weights=False, S=4):
    """One experiment: growth in the given ratio, orders of the given stability.

    Training losses grow as fast in both orders.
    """
    rng = np.random.default_rng(seed)
    orders = {"covariance": ratio, "random": 1.0}
    base, slope = 2 + 0.1 * rng.normal(size=RUNS), 1 + 0.2 * rng.normal(size=RUNS)
    loss = np.empty((2, 2, RUNS, len(K)))
    for o, factor in enumerate(orders.values()):
        for s, each in enumerate((1.0, factor)):
            noise = 0.02 * rng.normal(size=(RUNS, 1))
            loss[s, o] = base[:, None] + size * (each * slope[:, None] + noise) * SHARE**2
    common = rng.normal(size=P)

    def scores(share):
        own = rng.normal(size=(RUNS, P))
        return np.exp(share * common + math.sqrt(1 - share**2) * own)

    variance = scores(stable)
    ranks = np.stack([variance, rng.normal(size=(RUNS, P))]).argsort(2).argsort(2) + 1
    by_run = ("run", "parameter")
    return xr.Dataset(
        {
            "loss": (("split", "order", "run", "k"), loss),
            "ranks": (("order", *by_run), ranks),
            "variance": (by_run, variance),
            "exact_variance": (by_run, variance * rng.uniform(1.2, 1.4, (RUNS, 1))),
            "start_variance": (by_run, scores(start)),
            "w0": (by_run, rng.normal(size=(RUNS, P))),
            "w": (by_run, rng.normal(size=(RUNS, P))),
            "w_true": ("feature", np.exp(common) * rng.choice([-1, 1], P)),
        },
        {
            "split": ["train", "test"],
            "order": list(orders),
            "k": K,
            "tensor": ("parameter", np.repeat("0.weight", P)),
        },
        {"provenance": json.dumps({"settings": {"S": S, "shared_weights": shared_weights}})},
    )
