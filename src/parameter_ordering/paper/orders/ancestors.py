"""The scores of the systems that the paper cites, by the number under which it does."""

from collections.abc import Callable

from parameter_ordering.paper.orders.belsley import belsley
from parameter_ordering.paper.orders.dropout import dropout
from parameter_ordering.paper.orders.lasso import elastic_net, lasso
from parameter_ordering.paper.orders.scores import Scores
from parameter_ordering.paper.orders.training import Training
from parameter_ordering.paper.orders.variational_dropout import variational_dropout
from parameter_ordering.paper.orders.variational_relevance import variational_relevance

ANCESTORS: dict[str, Callable[[Training], Scores]] = {
    score.__name__: score
    for score in (
        lasso,  # [3]
        elastic_net,  # [4]
        dropout,  # [5]
        variational_dropout,  # [6]
        variational_relevance,  # [7]
        belsley,  # [8]
    )
}
