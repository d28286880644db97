"""Data sets: what is drawn, how it is split, and that damaged or wrong data are refused.

What is tested: the distributions of (3.1) by their moments; splits and standardization against
arithmetic written out; the files of data/ against facts known from elsewhere and against damage;
all of MNIST through torchvision on a small set written in its idx format, downloads included; and
the errors of bad tensors.
"""

import functools
import gzip
import hashlib
import http.server
import shutil
import struct
import sys
import threading

import pytest
import torch
from torchvision import datasets

from parameter_ordering.paper.experiments import data
from parameter_ordering.paper.experiments.data import (
    Data,
    boston_housing,
    breast_cancer,
    diabetes,
    digits,
    mnist,
    synthetic_classification,
    synthetic_regression,
)

PARTS = ("x_train", "y_train", "x_test", "y_test")


def same(first, second):
    return all(torch.equal(getattr(first, part), getattr(second, part)) for part in PARTS)


def halves(sample):
    return (sample.x_train, sample.y_train), (sample.x_test, sample.y_test)


# Synthetic data, (3.1)


def test_regression_is_linear_with_noise_of_variance_one():
    sample = synthetic_regression(objects=20_000, features=4)
    for x, y in halves(sample):
        noise = y - x @ sample.w
        assert noise.mean().abs() < 4 / 20_000**0.5
        assert (noise.var() - 1).abs() < 4 * (2 / 20_000) ** 0.5
        assert (noise @ x / 20_000).abs().max() < 4 / 20_000**0.5
        torch.testing.assert_close(x.T @ x / 20_000, torch.eye(4), rtol=0, atol=0.04)


def test_classes_have_the_frequency_of_the_sigmoid():
    sample = synthetic_classification(objects=20_000, features=4)
    for x, y in halves(sample):
        assert set(y.tolist()) == {0.0, 1.0}
        logit = x @ sample.w
        probability = logit.sigmoid()
        # Scores of a logistic regression with a factor and a constant; both must be N(0, 1).
        for feature in (logit, torch.ones_like(logit)):
            spread = (probability * (1 - probability)) @ feature.square()
            assert ((y - probability) @ feature).abs() < 4 * spread.sqrt()


@pytest.mark.parametrize("draw", [synthetic_regression, synthetic_classification])
def test_the_true_weights_are_normal(draw):
    w = draw(objects=1, features=20_000).w
    assert w.mean().abs() < 4 / 20_000**0.5
    assert (w.var() - 1).abs() < 4 * (2 / 20_000) ** 0.5


@pytest.mark.parametrize("draw", [synthetic_regression, synthetic_classification])
def test_a_seed_decides_what_is_drawn(draw):
    first, again = draw(50, 3, data_seed=1), draw(50, 3, data_seed=1)
    other, larger = draw(50, 3, data_seed=2), draw(70, 3, data_seed=1)
    assert same(first, again)
    assert not torch.equal(first.x_train, other.x_train)
    assert not torch.equal(first.w, other.w)
    assert torch.equal(first.w, larger.w)
    assert not torch.equal(first.x_train, first.x_test)


def test_drawing_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    synthetic_regression(10, 3)
    assert torch.equal(torch.get_rng_state(), state)


# Files and their splits


def test_boston_housing_is_the_known_table():
    sample = boston_housing()
    y = torch.cat([sample.y_train, sample.y_test])
    assert (len(sample.y_train), len(sample.y_test), sample.n) == (354, 152, 13)
    assert (y.min().item(), y.max().item()) == (5.0, 50.0)
    assert (y == 50).sum() == 16  # prices were cut off there
    assert y.double().mean().item() == pytest.approx(22.532806, abs=1e-5)
    x = torch.cat([sample.x_train, sample.x_test])
    with_price = torch.corrcoef(torch.stack([*x.T, y]))[-1, :-1]
    # The most with LSTAT, the last feature: the price itself is none.
    assert with_price.abs().argmax() == 12
    assert with_price[12].item() == pytest.approx(-0.7377, abs=1e-4)


@pytest.mark.parametrize("load", [boston_housing, breast_cancer, diabetes])
def test_features_are_standardized_by_the_training_part(load):
    sample = load()
    x = sample.x_train.double()
    torch.testing.assert_close(x.mean(0), torch.zeros_like(x[0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.var(0, correction=0), torch.ones_like(x[0]), rtol=0, atol=1e-5)
    assert sample.x_test.mean(0).abs().max() > 1e-3  # by the training part, not by its own


def test_the_subset_of_mnist_has_each_digit_alike():
    sample = mnist()
    assert sample.x_train.shape == (4000, 784)
    assert sample.y_train.bincount().tolist() == [400] * 10
    assert sample.y_test.bincount().tolist() == [100] * 10
    x = torch.cat([sample.x_train, sample.x_test])
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)
    assert (x[:, 0] == 0).all()  # the corner of an image is never written on
    assert len(x.unique(dim=0)) == 5000


def test_an_image_stands_upright_beside_its_digit():
    sample = mnist()
    ink = sample.x_train.view(-1, 28, 28)
    middle = ink[:, 10:18, 12:16].mean((1, 2))  # empty in a zero, full in a one
    assert middle[sample.y_train == 1].mean() > 4 * middle[sample.y_train == 0].mean()


@pytest.mark.parametrize(
    ("load", "sizes", "classes"), [(breast_cancer, (398, 171), 2), (digits, (1257, 540), 10)]
)
@pytest.mark.parametrize("seed", range(3))
def test_classes_of_scikit_learn_are_split_alike(load, sizes, classes, seed):
    sample = load(data_seed=seed)
    assert (len(sample.y_train), len(sample.y_test)) == sizes
    shares = [y.long().bincount(minlength=classes) / len(y) for _, y in halves(sample)]
    torch.testing.assert_close(*shares, rtol=0, atol=1 / sizes[1])


@pytest.mark.parametrize("seed", range(3))
def test_the_progression_of_diabetes_is_standardized_by_the_training_part(seed):
    sample = diabetes(data_seed=seed)
    y = sample.y_train.double()
    assert (y.mean().item(), y.var(correction=0).item()) == pytest.approx((0, 1), abs=1e-5)
    assert abs(sample.y_test.mean().item()) > 1e-5  # not by its own mean
    # The progression goes with the body mass index, the third feature, more than with any other.
    assert (sample.x_train.double().T @ y).abs().argmax() in (2, 8)


def test_more_tumours_are_benign():
    sample = breast_cancer()
    y = torch.cat([sample.y_train, sample.y_test])
    assert y.long().bincount().tolist() == [212, 357]


def test_pixels_of_scikit_learn_go_from_0_to_1():
    x = torch.cat([digits().x_train, digits().x_test])
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)


@pytest.mark.parametrize("load", [boston_housing, mnist, breast_cancer, digits])
def test_a_seed_draws_another_split_of_the_same_objects(load):
    first, again, other = load(), load(data_seed=0), load(data_seed=1)
    assert same(first, again)
    assert first.checksum == again.checksum != other.checksum
    assert len(first.y_train) == len(other.y_train)
    targets = [
        torch.cat([sample.y_train, sample.y_test]).sort().values for sample in (first, other)
    ]
    assert torch.equal(*targets)


@pytest.mark.parametrize(
    ("load", "kind"),
    [
        (boston_housing, torch.float32),
        (mnist, torch.int64),
        (breast_cancer, torch.float32),
        (diabetes, torch.float32),
        (digits, torch.int64),
    ],
)
def test_types(load, kind):
    sample = load()
    assert sample.x_train.dtype == sample.x_test.dtype == torch.float32
    assert sample.y_train.dtype == sample.y_test.dtype == kind


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of data/ that may be damaged."""
    folder = tmp_path / "data"
    shutil.copytree(data._FOLDER, folder, ignore=shutil.ignore_patterns("MNIST"))
    monkeypatch.setattr(data, "_FOLDER", folder)
    return folder


@pytest.mark.parametrize(
    ("load", "name"), [(boston_housing, "boston_housing.csv"), (mnist, "mnist_5000.npz")]
)
def test_a_damaged_or_missing_file_is_refused(load, name, copy):
    load()
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(OSError, match=rf"{name} is damaged.*git checkout data"):
        load()
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*git checkout data"):
        load()


# All of MNIST, through torchvision


FILES = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]


def idx(array):
    """Bytes of a uint8 tensor in the idx format: magic number, sizes, values."""
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.numpy().tobytes()


@pytest.fixture
def full(tmp_path):
    """30 + 20 digits, written as MNIST is: images and classes of either part."""
    parts = []
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, objects in (("train", 30), ("t10k", 20)):
        images = torch.randint(256, (objects, 28, 28), dtype=torch.uint8)
        classes = torch.arange(objects, dtype=torch.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(classes))
        parts.append((images, classes))
    return parts


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_full_mnist_keeps_the_official_split(full, tmp_path, kind):
    sample = mnist("full", root=kind(tmp_path))
    assert sample.name == "MNIST"
    for (x, y), (images, classes) in zip(halves(sample), full, strict=True):
        torch.testing.assert_close(x, images.flatten(1).float() / 255)
        assert torch.equal(y, classes.long())


def test_full_mnist_is_split_anew_by_another_seed(full, tmp_path):
    official, other = (mnist("full", root=tmp_path, data_seed=seed) for seed in (0, 1))
    assert other.y_train.bincount().tolist() == [3] * 10
    assert other.y_test.bincount().tolist() == [2] * 10
    rows = [torch.cat([sample.x_train, sample.x_test]) for sample in (official, other)]
    assert not torch.equal(*rows)
    assert torch.equal(*(torch.unique(row, dim=0) for row in rows))


def test_full_mnist_lies_in_data_by_default(full, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_FOLDER", tmp_path)
    assert same(mnist("full"), mnist("full", root=tmp_path))


@pytest.mark.parametrize("missing", [FILES, FILES[2:3]])
def test_full_mnist_missing(full, tmp_path, missing):
    for name in missing:
        (tmp_path / "MNIST" / "raw" / f"{name}-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {', '.join(missing)} .*download=True"):
        mnist("full", root=tmp_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [lambda content: content[:-7], lambda content: b"no digits"])
def test_full_mnist_damaged(full, tmp_path, name, damage):
    file = tmp_path / "MNIST" / "raw" / f"{name}-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(OSError, match=r"could not be downloaded or is damaged"):
        mnist("full", root=tmp_path)


@pytest.fixture
def mirror(full, tmp_path, monkeypatch):
    """A folder on a server of this machine, which torchvision downloads from."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name in FILES:
        content = gzip.compress((tmp_path / "MNIST" / "raw" / f"{name}-ubyte").read_bytes())
        (folder / f"{name}-ubyte.gz").write_bytes(content)
        resources.append((f"{name}-ubyte.gz", hashlib.md5(content).hexdigest()))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        yield folder
        server.shutdown()


def test_full_mnist_is_downloaded_when_that_is_asked_for(mirror, tmp_path):
    root = tmp_path / "elsewhere"
    with pytest.raises(FileNotFoundError):
        mnist("full", root=root)
    assert not root.exists()
    downloaded = mnist("full", root=root, download=True)
    assert same(downloaded, mnist("full", root=tmp_path))
    assert same(downloaded, mnist("full", root=root))


def test_a_failed_download(mirror, tmp_path):
    shutil.rmtree(mirror)
    with pytest.raises(OSError, match=r"could not be downloaded or is damaged"):
        mnist("full", root=tmp_path / "elsewhere", download=True)


def test_full_mnist_without_torchvision(full, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match="full MNIST needs torchvision"):
        mnist("full", root=tmp_path)


@pytest.mark.parametrize("wrong", [{"root": "somewhere"}, {"download": True}])
def test_arguments_of_the_full_set_do_not_fit_the_subset(wrong):
    with pytest.raises(ValueError, match="belong to source='full'"):
        mnist(**wrong)


def test_an_unknown_source():
    with pytest.raises(ValueError, match="source is 'all': it must be 'subset' or 'full'"):
        mnist("all")


# Data


def tensors(**changed):
    parts = {"x_train": torch.zeros(3, 2), "y_train": torch.zeros(3)}
    parts |= {"x_test": torch.zeros(4, 2), "y_test": torch.zeros(4)}
    return {"name": "zeros"} | parts | changed


def test_data_say_what_they_are():
    assert repr(Data(**tensors())) == "<zeros: 3 + 4 objects, n = 2>"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"x_test": torch.zeros(4, 2, dtype=torch.int64)},
            TypeError,
            "x_test has type torch.int64",
        ),
        ({"y_train": torch.zeros(3).int()}, TypeError, "y_train has type torch.int32"),
        ({"y_train": torch.zeros(3).double()}, TypeError, "y_train has type torch.float64"),
        ({"x_train": torch.zeros(3)}, ValueError, r"x_train has shape \(3,\)"),
        ({"y_train": torch.zeros(3, 1)}, ValueError, r"y_train \(3, 1\)"),
        ({"y_test": torch.zeros(3)}, ValueError, r"y_test \(3,\)"),
        (
            {"x_test": torch.zeros(0, 2), "y_test": torch.zeros(0)},
            ValueError,
            "one object at least",
        ),
        ({"x_test": torch.zeros(4, 3)}, ValueError, "x_train has 2 features, but x_test 3"),
        (
            {"x_train": torch.tensor([[0, torch.nan]] * 3)},
            ValueError,
            "x_train has 3 NaN or infinite of 6",
        ),
        (
            {"y_test": torch.tensor([0, 1, 2, torch.inf])},
            ValueError,
            "y_test has 1 NaN or infinite of 4",
        ),
    ],
)
def test_bad_data_are_refused(changed, error, message):
    Data(**tensors())
    with pytest.raises(error, match=message):
        Data(**tensors(**changed))


@pytest.mark.parametrize("part", PARTS)
def test_the_checksum_covers_every_value(part):
    before = Data(**tensors())
    changed = before.__dict__[part].clone()
    changed[-1] = 1e-30
    assert Data(**tensors()).checksum == before.checksum
    assert Data(**tensors(**{part: changed})).checksum != before.checksum


def test_the_checksum_covers_where_the_split_is():
    swapped = {"x_train": torch.zeros(4, 2), "y_train": torch.zeros(4)}
    swapped |= {"x_test": torch.zeros(3, 2), "y_test": torch.zeros(3)}
    assert Data(**tensors(**swapped)).checksum != Data(**tensors()).checksum


def test_the_checksum_covers_types():
    """Zeros of either type are the same bytes."""
    x, y = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    values, classes = (tensors(x_train=x, y_train=each) for each in (y, y.long()))
    assert Data(**values).checksum != Data(**classes).checksum


def test_no_objects_can_be_drawn():
    with pytest.raises(ValueError, match="one object at least"):
        synthetic_regression(objects=0)
