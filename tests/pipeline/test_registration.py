"""A rigid Spatial Registration moves a grid from one frame of reference into another."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputRejected
from pipeline.registration import registration
from pipeline.volume import Grid, Volume
from tests.pipeline.datasets import FRAME, OTHER_FRAME, ct_series, spatial_registration

TURN = np.array([[0.0, -1.0, 0.0, 5.0], [1.0, 0.0, 0.0, -7.0], [0.0, 0.0, 1.0, 11.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((4, 5, 6), (1.0, 2.0, 3.0), (3.0, 2.0, 1.0), frame_of_reference_uid=OTHER_FRAME)


def test_every_voxel_goes_where_the_matrix_sends_it() -> None:
    """PS3.3 C.20.2.1.1: the matrix takes the item's frame into the object's own."""
    motion = registration([spatial_registration(TURN)], OTHER_FRAME, FRAME)
    volume = Volume(np.arange(120, dtype=np.float32).reshape(4, 5, 6), GRID, "Bq/mL")
    moved = motion.move(volume)
    for index in ((0, 0, 0), (3, 4, 5), (1, 2, 3)):
        expected = TURN @ [*GRID.positions(index), 1.0]
        assert np.allclose(moved.grid.positions(index), expected[:3])
    assert moved.grid.frame_of_reference_uid == FRAME
    assert np.array_equal(moved.array, volume.array)


def test_it_works_in_the_other_direction_and_between_two_foreign_frames() -> None:
    back = registration([spatial_registration(TURN, source=FRAME, own=OTHER_FRAME)], OTHER_FRAME, FRAME)
    assert np.allclose(back.matrix, np.linalg.inv(TURN))
    third = spatial_registration(TURN, source=OTHER_FRAME, own="1.2.3")
    third.RegistrationSequence[1].FrameOfReferenceUID = FRAME
    assert np.allclose(registration([third], OTHER_FRAME, FRAME).matrix, TURN)


def test_matrices_of_one_item_are_applied_in_their_order() -> None:
    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 3
    dataset = spatial_registration(TURN)
    dataset.RegistrationSequence[0].MatrixRegistrationSequence.append(
        spatial_registration(shift).RegistrationSequence[0].MatrixRegistrationSequence[0]
    )
    assert np.allclose(registration([dataset], OTHER_FRAME, FRAME).matrix, shift @ TURN)


def test_frames_that_no_object_relates_are_refused() -> None:
    for objects in ([], [spatial_registration(TURN, source="1.2.3")]):
        with pytest.raises(InputRejected, match="no Spatial Registration relates"):
            registration(objects, OTHER_FRAME, FRAME)


def test_registrations_that_disagree_are_refused() -> None:
    with pytest.raises(InputRejected, match="differently"):
        registration([spatial_registration(TURN), spatial_registration(np.eye(4))], OTHER_FRAME, FRAME)


@pytest.mark.parametrize("scale", [(1.1, 1.1, 1.1, 1.0), (-1.0, 1.0, 1.0, 1.0)])
def test_scaling_and_mirroring_are_not_rigid(scale: tuple[float, ...]) -> None:
    with pytest.raises(InputRejected, match="not a rigid motion"):
        registration([spatial_registration(np.diag(scale))], OTHER_FRAME, FRAME)


def test_an_affine_type_and_another_class_are_refused() -> None:
    affine = spatial_registration(TURN)
    matrices = affine.RegistrationSequence[0].MatrixRegistrationSequence[0].MatrixSequence
    matrices[0].FrameOfReferenceTransformationMatrixType = "AFFINE"
    with pytest.raises(InputRejected, match="AFFINE"):
        registration([affine], OTHER_FRAME, FRAME)
    with pytest.raises(InputRejected, match="no rigid Spatial Registration"):
        registration(ct_series()[:1], OTHER_FRAME, FRAME)


def test_a_volume_of_another_frame_is_not_moved() -> None:
    motion = registration([spatial_registration(TURN)], OTHER_FRAME, FRAME)
    with pytest.raises(ValueError, match="lies in"):
        motion.moved(Grid((1, 1, 1), (0, 0, 0), (1, 1, 1), frame_of_reference_uid=FRAME))
