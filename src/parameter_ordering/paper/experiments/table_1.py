"""The experiments, each with the settings that the book uses: five of Table 1, and three more.

The paper leaves these settings open; the chapter on the protocol says how they were chosen. Each t0
of Table 1 is the early stage, :data:`parameter_ordering.paper.evidence.stage.EARLY`, read off the
learning curve of :func:`parameter_ordering.paper.experiments.book_runs.learning`.
"""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import nn

from parameter_ordering.paper.experiments import data, models
from parameter_ordering.paper.experiments.experiment import CHECKED, Experiment


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Synthetic1(Experiment):
    """Regression (3.1) with a perceptron 200-20-1, p = 4041.

    Attributes:
        objects: in the training set and in the test set each.
        hidden: width of the hidden layer.
        noise: variance of y given x.
    """

    name = "synthetic_1"
    t0: PositiveInt = 183
    iterations: NonNegativeInt = 1500
    horizon: PositiveInt = 4000
    objects: PositiveInt = 10_000
    hidden: PositiveInt = 20
    noise: NonNegativeFloat = 1.0
    loss = staticmethod(models.squared_error)

    def data(self) -> data.Data:
        return data.synthetic_regression(self.objects, 200, self.data_seed, self.noise)

    def build(self) -> nn.Module:
        return models.perceptron(200, self.hidden, 1)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BostonHousing(Experiment):
    """Prices of homes with a perceptron 13-20-1, p = 301.

    Attributes:
        hidden: width of the hidden layer.
        standardized: whether the features are.
    """

    name = "boston_housing"
    t0: PositiveInt = 205
    iterations: NonNegativeInt = 3000
    horizon: PositiveInt = 6500
    hidden: PositiveInt = 20
    standardized: bool = True
    loss = staticmethod(models.squared_error)

    def data(self) -> data.Data:
        return data.boston_housing(self.data_seed, self.standardized)

    def build(self) -> nn.Module:
        return models.perceptron(13, self.hidden, 1)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Synthetic3(Experiment):
    """Regression (3.1) with a linear model, p = 200.

    Attributes:
        objects: in the training set and in the test set each.
        noise: variance of y given x.
    """

    name = "synthetic_3"
    t0: PositiveInt = 580
    iterations: NonNegativeInt = 4000
    horizon: PositiveInt = 7500
    objects: PositiveInt = 20_000
    noise: NonNegativeFloat = 1.0
    loss = staticmethod(models.squared_error)

    def data(self) -> data.Data:
        return data.synthetic_regression(self.objects, 200, self.data_seed, self.noise)

    def build(self) -> nn.Module:
        return models.linear(200)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MNIST(Experiment):
    """Classification of digits with a perceptron 784-10-10, p = 7960.

    Attributes:
        mnist_source: "subset", 5,000 digits that come with the project, or "full".
        hidden: width of the hidden layer.
        standardized: whether the pixels are, by mean and deviation of MNIST.
    """

    name = "mnist"
    t0: PositiveInt = 72
    iterations: NonNegativeInt = 700
    horizon: PositiveInt = 3000
    mnist_source: str = "subset"
    hidden: PositiveInt = 10
    standardized: bool = False
    loss = staticmethod(models.cross_entropy)

    def data(self) -> data.Data:
        source, standardized = self.mnist_source, self.standardized
        return data.mnist(source, data_seed=self.data_seed, standardized=standardized)

    def build(self) -> nn.Module:
        return models.perceptron(784, self.hidden, 10)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Synthetic2(Experiment):
    """Classification (3.1) with a linear model, p = 200.

    Attributes:
        objects: in the training set and in the test set each.
        probability: what makes one of the printed w^T x, "sigmoid" or "clipped" to 0 and 1.
    """

    name = "synthetic_2"
    t0: PositiveInt = 167
    iterations: NonNegativeInt = 2500
    horizon: PositiveInt = 12_000
    objects: PositiveInt = 10_000
    probability: Literal["sigmoid", "clipped"] = "sigmoid"
    loss = staticmethod(models.binary_cross_entropy)

    def data(self) -> data.Data:
        return data.synthetic_classification(self.objects, 200, self.data_seed, self.probability)

    def build(self) -> nn.Module:
        return models.linear(200)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BreastCancer(Experiment):
    """Diagnosis of tumours with a perceptron 30-20-1, p = 641: not in the paper.

    No order was developed on it, and it can confirm none: freezing costs next to nothing.

    Attributes:
        hidden: width of the hidden layer.
    """

    name = "breast_cancer"
    t0: PositiveInt = 100
    iterations: NonNegativeInt = 1000
    hidden: PositiveInt = 20
    loss = staticmethod(models.binary_cross_entropy)

    def data(self) -> data.Data:
        return data.breast_cancer(self.data_seed)

    def build(self) -> nn.Module:
        return models.perceptron(30, self.hidden, 1)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Diabetes(Experiment):
    """Progression of diabetes with a perceptron 10-20-1, p = 241: not in the paper.

    No order was developed on it. t0 is where half of the loss is left to gain on
    development seeds, and training ends where a twentieth is, to 25 iterations.

    Attributes:
        hidden: width of the hidden layer.
    """

    name = "diabetes"
    t0: PositiveInt = 50
    iterations: NonNegativeInt = 150
    horizon: PositiveInt = 4000
    hidden: PositiveInt = 20
    loss = staticmethod(models.squared_error)

    def data(self) -> data.Data:
        return data.diabetes(self.data_seed)

    def build(self) -> nn.Module:
        return models.perceptron(10, self.hidden, 1)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Digits(Experiment):
    """Classification of small images of digits with a perceptron 64-20-10, p = 1510: not in the
    paper.

    No order was developed on it. t0 is where half of the loss is left to gain on
    development seeds, and training ends where a twentieth is, to 25 iterations.

    Attributes:
        hidden: width of the hidden layer.
    """

    name = "digits"
    t0: PositiveInt = 225
    iterations: NonNegativeInt = 825
    horizon: PositiveInt = 4000
    hidden: PositiveInt = 20
    loss = staticmethod(models.cross_entropy)

    def data(self) -> data.Data:
        return data.digits(self.data_seed)

    def build(self) -> nn.Module:
        return models.perceptron(64, self.hidden, 10)


synthetic_1, boston_housing, synthetic_3 = Synthetic1, BostonHousing, Synthetic3
mnist, synthetic_2, breast_cancer = MNIST, Synthetic2, BreastCancer
diabetes, digits = Diabetes, Digits
