"""Failures of the networks: what happened, to which file or array, and what to do."""


class ModelRejected(Exception):
    """Weights, an architecture or an input that no network can be run with; a person must act.

    reason: what is wrong, naming the object. remedy: what to do.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}" if self.remedy else self.reason
