"""A run that was stopped, on disk: what it needs to go on as if it had never stopped.

One file, written beside its place and moved there when it is durable: a crash while writing leaves the older
one.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.montecarlo.batches import Estimate

FORMAT = 1


def save(path: Path, inputs_sha256: str, estimates: tuple[Estimate, ...]) -> None:
    """Write the state of a run. inputs_sha256: see `inputs_hash`."""
    arrays: dict[str, NDArray[np.generic]] = {}
    facts = []
    for number, estimate in enumerate(estimates):
        arrays[f"total{number}"], arrays[f"spread{number}"] = estimate.total, estimate.spread
        facts.append(
            {
                "sizes": estimate.sizes,
                "regions": estimate.regions,
                "account": estimate.account.tolist(),
                "times": [estimate.seconds, estimate.histories_s, estimate.per_second],
            }
        )
    state = {"format": FORMAT, "inputs": inputs_sha256, "estimates": facts}
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        np.savez(file, state=np.array(json.dumps(state)), **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load(path: Path, inputs_sha256: str) -> tuple[Estimate, ...]:
    """The estimates of a stopped run.

    raises: InputRejected when the file is damaged, or is of other inputs, another seed, another limit of
        decays or another version of the transport.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            state = json.loads(str(file["state"]))
            if state["format"] != FORMAT or state["inputs"] != inputs_sha256:
                raise InputRejected(
                    f"the checkpoint {path} is of another run or version: "
                    "images, nuclide, regions, seed, decays or software differ",
                    "Remove it to begin anew, or give the inputs that it was made with",
                )
            return tuple(
                Estimate(
                    file[f"total{number}"],
                    file[f"spread{number}"],
                    facts["sizes"],
                    facts["regions"],
                    np.array(facts["account"]),
                    *facts["times"],
                )
                for number, facts in enumerate(state["estimates"])
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputRejected(
            f"the checkpoint {path} cannot be read ({error})", "Remove it to begin anew"
        ) from error


def inputs_hash(parts: Iterable[str | NDArray[np.generic]]) -> str:
    """SHA-256 over texts and arrays, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
