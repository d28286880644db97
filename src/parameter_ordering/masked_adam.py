"""Adam that trains only what is not frozen."""

from torch.optim import Adam

from parameter_ordering.freezing import _ADAM, freeze


class MaskedAdam(Adam):
    """torch's own Adam, ready to be frozen in part."""

    def load_state_dict(self, state_dict: dict) -> None:
        freeze(self)
        super().load_state_dict(state_dict)


_ADAM.add(MaskedAdam)
