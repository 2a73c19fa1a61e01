"""A report.json that lies on the disk, read and checked."""

from pathlib import Path

from pydantic import ValidationError

from compress.checkpoints.json_file import PlainFileError, parse_json, read_plain
from compress.digests import SEALED_LIMIT
from compress.errors import DemitasseError
from evaluation.report import REPORT, SCHEMA_VERSION, UNSEALED, Report, seal_of
from recipes.config.metrics import register_metrics


class ReportError(DemitasseError):
    """A report cannot be read; the message names the file and the reason."""


class ReportIntegrityError(ReportError):
    """A report is not what was written."""

    exit_code = 5


def read_report(path: str | Path) -> Report:
    """Read a report.json, or the one in a run folder.

    Raises:
        ReportError: there is none, or another version wrote it.
        ReportIntegrityError: it is not what was written.
    """
    register_metrics()
    file = Path(path) / REPORT if Path(path).is_dir() else Path(path)
    try:
        text = read_plain(file, SEALED_LIMIT)
    except PlainFileError as error:
        raise ReportError(f"{file}: {error}") from error
    _check_seal(file, text)
    try:
        report = Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ReportError(f"{file}: expected a report, but {place or 'the file'}: {first['msg']}") from error
    return report.model_copy(update={"folder": file.parent, "seal": ""})


ANEW = "run the recipe again in the same folder: what is stored is reused, and the report is written anew"


def _check_seal(file: Path, text: bytes) -> None:
    """Its seal holds, and this version wrote it."""
    try:
        told, content = text.decode(), parse_json(text, str(file))
    except ValueError as error:
        raise ReportIntegrityError(f"{file}: expected a report, but it is no JSON ({error}); {ANEW}") from error
    seal = content.get("seal") if isinstance(content, dict) else None
    version = content.get("schema_version", 1) if isinstance(content, dict) else None
    whole = isinstance(seal, str) and seal == seal_of(told.replace(f'"seal": "{seal}"', UNSEALED, 1))
    if version != SCHEMA_VERSION and (whole or seal is None):
        raise ReportError(f"{file}: expected a report of schema version {SCHEMA_VERSION}, got {version}; {ANEW}")
    if not whole:
        raise ReportIntegrityError(
            f"{file}: expected a report as it was written, but its seal does not hold: it was changed since; {ANEW}"
        )
