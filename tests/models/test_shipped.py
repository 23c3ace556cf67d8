"""What we ship is whole, small, and says where it comes from."""

from __future__ import annotations

import pytest

from models import weights
from models.dblurdosenet import build


@pytest.mark.parametrize("name", weights.shipped())
def test_shipped_weights_are_whole(name: str) -> None:
    found = weights.load(weights.find(name))
    manifest = found.manifest
    assert found.network.parameters_in_all == build(manifest.architecture, manifest.middle).parameters_in_all
    assert manifest.corrects_dvk
    assert manifest.training["patients"] > 0
    assert {"body", "roi"} <= set(manifest.ood)
    assert all(low < 1.1 and high > 0.9 and low < high for low, high in manifest.ood.values())


@pytest.mark.parametrize("name", weights.shipped())
def test_they_are_small_and_have_a_card(name: str) -> None:
    folder = weights.find(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    card = (folder / weights.CARD).read_text(encoding="utf-8")
    assert weights.manifest_of(folder).sha256 in card
    assert "Intended use" in card


def test_something_is_shipped() -> None:
    assert weights.shipped()
