"""Weights rounded to fewer bits."""
