"""The gradients g_i of the samples of a minibatch, beside its ordinary backward pass."""
