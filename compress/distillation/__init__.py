"""A student learns what a teacher predicts."""
