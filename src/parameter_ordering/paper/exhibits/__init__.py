"""Figures and tables: what the book shows of its results."""
