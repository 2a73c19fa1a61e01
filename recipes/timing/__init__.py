"""Latency: arms that take turns in fresh processes, in a run and for `demitasse benchmark`."""
