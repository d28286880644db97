"""The data sets of Table 1: synthetic (3.1), Boston Housing and MNIST."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Data:
    """A data set, split in two: ``x`` of shape (objects, n), ``y`` of shape (objects,)."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    checksum: str
    w: Tensor | None = None
