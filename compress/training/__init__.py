"""Fitting a model to text, and keeping its zeros while it learns."""
