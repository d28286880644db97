"""What `pip install` of the project brings: torch and numpy are enough for the method.

What is tested, in an environment made for it, with the wheel, torch, numpy and what these two need
and nothing else: a model is ordered, frozen, saved and resumed; the experiments and the command say
which extra is missing; types and data are in the wheel.
"""

import hashlib
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
METHOD = """
import sys
from pathlib import Path
import torch
from parameter_ordering import GradientCovariance, MaskedAdam, freeze, frozen_mask, rank

def start():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    return model, MaskedAdam(model.named_parameters(), lr=1e-2)

def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()

x, y, loss_fn = torch.randn(8, 3), torch.randn(8, 1), torch.nn.MSELoss()
model, optimizer = start()
C = GradientCovariance(model)
for _ in range(3):
    C.update(loss_fn, x, y)
    optimizer.step()
k, I = 10, rank(C.diagonal())
mask = frozen_mask(C.diagonal(), k)
assert all(torch.equal(mask[name], I[name] <= k) for name in mask)
freeze(optimizer, mask)
flat = torch.cat([each.flatten() for each in mask.values()])
before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
torch.save((model.state_dict(), optimizer.state_dict()), "checkpoint.pt")
after = train(model, optimizer)
assert torch.equal(before[flat], after[flat]) and (before != after)[~flat].any()

model, optimizer = start()
freeze(optimizer)
for each, state in zip((model, optimizer), torch.load("checkpoint.pt"), strict=True):
    each.load_state_dict(state)
assert torch.equal(train(model, optimizer), after)
"""


def needed(name, found):
    """Add the distributions that one needs, itself among them, extras left out."""
    if name not in found:
        found[name] = distribution(name)
        for line in map(Requirement, found[name].requires or []):
            if line.marker is None or line.marker.evaluate({"extra": ""}):
                needed(line.name, found)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Its folder. Torch is large: it and what it needs are linked, not copied."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True)
    venv.create(folder, symlinks=True)
    [wheel] = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    site = site_packages(folder)
    [metadata] = site.glob("*.dist-info/METADATA")
    lines = metadata.read_text().partition("\n\n")[0].splitlines()
    brought = [line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist" in line]
    brought = [Requirement(line).name for line in brought if "extra ==" not in line]
    assert brought == ["numpy", "torch"]
    for each in {k: v for name in brought for k, v in needed(name, {}).items()}.values():
        for top in {file.parts[0] for file in each.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(each.locate_file(top))
    return folder


def site_packages(folder):
    [site] = folder.glob("lib/python*/site-packages")
    return site


def run(folder, *command):
    bare = {"PATH": str(folder / "bin"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=bare, capture_output=True, text=True)


def test_the_method_orders_freezes_saves_and_resumes(environment):
    done = run(environment, environment / "bin/python", "-c", METHOD)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [["python", "-c", "from parameter_ordering import experiments"], ["parameter-ordering"]],
    ids=["experiments", "command"],
)
def test_without_the_extra_it_is_named(environment, command):
    name, *arguments = command
    done = run(environment, environment / "bin" / name, *arguments)
    assert done.returncode == 1
    assert done.stderr.endswith("xarray: pip install 'parameter-ordering[paper]'\n")


def test_types_and_data_are_in_the_wheel(environment):
    package = site_packages(environment) / "parameter_ordering"
    assert (package / "py.typed").is_file()
    data = package / "paper/experiments/data_files"
    for line in (data / "SHA256SUMS").read_text().splitlines():
        checksum, name = line.split()
        assert hashlib.sha256((data / name).read_bytes()).hexdigest() == checksum
