"""Proposals from shape alone: a box room whose contents are known, files of boxes, and what cannot be read."""

import json

import numpy as np
import pytest
from scipy import sparse

from allocentric.geometry.boxes import Box3D
from allocentric.geometry.proposals import propose, recall
from allocentric.readers.proposals import boxes_of_masks, read_proposals

THINGS = [
    Box3D((1.5, 1.2, 0.4), (1.0, 0.6, 0.8)),
    Box3D((3.6, 2.2, 0.5), (0.8, 0.8, 1.0), 0.6),
    Box3D((1.5, 1.2, 0.95), (0.3, 0.25, 0.3)),  # stands on the first
]


def surface(box: Box3D, step: float = 0.02) -> np.ndarray:
    """Points on the sides and the top of a box."""
    dx, dy, dz = box.size
    x, y, z = (np.arange(-s / 2, s / 2 + 1e-9, step) for s in box.size)
    faces = []
    for sign in (-1, 1):
        faces += [np.stack(np.meshgrid([sign * dx / 2], y, z), -1), np.stack(np.meshgrid(x, [sign * dy / 2], z), -1)]
    faces.append(np.stack(np.meshgrid(x, y, [dz / 2]), -1))
    points = np.concatenate([face.reshape(-1, 3) for face in faces])
    c, s = np.cos(box.yaw), np.sin(box.yaw)
    return points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + np.array(box.center)


def room(things=THINGS) -> np.ndarray:
    x, y, z = np.arange(0, 5, 0.025), np.arange(0, 4, 0.025), np.arange(0, 2.5, 0.025)
    shell = [np.stack(np.meshgrid(x, y, [h]), -1) for h in (0.0, 2.5)]
    shell += [np.stack(np.meshgrid(x, [w], z), -1) for w in (0.0, 4.0)] + [np.stack(np.meshgrid([w], y, z), -1) for w in (0.0, 5.0)]
    return np.concatenate([*(part.reshape(-1, 3) for part in shell), *(surface(thing) for thing in things)])


def test_things_are_found_and_the_room_itself_is_not():
    found = propose(room())
    overlap = recall(found, THINGS)
    assert (overlap > 0.55).all(), overlap
    assert all(max(box.size) < 2 for box in found)
    assert len(found) <= 8
    assert all(0 < box.score <= 1 for box in found)
    assert propose(room()) == found


def test_an_empty_room_has_no_proposals():
    assert propose(room([])) == []
    noise = np.random.default_rng(0).normal(0, 0.005, room([]).shape)
    assert propose(room([]) + noise) == [], "a sensor's noise is no thing on the wall"


def test_what_hangs_on_a_wall_and_lies_on_the_floor_is_found():
    flat = [
        Box3D((2.0, 0.02, 1.6), (0.9, 0.04, 0.6)),  # a picture
        Box3D((0.0225, 2.5, 1.0), (0.9, 0.045, 2.0), np.pi / 2),  # a door
        Box3D((3.3, 0.9, 0.0075), (1.6, 1.1, 0.015)),  # a rug
    ]
    overlap = recall(propose(room([*THINGS[:2], *flat])), flat)
    assert (overlap > 0.5).all(), overlap


def test_what_stands_against_a_wall_reaches_to_it():
    shelf = Box3D((2.5, 0.15, 0.6), (1.0, 0.3, 1.2))
    points = room([shelf])
    hidden = (np.abs(points[:, 0] - 2.5) < 0.49) & (points[:, 1] < 0.01) & (points[:, 2] > 0.01) & (points[:, 2] < 1.19)
    assert recall(propose(points[~hidden]), [shelf])[0] > 0.8


def test_the_front_of_a_wardrobe_is_no_wall():
    wardrobe = Box3D((2.5, 3.7, 1.05), (1.9, 0.6, 2.1))
    points = room([wardrobe])
    hidden = (np.abs(points[:, 0] - 2.5) < 0.94) & (points[:, 1] > 3.99) & (points[:, 2] > 0.01) & (points[:, 2] < 2.09)
    assert recall(propose(points[~hidden]), [wardrobe])[0] > 0.7


def test_recall_is_the_best_overlap():
    box = Box3D((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    half = Box3D((0.5, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert recall([half], [box, half]).tolist() == pytest.approx([1 / 3, 1.0])
    assert recall([], [box]).tolist() == [0.0]


def test_points_that_are_nothing_are_refused():
    with pytest.raises(ValueError, match="found none that are finite"):
        propose(np.full((4, 3), np.nan))


# ---- files ----


def test_files_of_boxes_are_read(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(
        json.dumps([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 0.5], {"center": [0, 0, 0], "size": [1, 1, 1], "label": "x"}])
    )
    assert read_proposals(path) == [
        Box3D((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        Box3D((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 0.5),
        Box3D((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.0, "x"),
    ]
    path.write_text(json.dumps({"scannet/scene0000_00": [[0.1, 0, 0, 1, 1, 1]], "scannet/scene0001_00": [[0.3, 0, 0, 1, 1, 1]]}))
    assert read_proposals(path, "scene0001_00")[0].center == (0.3, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"2 scenes\), expected those of 'elsewhere'"):
        read_proposals(path, "elsewhere")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nothing", "expected JSON"),
        ("[]", "with no boxes"),
        ("[[1, 2, 3]]", "box 0: found .* expected 6 or 7"),
        ("[[0, 0, 0, 1, 1, -1]]", "positive sides"),
        ('[{"center": [0, 0, 0]}]', "box 0: found"),
        ('[{"center": [0, 0, 0], "size": [1, 1, 1], "label": 5}]', "box 0: found label 5 and score None, expected text and"),
        ('[{"center": [0, 0, 0], "size": [1, 1, 1], "score": "high"}]', "score 'high', expected text and a finite number"),
        ('[{"center": [0, 0, 0], "size": [1, 1, 1], "score": NaN}]', "score nan, expected text and a finite number"),
        ('[{"center": [0, 0, 0], "size": [1, 1, 1], "score": [1, 2]}]', r"score \[1, 2\], expected text and a finite number"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, content, said):
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_proposals(tmp_path / "boxes.json")


def test_masks_become_boxes_around_their_vertices(tmp_path):
    vertices = np.array([[0, 0, 0], [2, 0, 0], [2, 4, 1], [9, 9, 9]], dtype=np.float32)
    sparse.save_npz(tmp_path / "a.mask.npz", sparse.csr_matrix(np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1]])))
    boxes = boxes_of_masks(tmp_path / "a.mask.npz", vertices)
    assert boxes == [Box3D((1.0, 2.0, 0.5), (2.0, 4.0, 1.0)), Box3D((5.5, 6.5, 5.0), (7.0, 5.0, 8.0))]
    assert len(boxes_of_masks(tmp_path / "a.mask.npz", vertices, most=1)) == 1
    with pytest.raises(ValueError, match="found masks of 4 vertices, expected 3"):
        boxes_of_masks(tmp_path / "a.mask.npz", vertices[:3])
