"""A stage that fails on one of several processes, before the others can open a group with it or inside of that."""

from compress.stage import Stage, StageConfig, StageError, StageInput, StageMetadata


class FailConfig(StageConfig):
    """Which process fails, and when."""

    rank: int
    early: bool = False


def fail(config: FailConfig, given: StageInput) -> StageMetadata:
    from compress.training.distributed import barrier, together
    from compress.training.launch import launch

    fails = launch().rank == config.rank
    if fails and config.early:
        raise StageError("this process has never begun")
    with together("cpu"):
        if fails:
            raise StageError("this process has lost heart")
        barrier()
    return {}


FAIL = Stage(
    kind="fail",
    summary="fail on one process",
    version=1,
    config=FailConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=fail,
    parallel=True,
)
STAGES = {"fail": FAIL}
