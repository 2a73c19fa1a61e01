"""A run that is killed in the middle, without a process to kill: its progress bar raises at one step."""

from compress.stage import Silent


class KilledError(Exception):
    """Stands for the signal that ends a process in the middle of training."""


class KillAt(Silent):
    """A progress that ends the run at one step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError
