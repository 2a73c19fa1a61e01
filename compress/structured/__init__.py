"""Smaller shapes: heads, neurons, hidden channels and layers go."""
