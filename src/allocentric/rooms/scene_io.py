"""Rendered rooms as scene folders: `video.mp4` and `scene.json` (docs/scene_folder.md), optionally with posed RGB-D frames."""

import multiprocessing
import os
import shutil
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from allocentric.rooms.generate import MIN_VISIBLE, pinhole, shutter_poses, staged
from allocentric.rooms.mesh import Real
from allocentric.rooms.raycast import meter, render, visibility_of
from allocentric.scenes import AnnotatedScene, save_scene


def _render_span(job: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed, style, a, b, total, seconds, height, width, samples, gain = job
    room, path, fov = staged(seed, style)
    times = np.linspace(0, path.duration, total)[a:b]
    open_for = 0.015 * path.duration / seconds if samples > 1 else 0.0
    shutter = shutter_poses(path, times, samples, open_for) if samples > 1 else None
    return render(room, path.poses(times), height, width, pinhole(height, width, fov), samples, shutter, seed=a + 1, gain=gain)


def write_video(
    seed: int,
    folder: str | os.PathLike,
    seconds: Real = 20,
    fps: int = 10,
    height: int = 480,
    width: int = 640,
    style: str = "parts",
    samples: int = 1,
    annotated_frames: int = 32,
    posed_rgbd: bool = False,
    workers: int | None = None,
) -> AnnotatedScene:
    """Write the walk through room `seed` as a scene folder: video.mp4, scene.json and, if asked, posed RGB-D frames.

    It is the room and walk of `generate(seed, style=style)`. `samples` squared rays per pixel; from 2 on edges are smooth and
    what moves is blurred, at four times the cost. `posed_rgbd` adds, under `rgbd/`, frame-NNNNNN.color.jpg, .depth.png (uint16
    millimetres, 0 = none), .pose.txt (camera_to_world) and camera-intrinsics.txt. Height and width must be
    even. The same arguments give the same pictures for any `workers`.
    """
    for name, value in (("height", height), ("width", width)):
        if value < 16 or value % 2:
            raise ValueError(f"{name} must be even and at least 16, got {value}")
    total = round(seconds * fps)
    if total < 2:
        raise ValueError(f"seconds x fps must give at least 2 frames, got {seconds} x {fps}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    room, path, fov = staged(seed, style)
    k = pinhole(height, width, fov)
    poses = path.poses(np.linspace(0, path.duration, total))
    gain = meter(room, poses, fov)
    span = 16
    jobs = [
        (seed, style, a, min(a + span, total), total, seconds, height, width, samples, gain[a : a + span])
        for a in range(0, total, span)
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(len(jobs), workers or cores)
    marked = np.unique(np.round(np.linspace(0, total - 1, min(annotated_frames, total))).astype(int))
    seen = np.zeros((len(marked), len(room.objects)))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as scratch:
        work = Path(scratch)
        if posed_rgbd:
            (work / "rgbd").mkdir()
            np.savetxt(work / "rgbd" / "camera-intrinsics.txt", k, fmt="%.9g")
        pool = multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else None
        try:
            results = map(_render_span, jobs) if pool is None else pool.imap(_render_span, jobs)
            with av.open(str(work / "video.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=Fraction(fps))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.options = {"crf": "18", "preset": "veryfast"}
                at = 0
                for rgb, depth, ids in results:
                    for f in range(len(rgb)):
                        for packet in stream.encode(av.VideoFrame.from_ndarray(rgb[f], format="rgb24")):
                            container.mux(packet)
                        spot = np.nonzero(marked == at)[0]
                        if len(spot):
                            seen[spot[0]] = visibility_of(ids[f : f + 1], len(room.objects))[0]
                        if posed_rgbd:
                            _write_frame(work / "rgbd", at, rgb[f], depth[f], poses[at])
                        at += 1
                for packet in stream.encode():
                    container.mux(packet)
        finally:
            if pool is not None:
                pool.terminate()
        scene = replace(room.annotate(seen, poses[marked], MIN_VISIBLE), times=marked / fps)
        camera = {"width": width, "height": height, "intrinsics": k.tolist()}
        save_scene(scene, work / "scene.json", camera)
        if (folder / "rgbd").exists():  # of another walk: readers would take it before the video
            shutil.rmtree(folder / "rgbd")
        for item in sorted(work.iterdir()):
            os.replace(item, folder / item.name)
    return scene


def _write_frame(folder: Path, index: int, rgb: np.ndarray, depth: np.ndarray, pose: np.ndarray) -> None:
    stem = f"frame-{index:06d}"
    Image.fromarray(rgb).save(folder / f"{stem}.color.jpg", quality=95)
    Image.fromarray(np.clip(np.round(depth * 1000), 0, 65535).astype(np.uint16)).save(folder / f"{stem}.depth.png")
    np.savetxt(folder / f"{stem}.pose.txt", pose, fmt="%.9g")
