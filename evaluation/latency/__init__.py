"""Latency: what is timed (`timing`), on how quiet a machine (`disturbance`), kept how (`samples`), and what follows
from it (`paired`, `figures`).

Nothing here knows of models: a variant is two callables.
"""

from evaluation.latency.figures import latency_measurements, measured, process_measurements, workload_measurements
from evaluation.latency.machine_load import Counters, Reading, disturbed
from evaluation.latency.paired import SAMPLES_FOR_PERCENTILE, blocks_to_decide, paired_ratio, percentiles
from evaluation.latency.record import Pending, Protocol, Session, Trial, Workload, WorkloadTimes
from evaluation.latency.timing import Variant, WorkloadTimer, pieces_of, steady_step, warm_up

__all__ = [
    "SAMPLES_FOR_PERCENTILE",
    "Counters",
    "Pending",
    "Protocol",
    "Reading",
    "Session",
    "Trial",
    "Variant",
    "Workload",
    "WorkloadTimer",
    "WorkloadTimes",
    "blocks_to_decide",
    "disturbed",
    "latency_measurements",
    "measured",
    "paired_ratio",
    "percentiles",
    "pieces_of",
    "process_measurements",
    "steady_step",
    "warm_up",
    "workload_measurements",
]
