"""Many inputs in pieces; a failing one is shrunk by hypothesis and saved."""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisWarning

from tests.fuzz.campaigns import Campaign
from tests.fuzz.target import Failure

# hypothesis keeps what it has drawn: pieces keep it small, and tell how far the run is.
_PIECE = 250
# Different failures of one campaign; after so many it is given up.
_ENOUGH = 10
# So many at a time, on the average: the node has several peers, and waits are shared.
_AT_ONCE = 6
# To make a failing input smaller.
_TRIES = 60


@dataclass
class Catch:
    """What a campaign came to."""

    campaign: str
    what: str
    inputs: int = 0
    seconds: float = 0.0
    failures: dict[str, Path] = field(default_factory=dict)
    """Signature → the smallest input that was found for it."""
    again: int = 0
    """Inputs that failed as one before."""

    def count(self, kind: str) -> int:
        """Different failures of a kind."""
        return sum(signature.startswith(f"{kind}:") for signature in self.failures)


def hunt(
    campaign: Campaign,
    inputs: int,
    run_seed: int,
    folder: Path,
    settle: Callable[[], None],
    tell: Callable[[Catch], None],
) -> Catch:
    """Try that many inputs. folder: where failing ones are saved. settle: called after each piece, may raise
    Failure; tell: hears of the progress."""
    catch = Catch(campaign.name, campaign.what)
    began = time.monotonic()
    piece = 0
    while catch.inputs < inputs and len(catch.failures) < _ENOUGH:
        before = catch.inputs
        _piece(
            campaign, min(_PIECE, inputs - catch.inputs), f"{run_seed} {campaign.name} {piece}", catch, folder
        )
        try:
            settle()
        except Failure as failure:
            _save(catch, folder, failure, b"")
        piece += 1
        catch.seconds = time.monotonic() - began
        tell(catch)
        assert catch.inputs > before
    return catch


def _piece(campaign: Campaign, count: int, text: str, catch: Catch, folder: Path) -> None:
    """Some inputs; goes on behind one that fails."""
    while count > 0:
        start, smallest = catch.inputs, _one_search(campaign, count, f"{text} {count}", catch)
        if smallest is None:
            return
        _save(catch, folder, *smallest)
        count -= catch.inputs - start


def _one_search(campaign: Campaign, count: int, text: str, catch: Catch) -> tuple[Failure, bytes] | None:
    """returns: the first failure that was not known, with the smallest input for it."""
    found: list[tuple[Failure, bytes]] = []
    tries = 0

    def some(inputs: list[bytes]) -> None:
        nonlocal tries
        tries += bool(found)
        if tries > _TRIES:
            return
        catch.inputs += len(inputs)
        try:
            campaign.check(inputs)
        except Failure as failure:
            if failure.signature in catch.failures:
                catch.again += 1
                return
            found.append((failure, _which(campaign, inputs, failure)))
            raise

    test = settings(
        max_examples=max(1, count // _AT_ONCE),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
    )(given(st.lists(campaign.inputs, min_size=1, max_size=2 * _AT_ONCE))(some))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    # What fails once and not again is a failure too: `found` has it.
    with contextlib.suppress(Failure, Flaky, BaseExceptionGroup), warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # long inputs have a long repr
        seed(number)(test)()
    return found[-1] if found else None


def _which(campaign: Campaign, inputs: list[bytes], failure: Failure) -> bytes:
    """The one of several inputs that fails when it is tried alone; the last, should none of them."""
    for content in inputs if len(inputs) > 1 else ():
        try:
            campaign.check([content])
        except Failure as again:
            if again.signature == failure.signature:
                return content
    return inputs[-1]


def _save(catch: Catch, folder: Path, failure: Failure, content: bytes) -> None:
    if failure.signature in catch.failures:
        catch.again += 1
        return
    folder.mkdir(parents=True, exist_ok=True)
    known = {text.read_text(encoding="utf-8").partition("\n")[0]: text for text in folder.glob("*.txt")}
    if failure.signature in known:
        path = known[failure.signature].with_suffix(".bin")
    else:
        path = folder / f"{catch.campaign}-{hashlib.sha256(content).hexdigest()[:12]}.bin"
        path.write_bytes(content)
        path.with_suffix(".txt").write_text(f"{failure.signature}\n\n{failure}\n", encoding="utf-8")
    catch.failures[failure.signature] = path
    print(f"    FAILED {path.name}: {failure.signature}", flush=True)
