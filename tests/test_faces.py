"""The packages' faces: every name is there, and is brought when it is asked for, not before."""

import subprocess
import sys
from importlib import import_module

import pytest

FACES = ("compress", "export", "recipes")


@pytest.mark.parametrize("package", FACES)
def test_every_name_is_there_once_and_no_other(package: str) -> None:
    face = import_module(package)
    assert len(face.__all__) == len(set(face.__all__)) >= 9
    assert all(getattr(face, name) is not None for name in face.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        face.nothing  # noqa: B018 (the access itself is under test)


def test_a_timed_process_brings_no_stage_before_its_model() -> None:
    code = "import sys, recipes.measure.variant_process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    brought = set(done.stdout.split())
    assert "compress.stage" in brought
    assert not brought & {"compress.stages", "compress.distillation.stage", "evaluation.render", "torch", "jinja2"}
