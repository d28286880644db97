"""Order the parameters of a torch model by the covariance of its gradients, and freeze them."""
