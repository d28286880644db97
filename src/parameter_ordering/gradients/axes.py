"""On which axis each layer has the samples."""

from collections.abc import Iterable, Sequence
from itertools import repeat

from torch import Tensor, nn

from parameter_ordering.gradients import places
from parameter_ordering.gradients.layers import sample_axis, works_on_positions
from parameter_ordering.gradients.recorder import Call, Pass


class Axes:
    """Learns the axes from the passes that are put to the test (:mod:`.places`).

    Args:
        axis: that of the whole model.
    """

    def __init__(self, axis: int):
        self._axis = axis
        self._known: dict[nn.Module, int] = {}

    def learn(self, call: Call, k: int, d: Tensor) -> None:
        """From the gradient d of an output; a fault of the pass if no axis has the samples."""
        layer, within = call.layer, call.within
        own, here = sample_axis(layer, d), sample_axis(layer, d, k)
        candidates = [here] if here is not None else list(dict.fromkeys((self._axis, 0, 1)))
        axis = places.axis_of(within, (call, k), d, candidates)
        if axis is None and own not in (None, self._axis):
            within.faults[layer] = self._another(own, d, within)
        elif axis is None:
            within.faults[layer] = "it has the samples in other places than the loss"
        elif self._known.setdefault(layer, main := axis if own is None else own) != main:
            within.faults[layer] = "its samples are on one axis now, on another before"

    def of(
        self, call: Call, tensors: Sequence[Tensor], outputs: Iterable[int] = repeat(0)
    ) -> int | None:
        """The axis in what a layer was given and gave, the latter by places among its outputs."""
        layer, within, S = call.layer, call.within, call.within.S
        own = sample_axis(layer, tensors[0])
        if own in (None, self._axis) or layer in self._known or within.blind:
            known = self._known.get(layer) if own is None else own
            for axis in (self._axis, 0, 1) if known is None else (known,):
                at = (
                    (t, axis if (here := sample_axis(layer, t, k)) is None else here)
                    for t, k in zip(tensors, outputs, strict=False)
                )
                if all(t.dim() > place and t.shape[place] == S for t, place in at):
                    return axis
        if own is not None:
            within.faults[layer] = self._another(own, tensors[0], within)
        return None

    def side_by_side(self, call: Call, tensors: list[Tensor]) -> bool:
        """Whether the rows of a sample stand side by side on the first axis, and nothing else."""
        S = call.within.S or 1
        return (
            works_on_positions(call.layer)
            and self._known.get(call.layer) == 0
            and all(t.shape[0] % S == 0 for t in tensors)
        )

    def _another(self, own: int | None, tensor: Tensor, within: Pass) -> str:
        assert own is not None
        return (
            f"it has its samples on axis {own}, {tensor.shape[own]} of them, where the model has "
            f"{within.S} on axis {self._axis}: give it batch_first=True, or tell where the samples "
            "are by batch_dim="
        )
