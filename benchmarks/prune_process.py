"""One stage in a process of its own, so that its time and its peak memory are its own.

    python -m benchmarks.prune_process KIND SOURCE OUT TEXT THREADS KNOBS_AS_JSON

prints as its last line {"parts": {name: {"seconds", "peak"}}, "metadata": {...}} (marks.py), imports apart.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.marks import Marks


def main() -> None:
    """Run the stage."""
    kind, source, out, text, threads, knobs = sys.argv[1:]
    marks = Marks()
    marks.imports("torch", "transformers", "tokenizers", "pyarrow")
    import torch

    torch.set_num_threads(int(threads))
    from compress.stage import StageInput
    from compress.text import TextSource
    from recipes.config.stages import STAGES

    stage = STAGES[kind]
    with TemporaryDirectory() as scratch:
        given = StageInput(
            source=Path(source), out=Path(out), scratch=Path(scratch), calibration_text=TextSource(file=Path(text))
        )
        metadata = stage.run(stage.config(**json.loads(knobs)), given)
    marks.done("pruned")
    print(json.dumps({"parts": marks.parts, "metadata": metadata}))


if __name__ == "__main__":
    main()
