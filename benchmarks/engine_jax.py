"""The second phase of an experiment as a JAX program: nested vmap, lax.scan, optax.

One compiled scan over all steps with its state donated; models in the orientation W X^T, in which
XLA needs a third less time than in x W^T. Frozen parameters keep their values because Adam's update
is masked, at the price of one pass that XLA fuses with the others.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np


def train(share: dict, tick: Callable[[int], None]) -> None:
    """Train forever.

    Args:
        share: ``layers``, the sizes from input to output; ``loss``, by its name in
            ``paper.experiments.models``; ``runs``, ``variants``, ``objects``, ``S``, ``lr``;
            ``steps``, the length of the scan.
        tick: called after each scan.
    """
    import jax
    import jax.numpy as jnp
    import optax

    losses = {
        "squared_error": lambda h, y: (h[0] - y) ** 2,
        "binary_cross_entropy": lambda h, y: optax.sigmoid_binary_cross_entropy(h[0], y),
        "cross_entropy": lambda h, y: optax.softmax_cross_entropy_with_integer_labels(h.T, y),
    }
    layers, loss = share["layers"], losses[share["loss"]]
    adam = optax.adam(share["lr"])

    def model(w: list[dict], x: jax.Array) -> jax.Array:
        h = x.T
        for i, layer in enumerate(w):
            h = layer["weight"] @ (jax.nn.relu(h) if i else h)
            h = h + layer["bias"][:, None] if "bias" in layer else h
        return h

    def mean_loss(w: list[dict], x: jax.Array, y: jax.Array) -> jax.Array:
        return loss(model(w, x), y).mean()

    # Weights are (runs, variants, ...); x and y are (runs, ...), shared by the variants of a run.
    value_and_grad = jax.vmap(jax.vmap(jax.value_and_grad(mean_loss), (0, None, None)))

    def scan(state: tuple, frozen: list, x: jax.Array, y: jax.Array, rows: jax.Array) -> tuple:
        def step(state: tuple, rows: jax.Array) -> tuple:
            w, moments = state
            value, g = value_and_grad(w, x[rows], y[rows])
            update, moments = adam.update(g, moments, w)
            update = jax.tree.map(lambda u, still: jnp.where(still, 0, u), update, frozen)
            return (optax.apply_updates(w, update), moments), value.mean()

        return jax.lax.scan(step, state, rows)

    rng = np.random.default_rng(0)
    ensemble = (share["runs"], share["variants"])

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(0.1 * rng.standard_normal(shape, np.float32))

    def masks(shape: tuple) -> jax.Array:
        k = np.linspace(0, 1, ensemble[1]).reshape(1, -1, *[1] * (len(shape) - 2))
        return jnp.asarray(rng.random(shape) < k)

    w = []
    for n, out in pairwise(layers):
        w.append({"weight": draw(*ensemble, out, n)})
        if len(layers) > 2:
            w[-1]["bias"] = draw(*ensemble, out)
    frozen = jax.tree.map(lambda each: masks(each.shape), w)
    x = draw(share["objects"], layers[0])
    y = jnp.asarray(rng.integers(0, max(layers[-1], 2), share["objects"]))
    y = y if share["loss"] == "cross_entropy" else y.astype(jnp.float32)
    rows = jnp.asarray(rng.integers(0, len(x), (share["steps"], share["runs"], share["S"])))

    state = (w, adam.init(w))
    compiled = jax.jit(scan, donate_argnums=0).lower(state, frozen, x, y, rows).compile()
    while True:
        state, values = compiled(state, frozen, x, y, rows)
        assert np.isfinite(values).all()  # waits for the result, as the engine looks at its loss
        tick(share["steps"])
