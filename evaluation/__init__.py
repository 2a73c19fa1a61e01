"""Measurements, their intervals, the gate and the report: anything that scores tokens goes in, a verdict comes out."""
