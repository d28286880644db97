"""Order the parameters of a torch model by the covariance of its gradients, and freeze them."""

from typing import TYPE_CHECKING

from parameter_ordering.covariance import GradientCovariance as GradientCovariance
from parameter_ordering.freezing import freeze as freeze
from parameter_ordering.freezing import unfreeze as unfreeze
from parameter_ordering.granularity import by_tensors as by_tensors
from parameter_ordering.granularity import by_units as by_units
from parameter_ordering.granularity import to_parameters as to_parameters
from parameter_ordering.masked_adam import MaskedAdam as MaskedAdam
from parameter_ordering.masks import mask_of as mask_of
from parameter_ordering.moments import GradientMoments as GradientMoments
from parameter_ordering.order import frozen_mask as frozen_mask
from parameter_ordering.order import mean_frozen as mean_frozen
from parameter_ordering.order import rank as rank
from parameter_ordering.schedule import FreezeSchedule as FreezeSchedule
from parameter_ordering.schedule import ramp as ramp
from parameter_ordering.scores import scores as scores
from parameter_ordering.skipping import skip_gradients as skip_gradients
from parameter_ordering.suggest import suggest_k as suggest_k

if TYPE_CHECKING:
    from parameter_ordering.paper import experiments as experiments


def __getattr__(name: str) -> object:
    """The experiments, when first asked for: they need the extra ``paper``."""
    if name != "experiments":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from parameter_ordering import paper

    paper.require()
    from parameter_ordering.paper import experiments

    return experiments
