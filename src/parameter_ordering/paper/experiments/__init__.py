"""Section 3: the experiments of Table 1, and what they are run on."""

from parameter_ordering.paper.experiments.table_1 import (
    boston_housing,
    breast_cancer,
    diabetes,
    digits,
    mnist,
    synthetic_1,
    synthetic_2,
    synthetic_3,
)
