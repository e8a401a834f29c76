"""COLMAP text models (cameras.txt, images.txt) as far as readers need them: intrinsics, lens and pose of every picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from allocentric.readers.distortion import Lens
from allocentric.readers.posed import pinhole_matrix, rigid

# Names of the parameters after width and height. f stands for both focal lengths.
MODELS = {
    "SIMPLE_PINHOLE": "f cx cy", "PINHOLE": "fx fy cx cy", "SIMPLE_RADIAL": "f cx cy k1", "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2", "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
}  # fmt: skip


@dataclass(frozen=True)
class ColmapImage:
    """A picture of a model. `intrinsics` are pixels of a picture of `width` x `height`."""

    name: str
    width: int
    height: int
    intrinsics: np.ndarray
    lens: Lens
    camera_to_world: np.ndarray


def read_colmap(folder: Path) -> list[ColmapImage]:
    """The pictures of a text model, in the order of their names."""
    cameras = {}
    for words in _lines(folder / "cameras.txt"):
        name = words[1]
        if name not in MODELS:
            raise ValueError(f"{folder / 'cameras.txt'}: camera model {name} is not read, expected one of {', '.join(MODELS)}")
        names, numbers = MODELS[name].split(), [float(w) for w in words[4:]]
        if len(names) != len(numbers):
            raise ValueError(f"{folder / 'cameras.txt'}: {name}: expected {len(names)} parameters, found {len(numbers)}")
        value = dict(zip(names, numbers, strict=True))
        fx, fy = value.get("fx", value.get("f")), value.get("fy", value.get("f"))
        k = tuple(value[n] for n in names if n.startswith("k"))
        lens = Lens(k, (value.get("p1", 0.0), value.get("p2", 0.0)), fisheye=name == "OPENCV_FISHEYE")
        cameras[words[0]] = (int(words[2]), int(words[3]), pinhole_matrix(fx, fy, value["cx"], value["cy"]), lens)
    found = []
    for words in _lines(folder / "images.txt", every=2):
        if len(words) < 10 or words[8] not in cameras:
            raise ValueError(f"{folder / 'images.txt'}: expected an image with a known camera, found {' '.join(words)[:80]}")
        w, x, y, z, *t = (float(v) for v in words[1:8])
        rotation = Rotation.from_quat([x, y, z, w]).as_matrix().T
        pose = rigid(rotation, -rotation @ np.array(t))
        found.append(ColmapImage(" ".join(words[9:]), *cameras[words[8]], pose))
    return sorted(found, key=lambda image: image.name)


def _lines(file: Path, every: int = 1) -> list[list[str]]:
    """Lines as words, comments left out; of images.txt every second one, as the points of an image follow it (perhaps none)."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return [line.split() for line in lines[::every] if line.strip()]
