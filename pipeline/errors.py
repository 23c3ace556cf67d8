"""Failures of the numbers.

::

    PipelineError            what happened, to which object, and what to do
    ├── InputRejected        the input itself is at fault: a person must act
    └── EngineFailed         the machine is at fault (memory, device): trying again may help

Every one carries ``reason`` (what is wrong, naming the object) and ``remedy`` (what to do).
The node turns InputRejected into a HELD case and EngineFailed into another attempt.
"""


class PipelineError(Exception):
    """What happened and what to do about it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}" if self.remedy else self.reason


class InputRejected(PipelineError):
    """The images cannot be computed as they are; a person must act."""


class EngineFailed(PipelineError):
    """The computation broke although the input is sound."""
