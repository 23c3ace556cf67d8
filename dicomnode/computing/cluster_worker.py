"""`dicomnode worker`: this machine as a worker of the Dask cluster of config.toml.

`dask worker` with the settings that a job of the node needs: one job at a time, in a process of its
own that has all cores, offered as [cluster] resources, with the cluster's certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from typing import Any

import dask
from distributed import Nanny

from dicomnode.computing.cluster import security
from dicomnode.config import Config
from dicomnode.errors import ConfigurationError, Unavailable

log = logging.getLogger(__name__)

_SETTINGS: dict[str, Any] = {
    # Dask runs many tasks on a machine, each on one core; here one job has them all.
    "distributed.nanny.pre-spawn-environ": {},
    # It looks at the memory of its own process alone; the job has [dose] memory_limit_gb.
    "distributed.worker.memory.terminate": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
}


def serve(config: Config) -> None:
    """Run until SIGTERM. Raises Unavailable when the scheduler is lost: start again (systemd does)."""
    if not config.cluster.scheduler:
        raise ConfigurationError("[cluster] scheduler is empty", "Name the scheduler: tls://HOST:8786")
    with dask.config.set(_SETTINGS):
        asyncio.run(_serve(config))


async def _serve(config: Config) -> None:
    settings = config.cluster
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    nanny = Nanny(
        settings.scheduler,
        nthreads=1,
        resources=settings.resources or None,
        security=security(settings),
        memory_limit=0,
        name=f"{socket.gethostname()}-{os.getpid()}",
        dashboard_address=None,
    )
    try:
        await asyncio.wait_for(nanny, settings.connect_timeout_s + 60)
    except (OSError, TimeoutError, RuntimeError) as error:
        raise Unavailable(
            f"the scheduler {settings.scheduler} does not answer: {error}",
            "Start it (`dask scheduler`), or correct [cluster] scheduler",
        ) from None
    log.info("a worker of %s", settings.scheduler)
    finished, asked = asyncio.ensure_future(nanny.finished()), asyncio.ensure_future(ended.wait())
    await asyncio.wait((finished, asked), return_when=asyncio.FIRST_COMPLETED)
    stopped = ended.is_set()
    for waiting in (finished, asked):
        waiting.cancel()
    with contextlib.suppress(OSError, TimeoutError):
        await nanny.close(timeout=10)
    if not stopped:
        raise Unavailable(
            f"the scheduler {settings.scheduler} was lost", "The service starts this worker again"
        )
