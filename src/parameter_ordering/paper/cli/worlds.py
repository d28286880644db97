"""``parameter-ordering worlds`` and ``world``: many choices at once, and one of them again."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pandas as pd
import xarray as xr
from cyclopts import App

from parameter_ordering.paper.cli.run import How
from parameter_ordering.paper.evidence import worlds as evidence
from parameter_ordering.paper.experiments import space
from parameter_ordering.paper.experiments.worlds import World, Worlds
from parameter_ordering.paper.store.results import Store, results

worlds = App(name="worlds", help="Run worlds, and say in how many the paper's claims hold.")
world = App(name="world", help="Run one world again, on seeds of its own.")
_HERE = How()


@worlds.default
def _worlds(*, number: int = 64, how: How = _HERE) -> int:
    """Run the first worlds on all data sets, and say in how many the paper's claims hold.

    What is there is not run again: 1024 worlds go on from 64, and what was interrupted goes on.

    Args:
        number: how many worlds.
    """
    return _told(lambda store, **options: _shares(store, number, options), how)


@world.default
def _world(number: int, *, runs: int = 25, how: How = _HERE) -> int:
    """Run one world again, on seeds that no other run has, and say what it had chosen.

    Args:
        number: which world.
        runs: how many runs.
    """
    return _told(lambda store, **options: _again(store, number, runs, options), how)


def _told(compute: Callable[..., pd.DataFrame], how: How) -> int:
    options = asdict(how)
    try:
        print(compute(Store(options.pop("out")), **options).to_string(index=False))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"parameter-ordering: {error}", file=sys.stderr)
        return 1
    return 0


def _shares(store: Store, number: int, options: dict[str, Any]) -> pd.DataFrame:
    found: dict[str, xr.Dataset] = {
        name: results(Worlds(data_set=name, worlds=number), store=store, **options)
        for name in space.DATA_SETS
    }
    return evidence.shares(evidence.effects(found, space.READINGS)).round(3)


def _again(store: Store, number: int, runs: int, options: dict[str, Any]) -> pd.DataFrame:
    again = [World(data_set=name, world=number, runs=runs) for name in space.DATA_SETS]
    found: dict[str, xr.Dataset] = {
        each.data_set: results(each, store=store, **options) for each in again
    }
    rows = evidence.effects(found, [evidence.PAPER])
    for column in ("contrast", "low", "high"):
        rows[column.replace("contrast", "ratio")] = evidence.ratio_of(rows[column]).round(3)
    for name in space.DATA_SETS:
        chosen = space.chosen(number, name).items()
        print(f"{name}: {', '.join(f'{setting} {value}' for setting, value in chosen)}")
    claims = evidence.GROWTH
    rows["the paper says"] = [claims[name].text if name in claims else "" for name in rows.data_set]
    return rows[["data_set", "left", "ratio", "low", "high", "the paper says"]].round(3)
