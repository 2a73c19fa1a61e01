"""A finished run logged to MLflow, by `demitasse run RECIPE --track URI` or later by `demitasse gate RUN --track URI`.

The report is written before anything is sent, so that a server that cannot be reached costs nothing but the log. What
ships is uploaded only where it is registered: if the verdict is PASS and no figure is too good.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from evaluation.render import write_report
from evaluation.report import BASELINE, Report
from recipes.engine.tracking_server import INSTALL, Logged, TrackingError, log_report
from recipes.formats.text_generation import FINAL
from recipes.runs.store import Store


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where a run is to be logged, if anywhere."""

    uri: str | None
    register: str | None

    def check(self) -> None:
        """Refuse before anything runs what cannot be logged.

        Raises:
            TrackingError: MLflow is missing, or a name is given and no server.
        """
        if self.register is not None and self.uri is None:
            raise TrackingError(f"--register {self.register}: expected --track URI beside it")
        if self.uri is not None and find_spec("mlflow") is None:
            raise TrackingError(f"--track {self.shown}: {INSTALL}")

    @property
    def shown(self) -> str:
        """The address, to be shown."""
        return self.without_password(self.uri or "")

    def without_password(self, text: str) -> str:
        """A text without the user and the password that stand in the address."""
        user, at, _ = urlsplit(self.uri or "").netloc.rpartition("@")
        return text.replace(user + at, "") if at else text


def log_run(report: Report, folder: Path, tracking: Tracking) -> str:
    """Log a run and say what came of it.

    Raises:
        TrackingError: the server refused, or cannot be reached; the message says how to log it later.
    """
    with TemporaryDirectory() as written:
        try:
            logged = log_report(
                report,
                write_report(report, Path(written)),
                bundle=_shipped(report, folder),
                register_as=tracking.register,
                tracking_uri=tracking.uri,
            )
        except TrackingError as error:
            reason = tracking.without_password(str(error))
            raise TrackingError(
                f"{tracking.shown}: not logged: {reason}; the report is in {folder}, and "
                f"`demitasse gate {folder} --track URI` logs it later"
            ) from error
    return f"logged to {tracking.shown} as run {logged.run_id}{_registration(logged, tracking)}"


def _shipped(report: Report, folder: Path) -> Path:
    """The folder that the report is about, by its key: what `final` points at may have been made since.

    Raises:
        TrackingError: it is gone.
        IntegrityError: it was changed.
    """
    row = report.final
    if row.kind == BASELINE:
        return folder / FINAL
    found = Store(folder / report.store).find(row.kind, row.key)
    if found is None:
        raise TrackingError(f"the artifact {row.name!r} is not in {folder} anymore; run the recipe again")
    return found.files


def _registration(logged: Logged, tracking: Tracking) -> str:
    if tracking.register is None:
        return ""
    if logged.version:
        return f"; registered as {tracking.register}, version {logged.version}"
    return f"; {tracking.register} was not registered: {logged.reason}"
