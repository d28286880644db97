"""Which passes are put to the test, and how."""

import torch
from torch import Tensor, nn

from parameter_ordering.gradients import places
from parameter_ordering.gradients.axes import Axes
from parameter_ordering.gradients.recorder import Call, Edges, Pass, silent


class Trials:
    """Tests a pass where samples could have moved, and wholly where its graph is a new one.

    And now and then any: at the passes 1, 2, 3, 5, 9, 17, ...

    Args:
        axis: that of the samples.
        ensemble: of an ensemble the sums alone are tested.
    """

    def __init__(self, axis: int, ensemble: bool):
        self.axis, self.ensemble, self.axes = axis, ensemble, Axes(axis)
        self._known: set[int] = set()  # signatures of graphs
        self._passes = 0
        self._generator = torch.Generator().manual_seed(0)  # nobody else draws from it
        self._edges: tuple[Edges, Edges] = ({}, {})

    def begin(self, within: Pass, outputs: Edges, edges: Edges) -> None:
        """A forward pass is over."""
        self.forget()
        if within.S is None:
            return
        if self.ensemble:
            within.signature = hash((within.S, *within.calls.values()))
        else:
            within.signature = places.graph(within, (edge.node for edge in outputs.values()))
        due = (self._passes & (self._passes - 1)) == 0
        within.tested = due or within.signature not in self._known
        if (within.tested or within.moving) and not (self.ensemble or within.blind):
            within.weights = torch.rand(within.S, generator=self._generator) + 0.5
            own = set(outputs.values())  # where the layer's output is that of the model
            self._edges = outputs, {key: e for key, e in edges.items() if e not in own}

    def weigh(self, call: Call, k: int, d: Tensor, parameters: dict[str, nn.Parameter]) -> None:
        """A gradient has come to an output of the model or of a layer."""
        within, (outputs, edges) = call.within, self._edges
        try:
            if call is within.root and (call, k) in outputs:
                w: dict[str, Tensor] = {}
                if within.tested:
                    w |= {name: p for name, p in parameters.items() if p.requires_grad}
                with silent():
                    places.weigh(within, (call, k), d, outputs, edges, w, self.axis)
            elif (call, k) in edges:
                self.axes.learn(call, k, d)
        except RuntimeError:  # what forbids a second backward pass, as reentrant checkpointing
            within.weights, within.blind = None, True
            within.sums.clear()

    def passed(self, within: Pass) -> None:
        """All that could be tested has proved right."""
        self._known.add(within.signature)
        self._passes += 1

    def forget(self) -> None:
        """Let go of the graph."""
        self._edges = ({}, {})
