"""The base of every config: frozen, keyword-only, and a knob that does not exist is refused with what was meant."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from compress.errors import DemitasseError
from compress.names import did_you_mean


class UnknownKnobError(DemitasseError, TypeError):
    """A config was given a knob that it does not have."""


class Knobs(BaseModel):
    """A config of named knobs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def __init__(self, **knobs: Any) -> None:
        """Check and take the knobs.

        Raises:
            UnknownKnobError: there is no such knob.
            ValueError: a knob's value does not fit (pydantic's ValidationError).
        """
        kind = type(self)
        known = [field.alias or name for name, field in kind.model_fields.items()]
        for name in knobs:
            if name not in known and name not in kind.model_fields:
                meant = did_you_mean(name, known)
                raise UnknownKnobError(f"{kind.__name__}: expected {', '.join(known)}, got {name!r}{meant}")
        super().__init__(**knobs)

    # pydantic would call it for every mapping that it reads, too, where it tells of unknown keys itself
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]
