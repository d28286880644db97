"""Order the parameters of a torch model by the covariance of its gradients, and freeze them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parameter_ordering import experiments
    from parameter_ordering.covariance import GradientCovariance
    from parameter_ordering.freezing import freeze, unfreeze
    from parameter_ordering.granularity import by_tensors, by_units, to_parameters
    from parameter_ordering.masked_adam import MaskedAdam
    from parameter_ordering.order import frozen_mask, mean_frozen, rank
    from parameter_ordering.schedule import FreezeSchedule, ramp
    from parameter_ordering.skipping import skip_gradients
    from parameter_ordering.suggest import suggest_k

# Looked up when first asked for: the build of the book imports this package, and needs no torch.
_HOMES = {
    "FreezeSchedule": "schedule",
    "GradientCovariance": "covariance",
    "MaskedAdam": "masked_adam",
    "by_tensors": "granularity",
    "by_units": "granularity",
    "experiments": "experiments",
    "freeze": "freezing",
    "frozen_mask": "order",
    "mean_frozen": "order",
    "ramp": "schedule",
    "rank": "order",
    "skip_gradients": "skipping",
    "suggest_k": "suggest",
    "to_parameters": "granularity",
    "unfreeze": "freezing",
}

__all__ = [
    "FreezeSchedule",
    "GradientCovariance",
    "MaskedAdam",
    "by_tensors",
    "by_units",
    "experiments",
    "freeze",
    "frozen_mask",
    "mean_frozen",
    "ramp",
    "rank",
    "skip_gradients",
    "suggest_k",
    "to_parameters",
    "unfreeze",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOMES[name]}")
    return module if name == _HOMES[name] else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
