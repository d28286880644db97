"""Figures: every order that an experiment can compare has a name and a colour of its own."""

from parameter_ordering.paper.exhibits.figures import COLOURS, NAMES
from parameter_ordering.paper.orders.catalogue import ORDERS


def test_orders_are_told_apart():
    assert NAMES.keys() == COLOURS.keys() == ORDERS.keys()
    assert len(set(NAMES.values())) == len(set(COLOURS.values())) == len(ORDERS)
