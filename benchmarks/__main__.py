"""``python -m benchmarks [NAME ...] [--quick]``: measures, prints, and keeps a record of each."""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from parameter_ordering.paper.store.origin import origin

FOLDER = Path(__file__).parent
NAMES = (
    "engine",
    "second_phase",
    "covariance",
    "followed",
    "masked_adam",
    "selection",
    "training_cost",
    "build",
)
VERSIONS = ("torch", "numpy", "jax", "optax", "backpack-for-pytorch")


def main() -> None:
    """Run the benchmarks that are asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="few rounds, no record")
    given = parser.parse_args()
    for name in given.names:
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}; there are {', '.join(NAMES)}")
    facts = origin()  # before the first record changes the checkout
    for name in given.names or NAMES:
        run = import_module(f"benchmarks.{name}").run
        # In a process of its own: memory that an earlier one has freed would count for nothing.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows = process.submit(run, quick=given.quick).result()
        print(f"\n{name}\n{pd.DataFrame(rows).to_string(index=False)}", flush=True)
        if not given.quick:
            _keep(name, facts, rows)


def _keep(name: str, facts: dict, rows: list[dict]) -> None:
    record = {
        **facts,
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "versions": {package: version(package) for package in VERSIONS},
        "rows": rows,
    }
    path = FOLDER / "records" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
