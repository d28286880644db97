"""``parameter-ordering run``: one experiment without a notebook."""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from parameter_ordering.paper.store.files import replacing

HELP = """\
Run an experiment without a notebook. Results (NetCDF) and figures (PNG) are written to --out, under
names that end in a key of all settings; what is there already is not computed again, nor are shards
of runs that an interrupted call had finished.

  parameter-ordering run boston_housing --runs 100 --t0 500 --out results
  parameter-ordering run boston_housing --runs 100 --backend dask --scheduler tcp://HOST:8786
  parameter-ordering run boston_housing --help     lists the settings, with the book's values
"""


def run(name: str, arguments: Sequence[str]) -> int:
    """Run the experiment, write what it gives, print the files' names; gives the exit status."""
    from parameter_ordering.paper.experiments import table_1  # slow to import
    from parameter_ordering.paper.store.results import Store, results

    classes = (each for each in vars(table_1).values() if isinstance(each, type))
    known = {each.name: each for each in classes if each.__module__ == table_1.__name__}
    if name not in known:
        print(f"there is no experiment {name!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    parser = _parser(known[name])
    options = vars(parser.parse_args(arguments))
    store = Store(options.pop("out"))
    how = {each: options.pop(each) for each in ("jobs", "backend", "scheduler")}
    try:
        experiment = known[name](**options)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    try:
        data = results(experiment, store=store, **how)
    except (ArithmeticError, ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    path = Path(data.encoding["source"])
    for file in (path, *_draw(data, path)):
        print(file)
    return 0


def _draw(data: Any, path: Path) -> Iterator[Path]:
    import matplotlib

    matplotlib.use("Agg")
    from parameter_ordering.paper.exhibits import figures

    figures.style()
    orders = data["order"].values.tolist()
    drawn = {"loss": figures.loss_figure(data, orders)}
    if {"covariance", "random"} <= set(orders):
        drawn["alpha"] = figures.alpha_figure(data)
    for name, figure in drawn.items():
        file = path.with_name(f"{path.stem}-{name}.png")
        with replacing(file) as part:
            figure.savefig(part, format="png")
        yield file


def _parser(experiment: type) -> argparse.ArgumentParser:
    """An option for each setting, with its description from the class."""
    from parameter_ordering.paper.experiments.parallel import BACKENDS

    parser = argparse.ArgumentParser(
        prog=f"parameter-ordering run {experiment.name}",
        usage="%(prog)s [--out FOLDER] [--jobs N] [--backend dask --scheduler ADDRESS] "
        "[--SETTING VALUE ...]",
        description=experiment.__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", default=Path("results"), help="where to write"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", default=-1, help="shards of runs trained side by side"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="loky",
        help="processes of this machine, or a cluster",
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="of the Dask scheduler, as tcp://HOST:8786"
    )
    settings = parser.add_argument_group("settings")
    texts = _descriptions(experiment)
    for field in fields(experiment):
        kind = {
            bool: {"action": argparse.BooleanOptionalAction},
            tuple: {"nargs": "+"},
        }.get(type(field.default), {"type": type(field.default)})
        name = f"--{field.name.replace('_', '-')}"
        text = texts.get(field.name, field.name).replace("%", "%%")
        settings.add_argument(name, dest=field.name, default=field.default, help=text, **kind)
    return parser


def _descriptions(experiment: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each attribute."""
    texts = {}
    for each in reversed(experiment.__mro__):
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): ((?:.|\n {8})*)", section, re.MULTILINE):
            texts[name] = re.sub(r":\w+:|`", "", " ".join(text.split()))
    return texts
