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


_NO_MEMORY = ("out of memory", "allocate memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, of the processor or of a card.

    PyTorch's allocator on a card has an exception of its own; the processor's, CUDA, cuDNN and cuBLAS raise
    RuntimeError, and only its text tells.
    """
    return isinstance(error, MemoryError) or any(said in str(error) for said in _NO_MEMORY)
