"""Rooms that several test files look at."""

import pytest

from allocentric.scenes import AnnotatedScene
from allocentric.train.shards import RoomShards, RoomsSpec, write_rooms


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> RoomShards:
    """Three rooms of four small frames, seeds 50 to 52."""
    folder = tmp_path_factory.mktemp("rooms")
    assert list(write_rooms(folder, RoomsSpec(3, first_seed=50, frames=4, height=56, width=84), workers=1)) == [(0, 3), (3, 3)]
    return RoomShards(folder)


@pytest.fixture(scope="session")
def scene(shards) -> AnnotatedScene:
    """What is true of the first of them."""
    return shards[0].scene
