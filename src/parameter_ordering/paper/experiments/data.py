"""Data sets of Table 1, and three that the paper does not use.

Every loader gives a :class:`Data`: two tables of float32 features and their targets. The files of
Boston Housing and of 5,000 digits of MNIST lie in ``data/``, with their source and licence, and
are checked against ``data/SHA256SUMS`` whenever they are read.

``data_seed`` decides what is drawn: the objects of a synthetic set, the split of a real one.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

# A clone keeps its data beside src/, an installed package inside itself.
_INSTALLED, _CLONE = Path(__file__).parent / "data_files", Path(__file__).parents[4] / "data"
_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _CLONE


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A sample D of (2.1), split into a training and a test part.

    Args:
        name: what the data are, for a reader.
        x_train: (m, n), floating point.
        y_train: (m,), int64 classes from 0, or floating point of the type of x: values, or
            0 and 1 for two classes.
        x_test: (m', n).
        y_test: (m',).
        w: (n,), the weights that synthetic data were drawn from.

    Raises:
        TypeError: a tensor has the wrong type.
        ValueError: shapes disagree, a part is empty, or a value is NaN or infinite.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    w: Tensor | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if not x.is_floating_point():
                raise TypeError(f"x_{part} has type {x.dtype}: it must be floating point")
            if y.dtype not in (x.dtype, torch.int64):
                raise TypeError(f"y_{part} has type {y.dtype}: it must be {x.dtype} or torch.int64")
            if x.ndim != 2 or y.shape != x.shape[:1] or not x.numel():
                raise ValueError(
                    f"x_{part} has shape {tuple(x.shape)} and y_{part} {tuple(y.shape)}: they must "
                    "be (objects, features) and (objects,), with one object at least"
                )
            for name, values in ((f"x_{part}", x), (f"y_{part}", y)):
                if bad := values.numel() - int(values.isfinite().sum()):
                    raise ValueError(f"{name} has {bad} NaN or infinite of {values.numel()} values")
        if self.x_test.shape[1] != self.n:
            raise ValueError(f"x_train has {self.n} features, but x_test {self.x_test.shape[1]}")

    def __repr__(self) -> str:
        train, test = len(self.y_train), len(self.y_test)
        return f"<{self.name}: {train} + {test} objects, n = {self.n}>"

    @property
    def n(self) -> int:
        """Number of features."""
        return self.x_train.shape[1]

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all values, types and shapes, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for values in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.contiguous().numpy(force=True).data)
        return digest.hexdigest()


def synthetic_regression(
    objects: int, features: int = 200, data_seed: int = 0, noise: float = 1.0
) -> Data:
    r"""Regression of (3.1): :math:`x \sim N(0, I)`, :math:`y \sim N(w^T x, 1)`.

    :math:`w \sim N(0, I)` depends on ``features`` and ``data_seed`` alone. The variance that the
    paper writes as I is that of a scalar, 1.

    Args:
        objects: number of objects in each of the two parts.
        features: n.
        data_seed: seed of everything drawn.
        noise: variance of y given x.

    >>> synthetic_regression(objects=10, features=3)
    <Synthetic regression: 10 + 10 objects, n = 3>
    """
    generator, w, x = _gaussian(objects, features, data_seed)
    y = x @ w + noise**0.5 * torch.randn(len(x), generator=generator)
    return Data("Synthetic regression", x[:objects], y[:objects], x[objects:], y[objects:], w)


def synthetic_classification(
    objects: int, features: int = 200, data_seed: int = 0, probability: str = "sigmoid"
) -> Data:
    r"""Two classes of (3.1): :math:`x \sim N(0, I)`, :math:`y \sim Be(\mathrm{sigmoid}(w^T x))`.

    The paper prints :math:`Be(w^T x)`, which is no probability; ``probability`` makes it one, the
    "sigmoid" of it or it "clipped" to 0 and 1. Targets are 0 and 1 in float32; the other arguments
    are those of :func:`synthetic_regression`.

    >>> synthetic_classification(objects=10, features=3).y_train.unique()
    tensor([0., 1.])
    """
    generator, w, x = _gaussian(objects, features, data_seed)
    to_probability = {"sigmoid": torch.sigmoid, "clipped": lambda h: h.clamp(0, 1)}[probability]
    y = torch.bernoulli(to_probability(x @ w), generator=generator)
    return Data("Synthetic classification", x[:objects], y[:objects], x[objects:], y[objects:], w)


def boston_housing(data_seed: int = 0, standardized: bool = True) -> Data:
    """Boston Housing: 506 tracts, 13 features, the median price of a home in 1000 dollars.

    Of the tracts 70 % are for training; the features are standardized by their statistics, or left
    as they are. ``data/README.md`` says what is wrong with this data set.

    Raises:
        OSError: the file is missing or damaged.

    >>> boston_housing()
    <Boston Housing: 354 + 152 objects, n = 13>
    """
    table = np.loadtxt(io.BytesIO(_read("boston_housing.csv")), delimiter=",", skiprows=1)
    x, y = table[:, :-1], table[:, -1]
    train, test = _split(len(y), data_seed)
    x = StandardScaler().fit(x[train]).transform(x) if standardized else x
    return _data("Boston Housing", x, y, train, test)


def mnist(
    source: str = "subset",
    root: str | Path | None = None,
    download: bool = False,
    data_seed: int = 0,
    standardized: bool = False,
) -> Data:
    """Images of digits, 28 x 28 pixels from 0 to 1, and the ten classes.

    Args:
        source: "subset", 5,000 digits that come with the project, split 4,000 / 1,000 with each
            digit alike; or "full", all 60,000 / 10,000, through torchvision.
        root: for "full", the folder that holds ``MNIST/raw``; by default ``data/``.
        download: for "full", whether torchvision may download what is missing.
        data_seed: seed of the split; "full" keeps the official split at 0, and draws another of the
            same sizes at any other value.
        standardized: whether the pixels have 0.1307 subtracted and are divided by 0.3081, mean and
            deviation of MNIST, as the examples of torch have it.

    Raises:
        ValueError: unknown source, or an argument of "full" given to "subset".
        FileNotFoundError: the full set is not in ``root``.
        OSError: a file is damaged, or the download failed.

    >>> mnist()
    <MNIST, a subset of 5,000 digits: 4000 + 1000 objects, n = 784>
    """
    if source == "subset":
        if root is not None or download:
            raise ValueError("root and download belong to source='full': the subset needs neither")
        with np.load(io.BytesIO(_read("mnist_5000.npz")), allow_pickle=False) as file:
            x, y = file["x"], file["y"].astype(np.int64)
        name, split = "MNIST, a subset of 5,000 digits", _split(len(y), data_seed, 1000, y)
    elif source == "full":
        parts = _full_mnist(Path(root or _FOLDER), download)
        x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        test_size = len(parts[1][1])
        name, split = "MNIST", _split(len(y), data_seed, test_size, y)
        if data_seed == 0:
            split = np.split(np.arange(len(y)), [-test_size])
    else:
        raise ValueError(f"source is {source!r}: it must be 'subset' or 'full'")
    x = x / np.float32(255)
    x = (x - np.float32(0.1307)) / np.float32(0.3081) if standardized else x
    return _data(name, x, y, *split)


def breast_cancer(data_seed: int = 0) -> Data:
    """Breast Cancer Wisconsin, from scikit-learn: 569 tumours, 30 features, benign (1) or not (0).

    Of each class 70 % are for training; the features are standardized by their statistics.

    >>> breast_cancer()
    <Breast Cancer Wisconsin: 398 + 171 objects, n = 30>
    """
    x, y = load_breast_cancer(return_X_y=True)
    train, test = _split(len(y), data_seed, classes=y)
    x = StandardScaler().fit(x[train]).transform(x)
    return _data("Breast Cancer Wisconsin", x, y.astype(float), train, test)


def diabetes(data_seed: int = 0) -> Data:
    """Diabetes, from scikit-learn: 442 patients, 10 features, the progression within a year.

    Of the patients 70 % are for training; features and progression are standardized by their
    statistics.

    >>> diabetes()
    <Diabetes: 309 + 133 objects, n = 10>
    """
    x, y = load_diabetes(return_X_y=True)
    train, test = _split(len(y), data_seed)
    x = StandardScaler().fit(x[train]).transform(x)
    y = (y - y[train].mean()) / y[train].std()
    return _data("Diabetes", x, y, train, test)


def digits(data_seed: int = 0) -> Data:
    """Digits, from scikit-learn: 1,797 images of 8 x 8 pixels from 0 to 1, and the ten classes.

    Of each class 70 % are for training.

    >>> digits()
    <Digits: 1257 + 540 objects, n = 64>
    """
    x, y = load_digits(return_X_y=True)
    return _data("Digits", x / 16, y, *_split(len(y), data_seed, classes=y))


def _gaussian(objects: int, features: int, seed: int) -> tuple[torch.Generator, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(features, generator=generator)
    return generator, w, torch.randn(2 * objects, features, generator=generator)


def _split(
    objects: int, seed: int, test_size: float = 0.3, classes: np.ndarray | None = None
) -> list[np.ndarray]:
    return train_test_split(
        np.arange(objects), test_size=test_size, stratify=classes, random_state=seed
    )


def _data(name: str, x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> Data:
    features, answers = torch.from_numpy(x).float(), torch.from_numpy(y)
    answers = answers.float() if answers.is_floating_point() else answers
    return Data(name, features[train], answers[train], features[test], answers[test])


def _read(name: str) -> bytes:
    """A file of ``data/``, checked against its SHA-256."""
    try:
        sums = (_FOLDER / "SHA256SUMS").read_text().splitlines()
        content = (_FOLDER / name).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename} is missing: restore it with `git checkout data`, or install again"
        ) from error
    if f"{hashlib.sha256(content).hexdigest()}  {name}" not in sums:
        raise OSError(
            f"{_FOLDER / name} is damaged, its SHA-256 is not that of SHA256SUMS: "
            "restore it with `git checkout data`, or install again"
        )
    return content


def _full_mnist(root: Path, download: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images (m, 784) and classes (m,) of both official parts."""
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise ImportError("full MNIST needs torchvision: install it beside torch") from error
    raw = root / "MNIST" / "raw"
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    missing = [name for name in names if not (raw / f"{name}-ubyte").is_file()]
    if missing and not download:
        raise FileNotFoundError(
            f"full MNIST is not in {raw}, which lacks {', '.join(missing)} (-ubyte): put the files "
            "there, ask for download=True, or take source='subset'"
        )
    try:
        parts = [MNIST(root, train=train, download=download) for train in (True, False)]
        return [(part.data.flatten(1).numpy(), part.targets.numpy()) for part in parts]
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise OSError(
            f"full MNIST in {raw} could not be downloaded or is damaged: {error}"
        ) from error
