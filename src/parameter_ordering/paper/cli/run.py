"""``parameter-ordering run``: one experiment without a notebook."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import xarray as xr
from cyclopts import App, Parameter

from parameter_ordering.paper import experiments
from parameter_ordering.paper.experiments.experiment import Experiment
from parameter_ordering.paper.store.files import replacing
from parameter_ordering.paper.store.results import Store, results

app = App(
    name="run",
    help_epilogue="""\
Results (NetCDF) and figures (PNG) are written to --out, under names that end in a key of all
settings; what is there already is not computed again, nor are shards of runs that an interrupted
call had finished. The settings, with the book's values, are listed by --help after a name. ::

    parameter-ordering run boston_housing --runs 100 --t0 500 --out results
    parameter-ordering run boston_housing --runs 100 --backend dask --scheduler tcp://HOST:8786
""",
    help_format="rst",
    default_parameter=Parameter(
        name_transform=lambda name: name.replace("_", "-"),  # by default S is --s
        consume_multiple=True,
        negative_iterable=(),
    ),
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class How:
    """Where results go, and where they are computed, which changes none.

    Attributes:
        out: folder to write to.
        jobs: shards of runs trained side by side, -1 for as many as there are cores.
        backend: processes of this machine, or a cluster.
        scheduler: address of the Dask scheduler, as tcp://HOST:8786.
    """

    out: Path = Path("results")
    jobs: int = -1
    backend: Literal["loky", "dask"] = "loky"
    scheduler: str | None = None


_HERE = How()


def _run(experiment: Experiment, how: How) -> int:
    """Run the experiment, write what it gives, print the files' names; gives the exit status."""
    options = asdict(how)
    store = Store(options.pop("out"))
    try:
        data = results(experiment, store=store, **options)
    except (ArithmeticError, ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"parameter-ordering run {experiment.name}: {error}", file=sys.stderr)
        return 1
    path = Path(data.encoding["source"])
    for file in (path, *_draw(data, path)):
        print(file)
    return 0


def _draw(data: xr.Dataset, path: Path) -> Iterator[Path]:
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


def _command(experiment: type[Experiment]) -> Callable[..., int]:
    """A verb whose options are the settings of the experiment, described by its docstrings."""

    book = experiment()

    def command(*, settings: Experiment = book, how: How = _HERE) -> int:
        return _run(settings, how)

    command.__annotations__["settings"] = Annotated[experiment, Parameter(name="*")]
    command.__doc__ = (experiment.__doc__ or "").partition("\n")[0]
    return command


for _name, _experiment in vars(experiments).items():
    if isinstance(_experiment, type):
        app.command(_command(_experiment), name=_name)
