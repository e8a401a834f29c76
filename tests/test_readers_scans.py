"""Readers of data sets: files written byte by byte from each format's description come back as the geometry they hold."""

import json
import pickle
import shutil
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import av
import lzfse
import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from allocentric.cli import main
from allocentric.readers import count_frames, layout_of, open_scene, open_scenes, open_views
from allocentric.readers.arkitscenes import pose_at
from allocentric.readers.embodiedscan import open_embodiedscan, read_pickle
from allocentric.readers.faults import named
from allocentric.readers.scannet import open_scannet_scene, read_label_map, read_split
from allocentric.readers.scannetpp import DepthStream, lz4_block
from allocentric.readers.sens import SensFile
from allocentric.scenes import save_scene

W, H, DW, DH = 16, 12, 8, 6  # colour and depth
K = np.array([[14.0, 0, 8], [0, 14.0, 6], [0, 0, 1]])
DEPTH_K = np.diag([0.5, 0.5, 1.0]) @ K


def shade(i: int, width: int = W, height: int = H) -> Image.Image:
    """A plain picture; its grey says which."""
    return Image.new("RGB", (width, height), (10 * i, 10 * i, 10 * i))


def jpeg(i: int) -> bytes:
    file = BytesIO()
    shade(i).save(file, "JPEG", quality=95)
    return file.getvalue()


def pose(i: int) -> np.ndarray:
    """A camera at (i / 2, 1, 1.5) that has turned by i / 10 about z and looks level."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([0, 0, i / 10]).as_matrix() @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    matrix[:3, 3] = (i / 2, 1, 1.5)
    return matrix


def greys(views) -> list[int]:
    return [round(float(frame.float().mean()) / 10) for frame in views.frames]


def same(found, expected, atol: float = 1e-5) -> bool:
    return np.allclose(np.asarray(found), np.asarray(expected), atol=atol)


def ramp() -> np.ndarray:
    """Depth in millimetres: 1000 and 10 more each column; nothing measured in the first pixel."""
    depth = np.tile(1000 + 10 * np.arange(DW, dtype=np.uint16), (DH, 1))
    depth[0, 0] = 0
    return depth


def write_ply(path: Path, vertices: np.ndarray) -> None:
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
    header += "property float x\nproperty float y\nproperty float z\n"
    header += "property uchar red\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    body = b"".join(struct.pack("<fffB", *vertex, 7) for vertex in vertices)
    path.write_bytes(header.encode() + body + struct.pack("<Biii", 3, 0, 1, 2))


# ------------------------------------------------------------------------------------------------------------- ScanNet


def sens_bytes(n: int = 5, lost: tuple[int, ...] = (2,), color: int = 2, depth: int = 1, version: int = 4) -> bytes:
    k, depth_k = np.eye(4), np.eye(4)
    k[:3, :3], depth_k[:3, :3] = K, DEPTH_K
    data = struct.pack("<I", version) + struct.pack("<Q", 4) + b"fake"
    for matrix in (k, np.eye(4), depth_k, np.eye(4)):
        data += struct.pack("<16f", *matrix.ravel())
    data += struct.pack("<ii", color, depth) + struct.pack("<IIII", W, H, DW, DH) + struct.pack("<f", 1000.0) + struct.pack("<Q", n)
    for i in range(n):
        matrix = np.full((4, 4), -np.inf) if i in lost else pose(i)
        picture = jpeg(i) if color == 2 else np.full((H, W, 3), 10 * i, dtype=np.uint8).tobytes()
        raw = ramp().astype("<u2").tobytes()
        packed = zlib.compress(raw) if depth == 1 else raw
        data += struct.pack("<16f", *matrix.ravel()) + struct.pack("<QQQQ", 33 * i, 33 * i, len(picture), len(packed))
        data += picture + packed
    return data + struct.pack("<Q", 0)


ALIGN = np.array([[0, -1, 0, 2], [1, 0, 0, -1], [0, 0, 1, 0.5], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(("color", "depth"), [(2, 1), (0, 0)])
def test_sens(tmp_path, color, depth):
    folder = tmp_path / "scene0000_00"
    folder.mkdir()
    (folder / "scene0000_00.sens").write_bytes(sens_bytes(color=color, depth=depth))
    assert layout_of(folder) == layout_of(folder / "scene0000_00.sens") == "scannet"
    views = open_views(folder)
    assert views.indices.tolist() == [0, 1, 3, 4] and greys(views) == [0, 1, 3, 4]  # frame 2 was lost
    assert same(views.camera_to_world, [pose(i) for i in (0, 1, 3, 4)])
    assert same(views.intrinsics[0], K) and views.scale == "metric"
    assert same(views.depth[0, 5], [1 + 0.01 * (c // 2) for c in range(W)]) and (views.depth[0, :2, :2] == 0).all()
    (folder / "scene0000_00.txt").write_text(f"colorWidth = 16\naxisAlignment = {' '.join(map(str, ALIGN.ravel()))} \n")
    assert same(open_views(folder, [1]).camera_to_world[0], ALIGN @ pose(1))
    small = open_views(folder, 2, max_side=8)
    assert small.frames.shape == (2, 3, 6, 8) and same(small.intrinsics[0], DEPTH_K) and same(small.depth[0], ramp() / 1000)
    with pytest.raises(ValueError, match=r"frame 2 has values that are not finite"):
        open_views(folder, drop_bad_poses=False)


def test_sens_is_streamed(tmp_path, monkeypatch):
    """Opening reads headers; a frame reads its own two payloads."""
    path = tmp_path / "a.sens"
    path.write_bytes(sens_bytes())
    counted = []
    read = SensFile._read
    monkeypatch.setattr(SensFile, "_read", lambda self, file, size, what: counted.append(size) or read(self, file, size, what))
    sens = SensFile(path)
    assert max(counted) == 256 and len(sens) == 5
    counted.clear()
    sens.color(3), sens.depth(3)
    assert counted == [len(jpeg(3)), len(zlib.compress(ramp().tobytes()))]


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (lambda d: sens_bytes(version=3), "expected a .sens file of version 4, found version 3"),
        (lambda d: d[:700], "truncated"),
        (lambda d: d[:200], "truncated in the header"),
        (lambda d: sens_bytes(n=0), "no frames"),
        (lambda d: sens_bytes(lost=(0, 1, 2, 3, 4)), "none of the 5 poses can be used"),
        (lambda d: d[:272] + struct.pack("<ii", 2, 2) + d[280:], "occi_ushort"),
        (lambda d: b"\x04\0\0\0" + b"\xff" * 200, "not a .sens file"),
    ],
)
def test_broken_sens_is_refused_by_name(tmp_path, fault, match):
    path = tmp_path / "broken.sens"
    path.write_bytes(fault(sens_bytes()))
    with pytest.raises(ValueError, match=match) as error:
        open_views(path)
    assert "broken.sens" in str(error.value) and "\n" not in str(error.value)


def exported(folder: Path, n: int = 4) -> Path:
    for part in ("color", "depth", "pose", "intrinsic"):
        (folder / part).mkdir(parents=True)
    for name, k in (("color", K), ("depth", DEPTH_K)):
        matrix = np.eye(4)
        matrix[:3, :3] = k
        np.savetxt(folder / "intrinsic" / f"intrinsic_{name}.txt", matrix)
    for i in range(n):
        shade(i).save(folder / "color" / f"{10 * i}.jpg", quality=95)
        Image.fromarray(ramp()).save(folder / "depth" / f"{10 * i}.png")
        np.savetxt(folder / "pose" / f"{10 * i}.txt", pose(i))
    return folder


def test_scannet_exported_frames(tmp_path):
    folder = exported(tmp_path / "scene0000_00")
    np.savetxt(folder / "pose" / "10.txt", np.full((4, 4), np.nan))
    (folder / "pose" / "20.txt").unlink()  # a frame that was not exported whole
    views = open_views(folder)
    assert layout_of(folder) == "scannet" and views.indices.tolist() == [0, 30] and greys(views) == [0, 3]
    assert same(views.camera_to_world[1], pose(3)) and same(views.depth[1, 5, ::2], 1 + 0.01 * np.arange(DW))
    assert open_views(folder, 1).indices.tolist() == [0]
    (folder / "intrinsic" / "intrinsic_color.txt").unlink()
    with pytest.raises(ValueError, match=r"intrinsic_color\.txt: the intrinsics are missing"):
        open_views(folder)


def test_scannet_posed_images(tmp_path):
    folder = tmp_path / "posed_images" / "scene0011_00"
    folder.mkdir(parents=True)
    np.savetxt(folder / "intrinsic.txt", K)
    np.savetxt(folder / "depth_intrinsic.txt", DEPTH_K)
    for i in range(3):
        shade(i).save(folder / f"{10 * i:05d}.jpg", quality=95)
        Image.fromarray(ramp()).save(folder / f"{10 * i:05d}.png")
        np.savetxt(folder / f"{10 * i:05d}.txt", pose(i))
    views = open_views(folder)
    assert layout_of(folder) == "scannet" and views.indices.tolist() == [0, 10, 20] and greys(views) == [0, 1, 2]
    assert same(views.camera_to_world, [pose(i) for i in range(3)])
    scans = tmp_path / "scans" / "scene0011_00"  # the alignment of the same scene, where the annotation is kept
    scans.mkdir(parents=True)
    (scans / "scene0011_00.txt").write_text(f"axisAlignment = {' '.join(map(str, ALIGN.ravel()))}")
    assert same(open_views(folder).camera_to_world[2], ALIGN @ pose(2))
    (folder / "depth_intrinsic.txt").unlink()
    Image.fromarray(np.full((6, 6), 1000, dtype=np.uint16)).save(folder / "00010.png")
    with pytest.raises(ValueError, match=r"depth of 00010\.jpg is 6x6, colour 16x12"):
        open_views(folder)


def scan(root: Path, align: str | None = None) -> Path:
    """A square floor (1 m spacing), a chair of two segments and a wall."""
    folder = root / "scene0001_00"
    folder.mkdir(parents=True)
    floor = [(x, y, 0.0) for x in range(5) for y in range(4)]
    chair = [(1, 1, 0), (1.5, 1, 0), (1, 2, 0.25), (1.5, 2, 0.9)]
    wall = [(0, 0, 0), (4, 0, 2)]
    write_ply(folder / "scene0001_00_vh_clean_2.ply", np.array(floor + chair + wall, dtype=float))
    segments = [7] * len(floor) + [3, 3, 9, 9] + [5, 5]
    (folder / "scene0001_00_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": segments}))
    groups = [
        {"id": 0, "objectId": 0, "segments": [7], "label": "floor"},
        {"id": 1, "objectId": 1, "segments": [9, 3], "label": "office chair"},
        {"id": 2, "objectId": 2, "segments": [5], "label": "wall"},
    ]
    (folder / "scene0001_00.aggregation.json").write_text(json.dumps({"sceneId": "scannet.scene0001_00", "segGroups": groups}))
    if align is not None:
        (folder / "scene0001_00.txt").write_text(align)
    return folder


def test_scannet_boxes_are_in_the_aligned_frame(tmp_path):
    folder = scan(tmp_path, f"axisAlignment = {' '.join(map(str, ALIGN.ravel()))}\nsceneType = Office")
    scene = open_scene(folder)
    assert scene.name == "scene0001_00" and [(o.id, o.label) for o in scene.objects] == [(2, "office chair")]
    # x' = 2 - y, y' = x - 1, z' = z + 0.5
    assert same(scene.objects[0].box.center, (0.5, 0.25, 0.95)) and same(scene.objects[0].box.size, (1.0, 0.5, 0.9))
    assert scene.room_area == pytest.approx(12.0) and len(scene.floor) == 1
    assert same(scene.floor[0].min(0), (-1, -1)) and same(scene.floor[0].max(0), (2, 3))
    assert len(open_scannet_scene(folder, skip=()).objects) == 3
    names = {"office chair": "chair", "floor": "floor", "wall": "wall"}
    assert open_scannet_scene(folder, labels=names).objects[0].label == "chair"
    with pytest.raises(ValueError, match="object 1 is labelled 'office chair', which the label map does not know"):
        open_scannet_scene(folder, labels={"floor": "floor", "wall": "wall"})


def test_scannet_alignment_missing_or_broken(tmp_path):
    with pytest.raises(ValueError, match=r"scene0001_00\.txt: no such file; it holds the axis alignment"):
        open_scene(scan(tmp_path / "a"))
    assert same(open_scene(tmp_path / "a" / "scene0001_00", axis_alignment=np.eye(4)).objects[0].box.center, (1.25, 1.5, 0.45))
    unaligned = open_scene(scan(tmp_path / "test", "sceneType = Office\n"))  # test scans have none
    assert same(unaligned.objects[0].box.center, (1.25, 1.5, 0.45))
    with pytest.raises(ValueError, match="axisAlignment: expected 16 numbers, found 3"):
        open_scene(scan(tmp_path / "b", "axisAlignment = 1 0 0\n"))
    folder = scan(tmp_path / "c", "sceneType = Office\n")
    (folder / "scene0001_00_vh_clean_2.0.010000.segs.json").write_text('{"segIndices": [1, 2]}')
    with pytest.raises(ValueError, match="the mesh has 26 vertices, its segmentation 2"):
        open_scene(folder)
    (folder / "scene0001_00.aggregation.json").write_text('{"segGroups": [')
    with pytest.raises(ValueError, match=r"aggregation\.json: not valid JSON"):
        open_scene(folder)


def test_scannet_label_map_and_splits(tmp_path):
    tsv = tmp_path / "scannetv2-labels.combined.tsv"
    tsv.write_text(
        "id\traw_category\tcategory\tcount\tnyu40id\teigen13id\tnyuClass\tnyu40class\n"
        '5\toffice chair\tchair\t9\t5\t4\tchair\tchair\n6\t24" monitor\tmonitor\t1\t40\t7\tmonitor\totherprop\n'
    )
    assert read_label_map(tsv) == {"office chair": "chair", '24" monitor': "otherprop"}
    assert read_label_map(tsv, "nyu40id") == {"office chair": "5", '24" monitor': "40"}
    with pytest.raises(ValueError, match="expected one of raw, category, nyu40, nyu40id"):
        read_label_map(tsv, "nyu13")
    (tmp_path / "val.txt").write_text("scene0011_00\nscene0011_01\n\n")
    assert read_split(tmp_path / "val.txt") == ["scene0011_00", "scene0011_01"]
    (tmp_path / "val.txt").write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="a is named twice"):
        read_split(tmp_path / "val.txt")


# ----------------------------------------------------------------------------------------------------------- ScanNet++


def obb(center, lengths, yaw: float = 0.0) -> dict:
    c, s = np.cos(yaw), np.sin(yaw)
    return {"centroid": list(center), "axesLengths": list(lengths), "normalizedAxes": [c, s, 0, -s, c, 0, 0, 0, 1]}


def lz4_pack(data: bytes) -> bytes:
    """Literals only, but for a match that repeats the last two bytes of the first hundred: 'abab...'."""
    n = len(data) - 100
    head = bytes([0xF0 | (15 if n - 15 - 4 >= 0 else 0), 100 - 15]) + data[:100] + struct.pack("<H", 2)
    rest = n - 5 - 4 - 15  # the last five bytes are literals
    return head + b"\xff" * (rest // 255) + bytes([rest % 255]) + bytes([5 << 4]) + data[-5:]


def test_lz4_blocks():
    data = b"\x10\x27" * 4000
    assert lz4_block(lz4_pack(data), len(data)) == data
    assert lz4_block(b"\x50hello", 5) == b"hello"
    assert lz4_block(b"\x11a\x01\x00\x50bcdef", 11) == b"aaaaaabcdef"  # a match that reaches into itself
    for broken in (b"\x50hell", b"\x11a\x05\x00\x00", b"\xf0"):
        with pytest.raises(ValueError, match="not an LZ4 block"):
            lz4_block(broken, 11)


@pytest.mark.parametrize("packing", ["whole", "deflate", "lz4"])
def test_scannetpp_depth_stream(tmp_path, packing):
    frames = [np.full((192, 256), 1.0 + i / 2, dtype="<f4") for i in range(3)]
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    if packing == "whole":
        data = squeeze.compress(b"".join(f.tobytes() for f in frames)) + squeeze.flush()
    elif packing == "deflate":
        packed = [(c := zlib.compressobj(wbits=-zlib.MAX_WBITS)).compress(f.tobytes()) + c.flush() for f in frames]
        data = b"".join(struct.pack("<I", len(p)) + p for p in packed)
    else:
        packed = [lz4_pack((f * 1000).astype("<u2").tobytes()) for f in frames]
        data = b"".join(struct.pack("<I", len(p)) + p for p in packed)
    (tmp_path / "depth.bin").write_bytes(data)
    stream = DepthStream(tmp_path / "depth.bin")
    assert len(stream) == 3
    assert [float(stream.read(i).mean()) for i in (1, 2, 0)] == [1.5, 2.0, 1.0] and stream.read(0).shape == (192, 256)


def write_iphone(scene: Path, n: int = 4) -> Path:
    folder = scene / "iphone"
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    records = {}
    for i in range(n):
        name = f"frame_{10 * i:06d}"
        shade(i).save(folder / "rgb" / f"{name}.jpg", quality=95)
        Image.fromarray(ramp()).save(folder / "depth" / f"{name}.png")
        records[name] = {"timestamp": i / 6, "pose": np.eye(4).tolist(), "aligned_pose": pose(i).tolist(), "intrinsic": K.tolist()}
    (folder / "pose_intrinsic_imu.json").write_text(json.dumps(records))
    return folder


def write_dslr(scene: Path, model: str = "OPENCV_FISHEYE 16 12 14 14 8 6 0.1 0 0 0", images: str = "resized_images") -> Path:
    folder = scene / "dslr"
    (folder / "colmap").mkdir(parents=True)
    (folder / images).mkdir()
    lines = ["# comment"]
    for i in range(3):
        w2c = np.linalg.inv(pose(i))
        x, y, z, w = Rotation.from_matrix(w2c[:3, :3]).as_quat()
        lines += [f"{i + 1} {w} {x} {y} {z} {' '.join(map(str, w2c[:3, 3]))} 1 DSC0000{i}.JPG", "" if i else "1.0 2.0 -1"]
        if i < 2:  # the third is held back
            shade(i + 1).save(folder / images / f"DSC0000{i}.JPG", quality=95)
    (folder / "colmap" / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "colmap" / "cameras.txt").write_text(f"# comment\n1 {model}\n")
    return folder


def test_scannetpp_iphone(tmp_path):
    scene = tmp_path / "0a5c013435"
    write_iphone(scene)
    views = open_views(scene)
    assert layout_of(scene) == "scannet++" and views.indices.tolist() == [0, 10, 20, 30] and greys(views) == [0, 1, 2, 3]
    assert same(views.camera_to_world, [pose(i) for i in range(4)]) and same(views.intrinsics[2], K)
    assert same(views.depth[0, 5, ::2], 1 + 0.01 * np.arange(DW)) and same(views.times, [0, 1 / 6, 2 / 6, 3 / 6])
    write_dslr(scene)
    assert len(open_views(scene)) == 4 and len(open_views(scene, device="dslr")) == 2
    with pytest.raises(ValueError, match="expected device iphone or dslr, found 'kinect'"):
        open_views(scene, device="kinect")


def test_scannetpp_dslr(tmp_path):
    scene = tmp_path / "0a5c013435"
    folder = write_dslr(scene)
    views = open_views(scene)
    assert views.depth is None and views.indices.tolist() == [0, 1] and same(views.camera_to_world, [pose(0), pose(1)])
    assert same(views.intrinsics[0], K) and same(views.frames[1, :, 6, 8], 20, atol=2)
    (folder / "resized_images").rename(folder / "resized_undistorted_images")
    (folder / "nerfstudio").mkdir()
    (folder / "nerfstudio" / "transforms_undistorted.json").write_text(json.dumps({"fl_x": 9.0, "fl_y": 9.0, "cx": 8, "cy": 6}))
    assert open_views(scene).intrinsics[0, 0, 0] == 9.0 and greys(open_views(scene)) == [1, 2]
    (folder / "colmap" / "cameras.txt").write_text("1 THIN_PRISM_FISHEYE 16 12 1 1 1 1 0 0 0 0 0 0 0 0\n")
    with pytest.raises(ValueError, match="camera model THIN_PRISM_FISHEYE is not read"):
        open_views(scene)


def test_scannetpp_and_3rscan_annotation(tmp_path):
    scene = tmp_path / "0a5c013435"
    (scene / "scans").mkdir(parents=True)
    groups = [
        {"id": 1, "objectId": 1, "label": "office chair ", "segments": [1], "obb": obb((1, 2, 0.5), (0.5, 0.6, 1.0), 0.3)},
        {"id": 2, "objectId": 2, "label": "REMOVE", "segments": [2], "obb": obb((0, 0, 0), (1, 1, 1))},
        # the vertical axis need not be the last
        {"id": 3, "objectId": 3, "label": "table", "segments": [3],
         "obb": {"centroid": [0, 0, 1], "axesLengths": [0.8, 2.0, 1.0], "normalizedAxes": [0, 0, 1, 0, 1, 0, -1, 0, 0]}},
    ]  # fmt: skip
    (scene / "scans" / "segments_anno.json").write_text(json.dumps({"segGroups": groups}))
    found = open_scene(scene)
    chair, table = found.objects
    assert found.name == "0a5c013435" and (chair.id, chair.label, table.id) == (1, "office chair", 3) and found.room_area is None
    assert chair.box.yaw == pytest.approx(0.3) and same(chair.box.size, (0.5, 0.6, 1.0))
    assert table.box.size[2] == 0.8 and sorted(table.box.size[:2]) == [1.0, 2.0]
    along = table.box.size.index(2.0)  # the long side runs along y
    assert abs(np.sin(table.box.yaw)) == pytest.approx(1.0 if along == 0 else 0.0, abs=1e-9)
    (scene / "scans" / "mesh_aligned_0.05.ply").write_bytes(b"")
    with pytest.raises(ValueError, match=r"mesh_aligned_0\.05\.ply: not a PLY file"):
        open_scene(scene)
    write_ply(scene / "scans" / "mesh_aligned_0.05.ply", np.array([(x, y, 0.0) for x in range(4) for y in range(3)]))
    assert open_scene(scene).room_area == pytest.approx(6.0)
    rscan = tmp_path / "0cac7578"
    rscan.mkdir()
    (rscan / "semseg.v2.json").write_text(json.dumps({"segGroups": groups[:1]}))
    assert open_scene(rscan).objects[0].box.center == (1, 2, 0.5)
    del groups[0]["obb"]["normalizedAxes"]
    (rscan / "semseg.v2.json").write_text(json.dumps({"segGroups": groups}))
    with pytest.raises(ValueError, match=r"the box of object 1 .* has no normalizedAxes"):
        open_scene(rscan)


# --------------------------------------------------------------------------------------------------------- ARKitScenes


def write_arkit(root: Path, inner: bool = False) -> Path:
    folder = root / "41069021"
    base = folder / "41069021_frames" if inner else folder
    for part in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (base / part).mkdir(parents=True)
    lines = []
    for i in range(4):
        w2c = np.linalg.inv(pose(i))
        rotation = Rotation.from_matrix(w2c[:3, :3]).as_rotvec()
        lines.append(" ".join(f"{v:.9f}" for v in (100 + i / 10, *rotation, *w2c[:3, 3])))
    (base / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
    for i, time in enumerate((99.0, 100.001, 100.15, 100.3)):  # before the first pose, at one, halfway between two, at the last
        shade(i).save(base / "lowres_wide" / f"41069021_{time:.3f}.png")
        Image.fromarray(ramp()).save(base / "lowres_depth" / f"41069021_{time:.3f}.png")
        (base / "lowres_wide_intrinsics" / f"41069021_{time + 0.001:.3f}.pincam").write_text("16 12 14 14 8 6")
    return folder


@pytest.mark.parametrize("inner", [False, True])
def test_arkitscenes(tmp_path, inner):
    folder = write_arkit(tmp_path, inner)
    views = open_views(folder)
    assert layout_of(folder) == "arkitscenes" and views.indices.tolist() == [1, 2, 3] and greys(views) == [1, 2, 3]
    middle = pose(1.5)
    assert same(views.camera_to_world, [pose(0), middle, pose(3)], atol=1e-2) and same(views.camera_to_world[1], middle)
    assert same(views.intrinsics[0], K) and same(views.depth[0, 5, ::2], 1 + 0.01 * np.arange(DW))
    assert same(views.times, [1.001, 1.15, 1.3])


def test_arkitscenes_video(tmp_path):
    """Without pictures the .mov is read: frame i is the i-th .pincam, whose numbers are for a smaller picture."""
    folder = write_arkit(tmp_path)
    shutil.rmtree(folder / "lowres_wide")
    shutil.rmtree(folder / "lowres_depth")
    with av.open(str(folder / "41069021.mov"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 2 * W, 2 * H, "yuv420p"
        for i in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(shade(2 * i, 2 * W, 2 * H))))
        container.mux(stream.encode())
    views = open_views(folder)
    assert views.indices.tolist() == [1, 2] and views.depth is None and views.frames.shape[2:] == (2 * H, 2 * W)
    assert same(views.intrinsics[0], np.diag([2.0, 2, 1]) @ K) and np.abs(np.array(greys(views)) - [2, 4]).max() <= 1
    (folder / "lowres_wide_intrinsics" / "41069021_100.301.pincam").unlink()
    with pytest.raises(ValueError, match=r"41069021\.mov: 4 frames, but intrinsics of 3"):
        open_views(folder)


def test_arkitscenes_pose_gaps():
    poses = np.stack([pose(0), pose(1)])
    assert pose_at(0.05, np.array([0.0, 0.1]), poses) is not None
    assert pose_at(0.5, np.array([0.0, 1.0]), poses) is None  # tracking was lost for a second
    assert pose_at(-0.5, np.array([0.0, 0.1]), poses) is None


def test_arkitscenes_boxes(tmp_path):
    folder = tmp_path / "41069021"
    folder.mkdir()
    item = {"uid": "a", "label": "bed", "segments": {"obbAligned": obb((1, 2, 0.5), (2.0, 1.5, 0.6), 0.7)}}
    file = folder / "41069021_3dod_annotation.json"
    file.write_text(json.dumps({"data": [item], "skipped": False}))
    for path in (folder, file):
        scene = open_scene(path)
        assert scene.name == "41069021" and scene.objects[0].box.yaw == pytest.approx(0.7)
    item["segments"]["obbAligned"]["axesLengths"] = [200.0, 150.0, 60.0]
    file.write_text(json.dumps({"data": [item]}))
    with pytest.raises(ValueError, match="the bed is 200 long; expected metres"):
        open_scene(folder)
    file.write_text(json.dumps({"data": [{"label": "bed"}]}))
    with pytest.raises(ValueError, match=r"expected label and segments\.obbAligned"):
        open_scene(folder)


# -------------------------------------------------------------------------------------------------------- EmbodiedScan


def infos() -> dict:
    images = [
        {"img_path": f"scannet/{i:05d}.jpg", "depth_path": f"scannet/{i:05d}.png", "cam2global": pose(i)}
        for i in range(2)
    ]
    k, depth_k = np.eye(4), np.eye(4)
    k[:3, :3], depth_k[:3, :3] = K, DEPTH_K
    item = {
        "sample_idx": "scannet/scene0000_00", "axis_align_matrix": ALIGN, "cam2img": k, "depth_cam2img": depth_k, "images": images,
        "instances": [
            {"bbox_3d": [1, 2, 0.5, 0.4, 0.6, 1.0, 0.3, 0.0, 0.0], "bbox_label_3d": 4, "bbox_id": 0},
            {"bbox_3d": [0, 0, 1, 4, 0.1, 2.5, 0, 0, 0], "bbox_label_3d": 9, "bbox_id": 1},
        ],
    }  # fmt: skip
    return {"metainfo": {"categories": {"chair": 4, "wall": 9}}, "data_list": [item]}


def test_embodiedscan(tmp_path):
    path = tmp_path / "embodiedscan_infos_val.pkl"
    path.write_bytes(pickle.dumps(infos()))
    scene = open_scene(path)
    assert open_scene(path, "scannet/scene0000_00").objects == scene.objects
    assert scene.name == "scannet/scene0000_00" and [(o.id, o.label) for o in scene.objects] == [(1, "chair")]
    assert scene.objects[0].box.yaw == pytest.approx(0.3) and same(scene.objects[0].box.size, (0.4, 0.6, 1.0))
    assert same(scene.camera_to_world[1], ALIGN @ pose(1))
    with pytest.raises(ValueError, match="no scene 'scannet/scene0999_00'"):
        open_scene(path, "scannet/scene0999_00")
    (tmp_path / "scannet").mkdir()
    for i in range(2):
        shade(i + 1).save(tmp_path / "scannet" / f"{i:05d}.jpg", quality=95)
        Image.fromarray(ramp()).save(tmp_path / "scannet" / f"{i:05d}.png")
    views = open_embodiedscan(path, "scannet/scene0000_00", tmp_path)
    assert greys(views) == [1, 2] and same(views.camera_to_world, ALIGN @ np.stack([pose(0), pose(1)]))
    assert same(views.depth[0, 5, ::2], 1 + 0.01 * np.arange(DW))


class Malice:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_a_pickle_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps({"metainfo": Malice()}))
    with pytest.raises(ValueError, match=r"infos\.pkl: .*only plain values and numpy arrays"):
        read_pickle(path)
    assert not (tmp_path / "touched").exists()
    path.write_bytes(b"\x80\x04 not a pickle")
    with pytest.raises(ValueError, match="cannot be read as infos"):
        open_scenes(path)


# ------------------------------------------------------------------------------------------------------- 3RScan and TUM


def pgm(values: np.ndarray, maximum: int = 4000) -> bytes:
    return f"P5\n# made by hand\n{values.shape[1]} {values.shape[0]}\n{maximum}\n".encode() + values.astype(">u2").tobytes()


def test_3rscan(tmp_path):
    sequence = tmp_path / "0cac7578" / "sequence"
    sequence.mkdir(parents=True)
    k, depth_k = np.eye(4), np.eye(4)
    k[:3, :3], depth_k[:3, :3] = K, DEPTH_K
    (sequence / "_info.txt").write_text(
        "m_versionNumber = 4\nm_depthShift = 1000\n"
        f"m_calibrationColorIntrinsic = {' '.join(map(str, k.ravel()))} \n"
        f"m_calibrationDepthIntrinsic = {' '.join(map(str, depth_k.ravel()))} \n"
    )
    for i in range(3):
        shade(i).save(sequence / f"frame-{i:06d}.color.jpg", quality=95)
        (sequence / f"frame-{i:06d}.depth.pgm").write_bytes(pgm(ramp()))
        np.savetxt(sequence / f"frame-{i:06d}.pose.txt", pose(i) if i != 1 else np.full((4, 4), np.nan))
    views = open_views(sequence.parent)
    assert layout_of(sequence.parent) == "3rscan" and views.indices.tolist() == [0, 2] and greys(views) == [0, 2]
    assert same(views.depth[0, 5, ::2], 1 + 0.01 * np.arange(DW)) and same(views.camera_to_world[1], pose(2))
    (sequence / "frame-000002.depth.pgm").write_bytes(pgm(ramp())[:40])
    with pytest.raises(ValueError, match=r"frame-000002\.depth\.pgm: .*truncated"):
        open_views(sequence)
    (sequence / "_info.txt").write_text("m_depthShift = 1000\n")
    with pytest.raises(ValueError, match="expected m_calibrationColorIntrinsic = 16 numbers"):
        open_views(sequence)


def write_tum(folder: Path) -> Path:
    for part in ("rgb", "depth"):
        (folder / part).mkdir(parents=True)
    rgb, depth, truth = ["# color images"], ["# depth maps"], ["# timestamp tx ty tz qx qy qz qw"]
    for i in range(4):
        shade(i).save(folder / "rgb" / f"{i}.png")
        Image.fromarray(np.full((H, W), 5000 * (i + 1), dtype=np.uint16)).save(folder / "depth" / f"{i}.png")
        rgb.append(f"{50 + i / 10:.6f} rgb/{i}.png")
        depth.append(f"{50.015 + i / 10:.6f} depth/{i}.png")
        if i != 2:  # the motion capture system lost the camera
            numbers = [*pose(i)[:3, 3], *Rotation.from_matrix(pose(i)[:3, :3]).as_quat()]
            truth.append(f"{49.99 + i / 10:.4f} " + " ".join(f"{v:.6f}" for v in numbers))
    for name, lines in (("rgb", rgb), ("depth", depth), ("groundtruth", truth)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_tum(tmp_path):
    folder = write_tum(tmp_path / "rgbd_dataset_freiburg3_desk")
    views = open_views(folder)
    assert layout_of(folder) == "tum" and views.indices.tolist() == [0, 1, 3] and greys(views) == [0, 1, 3]
    assert views.depth[:, 3, 3].tolist() == [1, 2, 4] and same(views.camera_to_world, [pose(i) for i in (0, 1, 3)])
    assert same(views.intrinsics[0], [[535.4, 0, 320.1], [0, 539.2, 247.6], [0, 0, 1]]) and same(views.times, [0, 0.1, 0.3])
    assert same(open_views(folder, intrinsics=K).intrinsics[0], K)
    (folder / "groundtruth.txt").write_text("49.0 0 0 0 0 0 0 1\n")
    with pytest.raises(ValueError, match=r"none of the 4 pictures has a pose"):
        open_views(folder)
    (folder / "groundtruth.txt").write_text("50.0 0 0\n")
    with pytest.raises(ValueError, match=r"groundtruth\.txt:1: expected 8 columns, found 3"):
        open_views(folder)


# ----------------------------------------------------------------------------------------------------- transforms.json


def write_transforms(folder: Path, depth: bool = True, **camera) -> Path:
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in (10, 9):
        shade(i).save(folder / "images" / f"frame_{i}.png")
        Image.fromarray(ramp()).save(folder / "images" / f"depth_{i}.png")
        matrix = pose(i) @ np.diag([1.0, -1, -1, 1])  # OpenGL's camera looks along -z
        entry = {"file_path": f"images/frame_{i}.png", "transform_matrix": matrix.tolist()}
        frames.append(entry | ({"depth_file_path": f"images/depth_{i}.png"} if depth else {}))
    camera = {"fl_x": 14, "fl_y": 14, "cx": 8, "cy": 6, "w": W, "h": H} | camera
    (folder / "transforms.json").write_text(json.dumps(camera | {"frames": frames}))
    return folder


def test_transforms(tmp_path):
    folder = write_transforms(tmp_path / "a")
    views = open_views(folder)
    assert layout_of(folder) == "transforms" and views.indices.tolist() == [9, 10] and greys(views) == [9, 10]
    assert same(views.camera_to_world, [pose(9), pose(10)]) and same(views.intrinsics[0], K) and views.scale == "metric"
    assert same(views.depth[0, 5, ::2], 1 + 0.01 * np.arange(DW))
    plain = open_views(write_transforms(tmp_path / "b", depth=False) / "transforms.json")
    assert plain.depth is None and plain.scale == "relative"
    assert open_views(tmp_path / "b", scale="metric").scale == "metric"
    # numbers for a picture of twice the size
    assert same(open_views(write_transforms(tmp_path / "c", fl_x=28, fl_y=28, cx=16, cy=12, w=2 * W, h=2 * H)).intrinsics[0], K)


def test_transforms_of_blender_scenes(tmp_path):
    shade(3).save(tmp_path / "r_0.png")
    frames = [{"file_path": "./r_0", "transform_matrix": np.eye(4).tolist()}]
    (tmp_path / "transforms_train.json").write_text(json.dumps({"camera_angle_x": np.pi / 2, "frames": frames}))
    views = open_views(tmp_path)
    assert same(views.intrinsics[0], [[W / 2, 0, W / 2], [0, W / 2, H / 2], [0, 0, 1]])
    assert same(views.camera_to_world[0], np.diag([1.0, -1, -1, 1]))


def test_a_distorted_lens_is_straightened(tmp_path):
    """A bright line that the lens bent is straight afterwards: each of its points lands where a pinhole puts it."""
    width, height, f, k1 = 81, 61, 60.0, 0.3
    v, u = np.mgrid[0:height, 0:width] + 0.5
    x, y = (u - width / 2) / f, (v - height / 2) / f
    # the bent picture of a ramp over the straight picture's columns: look up where each bent pixel comes from
    straight = np.linspace(-0.8, 0.8, 4001)
    bent_radius = np.hypot(x, y)
    radius = np.interp(bent_radius, (straight * (1 + k1 * straight**2))[2000:], straight[2000:])
    source = x * np.where(bent_radius > 0, radius / np.maximum(bent_radius, 1e-9), 1) * f + width / 2
    Image.fromarray(np.repeat(np.clip(3 * source, 0, 255).round().astype(np.uint8)[..., None], 3, -1)).save(tmp_path / "f_0.png")
    frames = [{"file_path": "f_0.png", "transform_matrix": np.eye(4).tolist()}]
    camera = {"fl_x": f, "fl_y": f, "cx": width / 2, "cy": height / 2, "w": width, "h": height, "k1": k1, "camera_model": "OPENCV"}
    (tmp_path / "transforms.json").write_text(json.dumps(camera | {"frames": frames}))
    found = open_views(tmp_path).frames[0, 0].numpy().astype(float)
    inner = slice(12, -12), slice(12, -12)
    assert np.abs(found - np.clip(3 * u, 0, 255))[inner].max() < 2.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"frames": []}, "expected a list of frames"),
        ({"frames": [{"file_path": "x.png"}]}, "frame 0 has no transform_matrix"),
        ({"frames": [{"file_path": "x.png", "transform_matrix": np.eye(4).tolist()}]}, r"x\.png: the picture is missing"),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model EQUIRECTANGULAR is not read"),
        ({"w": 16, "h": 16}, r"frame_9\.png is 16x12, but the camera 16x16"),
    ],
)
def test_bad_transforms_are_refused(tmp_path, change, match):
    folder = write_transforms(tmp_path / "a")
    file = folder / "transforms.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=match):
        open_views(folder)


def test_scale_in_a_pose_is_refused(tmp_path):
    folder = write_transforms(tmp_path / "a")
    data = json.loads((folder / "transforms.json").read_text())
    for frame in data["frames"]:
        frame["transform_matrix"] = (np.diag([2.0, 2, 2, 1]) @ np.array(frame["transform_matrix"])).tolist()
    (folder / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="none of the 2 poses can be used; the first is not rigid"):
        open_views(folder)


# ------------------------------------------------------------------------------------------------ Record3D and Polycam


def phone_pose(i: int) -> np.ndarray:
    """The same pose as ARKit has it: the world's y is up, the camera looks along -z."""
    y_up = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    return y_up @ pose(i) @ np.diag([1.0, -1, -1, 1])


def record3d_metadata(n: int = 3, **changes) -> dict:
    poses = [[*Rotation.from_matrix(phone_pose(i)[:3, :3]).as_quat(), *phone_pose(i)[:3, 3]] for i in range(n)]
    data = {"w": W, "h": H, "dw": DW, "dh": DH, "fps": 10, "K": K.T.ravel().tolist(), "poses": poses}
    data["frameTimestamps"] = [5 + i / 10 for i in range(n)]
    data["perFrameIntrinsicCoeffs"] = [[14 + i, 14 + i, 8, 6] for i in range(n)]
    return data | changes


def metres() -> np.ndarray:
    depth = ramp().astype(np.float32) / 1000
    depth[0, 1] = np.nan
    return depth


def write_r3d(path: Path, **changes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata", json.dumps(record3d_metadata(**changes)))
        for i in (2, 0, 1):
            file.writestr(f"rgbd/{i}.jpg", jpeg(i))
            file.writestr(f"rgbd/{i}.depth", lzfse.compress(metres().tobytes()))
            file.writestr(f"rgbd/{i}.conf", lzfse.compress(bytes(DW * DH)))
    return path


def test_record3d(tmp_path):
    file = write_r3d(tmp_path / "room.r3d")
    views = open_views(file)
    assert layout_of(file) == "record3d" and views.indices.tolist() == [0, 1, 2] and greys(views) == [0, 1, 2]
    assert same(views.camera_to_world, [pose(i) for i in range(3)]) and same(views.times, [0, 0.1, 0.2])
    assert same(views.depth[1, 5, ::2], 1 + 0.01 * np.arange(DW)) and views.scale == "metric"
    assert (views.depth[0, :2, :4] == 0).all()  # not measured: 0 and NaN in the file
    assert views.intrinsics[:, 0, 0].tolist() == [14, 15, 16]
    with zipfile.ZipFile(file) as packed:
        packed.extractall(tmp_path / "unpacked")
    again = open_views(tmp_path / "unpacked")
    assert layout_of(tmp_path / "unpacked") == "record3d" and torch.equal(again.depth, views.depth)
    # older exports: no size of depth, one camera for all, a frame that was lost
    lost = [[0, 0, 0, 0, 1, 2, 3], *record3d_metadata()["poses"][1:]]
    old = write_r3d(tmp_path / "old.r3d", dw=None, perFrameIntrinsicCoeffs=[], poses=lost, frameTimestamps=[])
    views = open_views(old)
    assert views.indices.tolist() == [1, 2] and same(views.intrinsics[0], K) and views.times is None and count_frames(old) == 2
    assert same(views.depth[1, 5, ::2], 1 + 0.01 * np.arange(DW))


def test_record3d_of_exr_pictures(tmp_path):
    folder = tmp_path / "EXR_RGBD"
    for part in ("rgb", "depth"):
        (folder / part).mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps(record3d_metadata()))
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    for i in range(2):
        (folder / "rgb" / f"{i}.jpg").write_bytes(jpeg(i))
        OpenEXR.File(header, {"R": metres()}).write(str(folder / "depth" / f"{i}.exr"))
    for path in (tmp_path, folder):
        views = open_views(path)
        assert views.indices.tolist() == [0, 1] and same(views.depth[1, 5, ::2], 1 + 0.01 * np.arange(DW))
        assert same(views.camera_to_world[1], pose(1)) and (views.depth[0, :2, :4] == 0).all()
    (folder / "depth" / "1.exr").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"1\.exr: cannot be read as an EXR picture"):
        open_views(folder)
    assert open_views(folder, depth=False).depth is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"poses": None}, "metadata: expected poses, w and h, found no list of poses"),
        ({"poses": [[0, 0, 0, 1]] * 3}, "pose 0: expected qx qy qz qw tx ty tz, found 4 numbers"),
        ({"perFrameIntrinsicCoeffs": [], "K": [1, 2]}, "expected K as 9 numbers, found 2"),
        ({"dw": 5}, r"0\.depth: expected 5x6 depths, found 48"),
        ({"h": 2 * H}, r"0\.jpg: the picture is 16x12, metadata says 16x24"),
    ],
)
def test_bad_record3d_exports_are_refused(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match) as error:
        open_views(write_r3d(tmp_path / "room.r3d", **changes))
    assert "room.r3d" in str(error.value)


def test_broken_record3d_files_are_refused_by_name(tmp_path):
    file = write_r3d(tmp_path / "room.r3d")
    with zipfile.ZipFile(file) as packed:
        packed.extractall(tmp_path / "unpacked")
    depth = tmp_path / "unpacked" / "rgbd" / "1.depth"
    for broken in (b"no LZFSE", depth.read_bytes()[:20]):
        depth.write_bytes(broken)
        with pytest.raises(ValueError, match=r"1\.depth: cannot be unpacked as depth"):
            open_views(tmp_path / "unpacked")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"room\.r3d: cannot be read as a \.r3d"):
        open_views(file)
    file.rename(tmp_path / "room.zip")
    with pytest.raises(ValueError, match=r"room\.zip: found an archive.*unpack it first"):
        open_views(tmp_path / "room.zip")


def write_polycam(root: Path, kind: str = "", depth: bool = True) -> Path:
    folder = root / "keyframes"
    for part in (f"{kind}images", f"{kind}cameras", "depth"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(3):
        shade(i).save(folder / f"{kind}images" / f"{1000 + i}.jpg", quality=95)
        camera = {"width": 2 * W, "height": 2 * H, "fx": 28, "fy": 28, "cx": 16, "cy": 12, "blur_score": 1}
        camera |= {f"t_{row}{column}": phone_pose(i)[row, column] for row in range(3) for column in range(4)}
        if i < 2 or not kind:  # a picture that Polycam could not place
            (folder / f"{kind}cameras" / f"{1000 + i}.json").write_text(json.dumps(camera))
        if depth:
            Image.fromarray(ramp()).save(folder / "depth" / f"{1000 + i}.png")
    return root


def test_polycam(tmp_path):
    folder = write_polycam(tmp_path)
    views = open_views(folder)
    assert layout_of(folder) == "polycam" and views.indices.tolist() == [1000, 1001, 1002] and greys(views) == [0, 1, 2]
    assert same(views.camera_to_world, [pose(i) for i in range(3)]) and same(views.intrinsics[0], K)
    assert same(views.depth[2, 5, ::2], 1 + 0.01 * np.arange(DW)) and views.scale == "metric"
    write_polycam(tmp_path, "corrected_")
    assert open_views(folder / "keyframes").indices.tolist() == [1000, 1001]
    (folder / "keyframes" / "depth" / "1000.png").unlink()
    assert open_views(folder).depth is None
    (folder / "keyframes" / "corrected_cameras" / "1001.json").write_text("{}")
    with pytest.raises(ValueError, match=r"1001\.json: expected a camera with intrinsics and pose, found no width"):
        open_views(folder)


# ---------------------------------------------------------------------------------------------------------- all of them


def captures(folder: Path) -> list[Path]:
    """One of each layout but 3RScan's."""
    made = [write_tum(folder / "tum"), write_transforms(folder / "nerf"), exported(folder / "scan"), write_arkit(folder)]
    made += [write_iphone(folder / "pp").parent, write_r3d(folder / "room.r3d"), write_polycam(folder / "poly")]
    made.append(folder / "lost.sens")
    made[-1].write_bytes(sens_bytes())
    return made


def test_captures_from_the_command_line(tmp_path, capsys):
    """`allo info` of each layout; it reads one picture of each."""
    said = []
    for path in captures(tmp_path):
        main(["info", str(path), "--json"])
        said.append(json.loads(capsys.readouterr().out))
    layouts = ["tum", "transforms", "scannet", "arkitscenes", "scannet++", "record3d", "polycam", "scannet"]
    assert [facts["layout"] for facts in said] == layouts and [facts["frames"] for facts in said] == [3, 2, 4, 3, 4, 3, 3, 4]
    assert {(facts["height"], facts["width"], facts["depth"], facts["scale"]) for facts in said} == {(H, W, "given", "metric")}


def test_annotations_from_the_command_line(tmp_path):
    """`allo data make` from each annotation: the size of its chair or bed."""
    box = obb((1, 2, 0.5), (0.5, 0.6, 1.0), 0.3)
    groups = json.dumps({"segGroups": [{"id": 1, "objectId": 1, "label": "chair", "segments": [1], "obb": box}]})
    for name in ("scannetpp/scans", "3rscan", "41069021", "folder"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "scannetpp" / "scans" / "segments_anno.json").write_text(groups)
    (tmp_path / "3rscan" / "semseg.v2.json").write_text(groups)
    item = {"label": "bed", "segments": {"obbAligned": box}}
    (tmp_path / "41069021" / "41069021_3dod_annotation.json").write_text(json.dumps({"data": [item]}))
    (tmp_path / "infos.pkl").write_bytes(pickle.dumps(infos()))
    metadata = {"scene0011_00": {"room_size": 12.5, "object_counts": {"chair": 1}, "object_bbox": {"chair": [box]}}}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    save_scene(open_scene(tmp_path / "metadata.json"), tmp_path / "folder" / "scene.json")
    made = [scan(tmp_path, "axisAlignment = " + " ".join(map(str, np.eye(4).ravel())) + "\n")]
    made += [tmp_path / name for name in ("scannetpp", "3rscan", "41069021", "infos.pkl", "metadata.json", "folder")]
    words = ["data", "make", "--task", "object_size_estimation", "--scenes", *map(str, made), "--out", str(tmp_path / "out")]
    main([*words, "--workers", "1"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "questions.jsonl").read_text().splitlines()]
    names = ["scene0001_00", "scannetpp", "3rscan", "41069021", "scannet/scene0000_00", "scene0011_00", "folder"]
    assert [row["scene"] for row in rows] == names and [row["answer"] for row in rows] == ["100"] * 7
    rows = [json.loads(line) for line in (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()]
    assert [row["conversations"][1]["value"] for row in rows] == ["100"] * 7 and rows[1]["video"] == "scannetpp/video.mp4"


def test_frames_are_counted_without_reading_pictures(tmp_path, monkeypatch):
    """As many as `open_views` returns, and no picture or depth is decoded for it."""
    made = captures(tmp_path)
    expected = [len(open_views(path)) for path in made]
    for name in ("read_image", "decode_image", "read_depth"):
        monkeypatch.setattr(f"allocentric.readers.posed.{name}", None)
    assert [count_frames(path) for path in made] == expected == [3, 2, 4, 3, 4, 3, 3, 4]


def test_frames_come_in_time_order_whatever_the_order_of_the_list(tmp_path):
    for path in captures(tmp_path):
        last = count_frames(path) - 1
        found, expected = open_views(path, [last, 0, last]), open_views(path, [0, last, last])
        for field in ("frames", "depth", "camera_to_world", "indices"):
            assert torch.equal(getattr(found, field), getattr(expected, field))
        assert found.indices[0] < found.indices[1] == found.indices[2]


def test_captures_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    made = captures(tmp_path)
    monkeypatch.setattr("allocentric.readers.choose.MAX_BYTES", H * W * 7)
    for path in made:
        assert len(open_views(path, 1)) == 1
        with pytest.raises(ValueError, match=rf"{path.name}.*: found \d frames of 16x12 with depth, .* GiB, expected at most"):
            open_views(path)


def test_frames_are_tensors_of_one_kind(tmp_path):
    """Whatever the layout: uint8 frames, float32 geometry, the same number of each."""
    made = [write_tum(tmp_path / "tum"), write_transforms(tmp_path / "nerf"), exported(tmp_path / "scan")]
    for folder in [*made, write_arkit(tmp_path / "ark"), write_iphone(tmp_path / "pp").parent]:
        views = open_views(folder, 2)
        assert views.frames.dtype == torch.uint8 and len(views) == 2
        assert {views.depth.dtype, views.intrinsics.dtype, views.camera_to_world.dtype} == {torch.float32}
        assert views.depth.shape[1:] == views.frames.shape[2:]


# ------------------------------------------------------------------------------------------------ something odd in a file


def places(value, path: tuple = ()) -> list[tuple]:
    """Where the values of a JSON document stand; of lists, the first only."""
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    return [path] + [deeper for key, part in inside for deeper in places(part, (*path, key))]


def changed(document, path: tuple, odd):
    """The document with something odd in one place."""
    if not path:
        return odd
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = changed(document[path[0]], path[1:], odd)
    return copy


def refused_by_name(read, path: Path) -> bool:
    """Whether reading ends in one clear error; it may also succeed."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        assert path.name in str(error), error
        return True
    return False


@pytest.mark.parametrize("odd", ["x", 0, [], None], ids=["word", "zero", "list", "null"])
def test_odd_values_are_refused_by_name(odd, tmp_path):
    """Every value of every JSON file, in turn, is something else: a line that names what was read, never a traceback."""
    box = obb((1, 2, 0.5), (0.5, 0.6, 1.0), 0.3)
    scans = tmp_path / "3rscan"
    scans.mkdir()
    (scans / "semseg.v2.json").write_text(
        json.dumps({"segGroups": [{"id": 1, "objectId": 1, "label": "chair", "segments": [1], "obb": box}]})
    )
    annotation = tmp_path / "41069021_3dod_annotation.json"
    annotation.write_text(json.dumps({"data": [{"label": "bed", "segments": {"obbAligned": box}}]}))
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps({"a": {"room_size": 12.5, "object_counts": {"chair": 1}, "object_bbox": {"chair": [box]}}}))
    scene = scan(tmp_path, "axisAlignment = " + " ".join(map(str, np.eye(4).ravel())) + "\n")
    nerf, poly, iphone = write_transforms(tmp_path / "nerf"), write_polycam(tmp_path / "poly"), write_iphone(tmp_path / "pp").parent
    for path, file, read in (
        (nerf, nerf / "transforms.json", count_frames),
        (poly, poly / "keyframes" / "cameras" / "1000.json", count_frames),
        (iphone, iphone / "iphone" / "pose_intrinsic_imu.json", count_frames),
        (scans, scans / "semseg.v2.json", open_scene),
        (annotation, annotation, open_scene),
        (metadata, metadata, open_scenes),
        (scene, scene / f"{scene.name}.aggregation.json", open_scene),
    ):
        document, text = json.loads(file.read_text()), file.read_text()
        read(path)
        refused = 0
        for place in places(document):
            file.write_text(json.dumps(changed(document, place, odd)))
            refused += refused_by_name(read, path)
        assert refused > 1, file
        file.write_text(text)


def test_infos_with_odd_values_are_refused_by_name(tmp_path):
    path = tmp_path / "infos.pkl"
    for change in ({"metainfo": None}, {"data_list": [None]}, {"data_list": [{"sample_idx": "a", "instances": [0]}]}):
        path.write_bytes(pickle.dumps(infos() | change))
        assert refused_by_name(open_scenes, path)


def test_text_that_is_none_and_unknown_options_are_refused_by_name(tmp_path):
    folder = write_tum(tmp_path / "tum")
    with pytest.raises(ValueError, match="tum: found the option up, which open_tum does not take"):
        open_views(folder, up=(0, 0, 1))
    (folder / "groundtruth.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"tum: .*can't decode"):
        open_views(folder)


def test_pictures_and_archives_that_are_cut_off_are_refused_by_name(tmp_path):
    folder = write_polycam(tmp_path / "poly")
    picture = folder / "keyframes" / "images" / "1000.jpg"
    picture.write_bytes(picture.read_bytes()[:-40])
    assert refused_by_name(open_views, folder)

    file = write_r3d(tmp_path / "room.r3d")
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo("rgbd/0.jpg")
    data = bytearray(file.read_bytes())
    data[entry.header_offset + 60] ^= 0xFF  # behind the entry's header: in the picture, whose checksum no longer fits
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"room\.r3d: found something malformed"):
        open_views(file)
    with pytest.raises(FileNotFoundError), named(tmp_path):  # what says what it lacks is left alone
        (tmp_path / "nothing").read_bytes()
