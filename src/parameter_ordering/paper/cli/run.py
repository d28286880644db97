"""``parameter-ordering run``: one experiment without a notebook."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import xarray as xr
from cyclopts import App, Parameter
from pydantic import ValidationError

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
    parameter-ordering run mnist --backend dask --scheduler tcp://HOST:8786
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
    stages = {f"-t0-{t0}": data.sel(t0=t0) for t0 in data.t0.values} if "t0" in data.dims else {}
    drawn = {}
    for stage, frozen in (stages or {"": data}).items():
        drawn[f"loss{stage}"] = figures.loss_figure(frozen, orders)
        if {"covariance", "random"} <= set(orders):
            drawn[f"alpha{stage}"] = figures.alpha_figure(frozen)
    for name, figure in drawn.items():
        file = path.with_name(f"{path.stem}-{name}.png")
        with replacing(file) as part:
            figure.savefig(part, format="png")
        yield file


def _command(experiment: type[Experiment]) -> Callable[..., int]:
    """A verb whose options are the settings of the experiment, described by its docstrings."""
    plain = _plain(experiment)
    book = plain()

    def command(*, settings: Any = book, how: How = _HERE) -> int:
        try:
            given = experiment(**vars(settings))
        except ValidationError as error:
            for each in error.errors():
                name = "--" + str(each["loc"][0]).replace("_", "-")
                print(f"{name}: {each['msg']}, got {each['input']!r}", file=sys.stderr)
            return 2
        return _run(given, how)

    command.__annotations__["settings"] = Annotated[plain, Parameter(name="*")]
    command.__doc__ = (experiment.__doc__ or "").partition("\n")[0]
    return command


def _plain(experiment: type[Experiment]) -> type:
    """The settings as a dataclass that checks nothing: words must become numbers before."""
    bases: tuple[type, ...] = ()
    for each in reversed(experiment.__mro__):
        if is_dataclass(each):
            types = get_type_hints(each)  # without what pydantic holds a setting to
            settings = [(one.name, types[one.name], one.default) for one in fields(each)]
            documented = {"__doc__": each.__doc__, "__module__": each.__module__}
            plain = make_dataclass(
                each.__name__, settings, bases=bases, kw_only=True, namespace=documented
            )
            bases = (plain,)
    return plain


for _name, _experiment in vars(experiments).items():
    if isinstance(_experiment, type):
        app.command(_command(_experiment), name=_name)
