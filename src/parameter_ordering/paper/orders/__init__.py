"""Scores of parameters, and the orders made of them."""
