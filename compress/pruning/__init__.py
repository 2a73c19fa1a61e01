"""Zeros in a model: which weights, how many of each linear, and what that costs."""
