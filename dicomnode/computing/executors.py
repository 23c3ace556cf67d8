"""Where a case is computed: one `concurrent.futures.Executor`, whatever stands behind it.

::

    [dose] executor = "local"    child.py      a process of its own on this machine
    [dose] executor = "dask"     cluster.py    the same process, on a machine of a Dask cluster

Either way a job may hang, crash or be killed, and only its own future hears of it; `Future.cancel()`
kills it also while it runs; what is the world's fault comes as Transient, and as Unavailable where no
attempt was made at all.
"""

from __future__ import annotations

from concurrent.futures import Executor

from dicomnode.computing import compiled_code
from dicomnode.computing.child import ChildExecutor
from dicomnode.config import Config
from dicomnode.errors import ConfigurationError


def executor_for(config: Config) -> Executor:
    """The executor that [dose] executor names. Raises ConfigurationError where it is not installed."""
    if config.dose.executor == "local":
        compiled = compiled_code.folder_for_service(config.node.data_dir)
        return ChildExecutor(config.dose.memory_limit_gb, {compiled_code.VARIABLE: str(compiled)})
    try:
        # Here alone: a node that computes by itself neither has nor loads it.
        from dicomnode.computing.cluster import ClusterExecutor
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'[dose] executor is "dask", but {error.name} is not installed',
            "`pip install 'dicomnode[dask]'`, or set executor = \"local\"",
        ) from None
    return ClusterExecutor(config.cluster, config.dose.memory_limit_gb)
