"""``parameter-ordering run``: an experiment from the command line, with files that can be read."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import xarray as xr

from parameter_ordering import experiments
from parameter_ordering.paper.cli.main import main

SETTINGS = {"runs": "3", "t0": "3", "iterations": "3", "grid": "3", "hidden": "2", "lr": "1e-2"}
SMALL = [each for name, value in SETTINGS.items() for each in (f"--{name}", value)]


def run(name, out, *arguments):
    return main(["run", name, "--out", str(out), *SMALL, "--shared-weights", *arguments])


def test_it_writes_results_and_figures(tmp_path, capsys):
    assert run("boston_housing", tmp_path) == 0
    written = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [path.rpartition(".")[2] for path in written] == ["nc", "png", "png"]
    data = xr.load_dataset(written[0], engine="h5netcdf")
    assert data.sizes["run"] == 3
    settings = json.loads(data.attrs["provenance"])["settings"]
    assert (settings["lr"], settings["shared_weights"], settings["t0"]) == (0.01, True, 3)
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in written[1:])


def test_it_computes_what_is_not_there(tmp_path, capsys, monkeypatch):
    assert run("boston_housing", tmp_path) == 0
    monkeypatch.setattr(experiments.boston_housing, "run", None)
    first = capsys.readouterr().out
    assert run("boston_housing", tmp_path) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(TypeError, match="not a callable"):
        run("boston_housing", tmp_path, "--seed", "1")


def test_orders_without_the_pair_of_figure_2(tmp_path, capsys):
    assert run("boston_housing", tmp_path, "--orders", "random") == 0
    assert capsys.readouterr().out.count(".png") == 1


def test_each_stage_is_drawn(tmp_path, capsys):
    assert run("boston_housing", tmp_path, "--stages", "2", "4") == 0
    written = capsys.readouterr().out
    for name in ("loss-t0-2", "alpha-t0-2", "loss-t0-4", "alpha-t0-4"):
        assert f"{name}.png" in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "0"], "--runs: Input should be greater than 0, got 0"),
        (["--runs", "3", "--runs", "4"], "--runs specified multiple times"),
        (["--runs", "many"], 'unable to convert "many" into int'),
        (["--S", "100000"], "S = 100000"),
        (["--orders", "alphabetical"], "unknown order 'alphabetical'"),
        (["--depth", "3"], "Unknown option: --depth"),
        (["--run", "3"], "Unknown option: --run. Did you mean --runs?"),
    ],
)
def test_bad_settings(tmp_path, capsys, arguments, message):
    given = ["--out", str(tmp_path), "--t0", "3", "--iterations", "3", *arguments]
    assert main(["run", "boston_housing", *given]) != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.nc"))


def test_unknown_experiment(capsys):
    assert main(["run", "boston"]) == 2
    error = capsys.readouterr().err
    assert 'Unknown command "boston". Did you mean "boston_housing"?' in error
    assert "boston_housing, breast_cancer" in error
    assert "synthetic_1, synthetic_2, synthetic_3" in error


@pytest.mark.parametrize("name", ["boston_housing", "mnist", "synthetic_2"])
def test_help_describes_every_setting(capsys, name):
    assert main(["run", name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    described = r"--{}( INT| FLOAT| STR| STR\.\.\.| --[a-z-]+)? (?!--|\[default)\w"
    for field in fields(getattr(experiments, name)):
        option = field.name.replace("_", "-")
        assert re.search(described.format(option), text), option
    assert "how many independent runs" in text
