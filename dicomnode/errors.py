"""Failures of the node.

::

    NodeError                  what happened, to which object or setting; and what to do
    ├── ConfigurationError     config.toml or a command's argument is wrong
    ├── Rejected               a person must act: the case is HELD with reason and remedy
    │   └── Incomplete         something is missing that may still arrive: wait, then hold
    ├── Transient              the world is at fault: try again with back-off
    │   ├── LedgerUnavailable  the database cannot be opened or stays locked
    │   │   └── RowRefused     it is there, and does not take these values
    │   └── Unavailable        what would compute is not there: waited for, no attempt counts
    └── IllegalTransition      a bug: an event reached a state that refuses it

`pipeline` has a small tree of its own (`pipeline.errors`): its InputRejected becomes Rejected and
its EngineFailed becomes Transient where the node calls it, in `compute`.
"""


class NodeError(Exception):
    """What happened and what to do about it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}" if self.remedy else self.reason


class ConfigurationError(NodeError):
    """A setting or a command's argument is wrong; the text names it."""


class Rejected(NodeError):
    """The study cannot be computed safely as it is; a person must act."""


class Incomplete(Rejected):
    """Something required has not arrived; it may still come.

    kinds: of which nothing came that could be used: "CT", "SPECT".
    """

    def __init__(self, reason: str, remedy: str = "", kinds: tuple[str, ...] = ()) -> None:
        super().__init__(reason, remedy)
        self.kinds = kinds


class Transient(NodeError):
    """It may work the next time."""


class LedgerUnavailable(Transient):
    """The database cannot be used at the moment."""


class RowRefused(LedgerUnavailable):
    """The database does not take these values; it would take others."""


class Unavailable(Transient):
    """What would do it is not there at the moment: nothing was tried."""


class IllegalTransition(NodeError):
    """A stage applied an event to a case in a state that does not allow it."""
