"""Latency: what is timed (`timing`), on how quiet a machine (`disturbance`), kept how (`samples`), and what follows
from it (`paired`, `figures`).

Nothing here knows of models: an arm is two callables.
"""

from evaluation.latency.figures import cell_measurements, latency_measurements, measured, process_measurements
from evaluation.latency.machine_load import Counters, Reading, disturbed
from evaluation.latency.paired import SAMPLES_FOR_PERCENTILE, blocks_to_decide, paired_ratio, percentiles
from evaluation.latency.record import Cell, CellTimes, Protocol, Session, Turn
from evaluation.latency.timing import Arm, CellTimer, pieces_of, steady_step, warm_up

__all__ = [
    "SAMPLES_FOR_PERCENTILE",
    "Arm",
    "Cell",
    "CellTimer",
    "CellTimes",
    "Counters",
    "Protocol",
    "Reading",
    "Session",
    "Turn",
    "blocks_to_decide",
    "cell_measurements",
    "disturbed",
    "latency_measurements",
    "measured",
    "paired_ratio",
    "percentiles",
    "pieces_of",
    "process_measurements",
    "steady_step",
    "warm_up",
]
