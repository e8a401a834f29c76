"""Readers: the frames that come back are the frames that were written, and what is broken is refused by name."""

import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from allocentric.readers import VideoFile, layout_of, open_images, open_rgbd, open_video, open_views

H, W = 48, 64


def picture(i: int, h: int = H, w: int = W) -> np.ndarray:
    """A picture that says its number: seven black or white stripes in red, and a bright top left corner."""
    image = np.full((h, w, 3), 60, dtype=np.uint8)
    for bit in range(7):
        image[h // 2 :, bit * w // 7 : (bit + 1) * w // 7] = 230 if i >> bit & 1 else 20
    image[: h // 4, : w // 4] = (240, 30, 30)
    return image


def number(image: torch.Tensor) -> int:
    """The number `picture` wrote."""
    stripes = image.float().mean(0)[-image.shape[1] // 3 : -2]
    w = image.shape[2]
    return sum(int(stripes[:, bit * w // 7 + 2 : (bit + 1) * w // 7 - 2].mean() > 125) << bit for bit in range(7))


def write_video(
    path, n=40, codec="libx264", rate=10, rotation=0, size=(H, W), audio=False, options=None, pix_fmt="yuv420p", aspect=None
):
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.options = options or {}
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        if audio:
            sound = container.add_stream("aac", rate=16000)
        for i in range(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")))
        container.mux(stream.encode())
        if audio:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return path


# ---------------------------------------------------------------------------------------------------------------- video

CONTAINERS = {
    "h264-bframes.mp4": dict(codec="libx264", options={"g": "12", "bf": "3"}),
    "h264-opengop.mkv": dict(codec="libx264", options={"g": "8", "bf": "2", "x264-params": "open-gop=1"}),
    "h264.ts": dict(codec="libx264", options={"g": "10", "bf": "2"}),
    "vp9.webm": dict(codec="libvpx-vp9", options={"g": "10", "deadline": "realtime", "cpu-used": "8"}),
    "mjpeg.avi": dict(codec="mjpeg", pix_fmt="yuvj420p"),
    "h264.avi": dict(codec="libx264", options={"g": "10", "bf": "2"}),
    "raw.h264": dict(codec="libx264", options={"g": "10", "bf": "2"}),
    "ten-bit.mp4": dict(codec="libx264", pix_fmt="yuv420p10le"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_video_frames_by_number(tmp_path, name):
    video = VideoFile(write_video(tmp_path / name, **CONTAINERS[name]))
    assert video.num_frames == len(video) == 40
    assert (video.height, video.width) == (H, W)
    wanted = [0, 3, 4, 11, 12, 13, 29, 39]
    assert [number(f) for f in video.frames_at(wanted)] == wanted
    assert [number(f) for f in video.frames_at([30, 5, 5, 17])] == [30, 5, 5, 17]
    assert [number(f) for f in video.read(range(40))] == list(range(40))


def test_video_times_and_uniform(tmp_path):
    path = write_video(tmp_path / "a.mp4", n=41, rate=10, options={"bf": "2"})
    video = VideoFile(path)
    assert video.fps == pytest.approx(10) and video.duration == pytest.approx(4.1)
    views = open_views(path, frames=5)
    assert views.indices.tolist() == [0, 10, 20, 30, 40]
    assert views.times.tolist() == pytest.approx([0, 1, 2, 3, 4])
    assert [number(f) for f in views.frames] == [0, 10, 20, 30, 40]
    # a time names the frame on show at that moment
    assert open_video(path, times=[0.0, 0.1, 0.19, 2.55]).indices.tolist() == [0, 1, 1, 25]
    assert len(open_views(path)) == 41
    assert len(open_views(path, frames=100)) == 41
    assert open_views(path, frames=[7, 3]).indices.tolist() == [3, 7]
    assert open_video(path, times=[2.0, 0.5]).indices.tolist() == video.views([20, 5]).indices.tolist() == [5, 20]


def test_video_variable_frame_rate(tmp_path):
    path, shown = tmp_path / "vfr.mkv", [0, 40, 50, 400, 1000, 1010]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, pts in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = pts, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = VideoFile(path)
    assert video.times.tolist() == pytest.approx([t / 1000 for t in shown], abs=2e-3)
    assert [number(f) for f in video.frames_at([1, 4])] == [1, 4]


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_video_rotation_is_applied(tmp_path, degrees):
    """FFmpeg's angle is counter-clockwise: the picture to show is the stored one turned by it."""
    path = write_video(tmp_path / "phone.mp4", n=3, rotation=degrees)
    views = open_video(path)
    upright = np.rot90(picture(1), degrees // 90)
    assert views.frames.shape[2:] == upright.shape[:2]
    assert np.abs(views.frames[1].permute(1, 2, 0).numpy().astype(int) - upright).mean() < 6
    assert (VideoFile(path).height, VideoFile(path).width) == upright.shape[:2]


@pytest.mark.parametrize(("size", "aspect"), [((H, 3 * W // 4), Fraction(4, 3)), ((H, 3 * W // 2), Fraction(2, 3))])
def test_anamorphic_video_comes_with_square_pixels(tmp_path, size, aspect):
    """As wide as players show it: pixels wider or narrower than high are what broadcasts and camcorders store."""
    video = VideoFile(write_video(tmp_path / "wide.mp4", n=3, size=size, aspect=aspect))
    assert (video.height, video.width) == (H, W)
    views = video.views([0, 1, 2])
    assert views.frames.shape == (3, 3, H, W) and [number(f) for f in views.frames] == [0, 1, 2]
    assert np.abs(views.frames[1].permute(1, 2, 0).numpy().astype(int) - picture(1)).mean() < 8
    assert video.frames_at([2], max_side=W // 2).shape == (1, 3, H // 2, W // 2)
    turned = VideoFile(write_video(tmp_path / "turned.mkv", n=2, size=size, aspect=aspect, rotation=90))
    assert (turned.height, turned.width) == (W, H) and open_video(turned.path).frames.shape == (2, 3, W, H)
    assert open_video(turned.path, max_side=W // 2).frames.shape == (2, 3, W // 2, H // 2)


def test_video_shrinks_to_max_side(tmp_path):
    views = open_views(write_video(tmp_path / "a.mp4", n=2), max_side=32)
    assert views.frames.shape == (2, 3, 24, 32)


def test_reading_one_late_frame_decodes_one_group_of_pictures(tmp_path, monkeypatch):
    video = VideoFile(write_video(tmp_path / "a.mp4", n=60, options={"g": "10", "bf": "0"}))
    decoded = []
    frames = VideoFile._frames
    monkeypatch.setattr(VideoFile, "_frames", lambda self, *a: (decoded.append(1) or f for f in frames(self, *a)))
    assert number(video.frames_at([55])[0]) == 55
    assert len(decoded) <= 10


LONG_VIDEO = """
import resource, sys
from allocentric.readers import VideoFile
video = VideoFile(sys.argv[1])
next(video.read([0]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(1 for _ in video.read(range(len(video)))) == len(video)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_length(tmp_path):
    path = write_video(tmp_path / "long.mp4", n=300, size=(240, 320), options={"preset": "ultrafast", "tune": "zerolatency"})
    run = subprocess.run([sys.executable, "-c", LONG_VIDEO, str(path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 30_000  # kilobytes; all 300 frames would be 69,000


def test_broken_videos_are_refused_by_name(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", n=60, audio=True)
    data = whole.read_bytes()

    def refused(name, content, match):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=match) as error:
            open_views(path, frames=8)
        assert name in str(error.value) and "\n" not in str(error.value)

    refused("half.mp4", data[: len(data) // 2], "truncated")
    plain = write_video(tmp_path / "plain.mov", n=60).read_bytes()  # its table of contents is at the end
    refused("nomoov.mov", plain[: len(plain) // 2], "truncated")
    refused("headonly.mp4", data[:200], "no video in this file")
    refused("text.mp4", b"this is not a video at all\n" * 100, "not a video")
    refused("empty.mp4", b"", "empty")
    long = write_video(tmp_path / "whole.mkv", n=100).read_bytes()
    refused("half.mkv", long[: len(long) // 2], "truncated")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        open_views(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="frame 60 does not exist"):
        open_views(whole, frames=[0, 60])
    with pytest.raises(ValueError, match="outside the video"):
        open_video(whole, times=[99.0])


DAMAGED = {  # the header of a frame overwritten: the decoder raises, gives no picture, or marks the one it gives
    "h264.mp4": ("libx264", {"g": "10", "bf": "0", "sc_threshold": "0"}, "cannot be decoded .*truncated or damaged"),
    "h265.mp4": (
        "libx265",
        {"x265-params": "keyint=10:min-keyint=10:scenecut=0:bframes=0:open-gop=0:log-level=none:pools=none"},
        r"cannot be decoded \(damaged\?\)",
    ),
    "mpeg4.mp4": ("mpeg4", {"g": "10"}, "is damaged"),
}


def damaged(path, packet: int):
    """The same file with another number where this packet has the kind of its contents."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]
    data = bytearray(path.read_bytes())
    data[data.index(packets[packet]) + 4] = 0x1F
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_frame_in_the_middle_is_named(tmp_path, name):
    codec, options, match = DAMAGED[name]
    video = VideoFile(damaged(write_video(tmp_path / name, codec=codec, options=options), 25))
    for read in (lambda: video.frames_at([25]), lambda: list(video.read(range(40)))):
        with pytest.raises(ValueError, match=f"{name}: frame 25 {match}") as error:
            read()
        assert "\n" not in str(error.value)
    assert [number(f) for f in video.frames_at([0, 24, 30, 39])] == [0, 24, 30, 39]


def cut_at_the_start(source, path, frames: int):
    """As `ffmpeg -ss ... -c copy`: all packets are kept, and an edit list says to show none before this frame."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        stream = whole.streams.video[0]
        copy = container.add_stream_from_template(stream)
        start = round(frames / stream.average_rate / stream.time_base)
        for packet in whole.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                container.mux(packet)
    return path


def cut_at_the_end(source, path, seconds: float):
    """The only edit and the movie around it made this long: what comes later stays in the file and is not shown."""
    data = bytearray(source.read_bytes())
    movie = data.index(b"mvhd")
    (scale,) = struct.unpack_from(">I", data, movie + 16)
    for place in (movie + 20, data.index(b"tkhd") + 24, data.index(b"elst") + 12):
        struct.pack_into(">I", data, place, round(seconds * scale))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("audio", [False, True])
def test_trimmed_videos_are_whole(tmp_path, audio):
    """Frames that an edit list leaves out are announced and not there; that is no damage. What is cut off is."""
    whole = write_video(tmp_path / "whole.mp4", n=60, options={"g": "30", "bf": "2", "sc_threshold": "0"}, audio=audio)
    late = VideoFile(cut_at_the_start(whole, tmp_path / "late.mp4", 40))
    assert len(late) == 20 and [number(f) for f in late.frames_at([0, 7, 19])] == [40, 47, 59]
    early = VideoFile(cut_at_the_end(whole, tmp_path / "early.mp4", 2.0))
    assert len(early) == 20 and [number(f) for f in early.frames_at([0, 7, 19])] == [0, 7, 19]
    assert early.duration == pytest.approx(2)
    data = early.path.read_bytes()
    early.path.write_bytes(data[: 55 * len(data) // 100])  # the first second
    with pytest.raises(ValueError, match="truncated: 60 frames are announced"):
        VideoFile(early.path)


def copied_from_the_second_key_frame(source, path) -> int:
    """A copy of packets that starts where a group of pictures leans on the one before it; the number of its key frame."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        stream = whole.streams.video[0]
        copy = container.add_stream_from_template(stream)
        packets = [packet for packet in whole.demux(stream) if packet.size]
        start = [i for i, packet in enumerate(packets) if packet.is_keyframe][1]
        leaning = sum(packet.pts < packets[start].pts for packet in packets[start:])
        assert leaning > 0
        first = packets[start].dts
        for packet in packets[start:]:
            packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, copy
            container.mux(packet)
    return start + leaning


X264_OPEN = ("libx264", {"g": "8", "bf": "2", "sc_threshold": "0", "x264-params": "open-gop=1"})
OPEN_GROUPS = {
    "h264.mp4": X264_OPEN,  # an edit list says what is shown
    "h264.mkv": X264_OPEN,
    "h264.ts": X264_OPEN,
    "h265.mkv": ("libx265", {"x265-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:log-level=none:pools=none"}),
    "mpeg2.mkv": ("mpeg2video", {"g": "8", "bf": "2", "sc_threshold": "1000000000"}),
}


@pytest.mark.parametrize("name", OPEN_GROUPS)
def test_video_cut_at_an_open_group_of_pictures(tmp_path, name):
    """Pictures before the first key frame that lean on what was cut off are not shown, as in players."""
    codec, options = OPEN_GROUPS[name]
    whole = write_video(tmp_path / f"whole-{name}", codec=codec, options=options)
    key = copied_from_the_second_key_frame(whole, tmp_path / name)
    video = VideoFile(tmp_path / name)
    assert len(video) == 40 - key and [number(f) for f in video.read(range(len(video)))] == list(range(key, 40))
    assert [number(f) for f in video.frames_at([0, 9, 25 - key])] == [key, key + 9, 25]
    assert video.times.tolist() == pytest.approx(np.arange(40 - key) / 10, abs=2e-3)
    assert video.duration == pytest.approx((40 - key) / 10, abs=2e-3)


def test_an_open_group_of_pictures_without_its_key_frame_is_refused(tmp_path):
    """No picture comes before the next key frame: that is damage, not how the video was cut."""
    codec, options = OPEN_GROUPS["h265.mkv"]
    copied_from_the_second_key_frame(write_video(tmp_path / "whole.mkv", codec=codec, options=options), tmp_path / "a.mkv")
    with pytest.raises(ValueError, match=r"a\.mkv: frame 0 cannot be decoded"):
        VideoFile(damaged(tmp_path / "a.mkv", 0))


def test_vp8_pictures_that_are_not_shown(tmp_path):
    """Encoders store some only to predict others from; a copy of a key frame right behind it changes nothing that comes later."""
    whole, path = write_video(tmp_path / "whole.webm", codec="libvpx", options={"g": "10"}), tmp_path / "hidden.webm"
    with av.open(str(whole)) as source, av.open(str(path), "w") as container:
        stream = source.streams.video[0]
        copy, hidden = container.add_stream_from_template(stream), 0
        for packet in source.demux(stream):
            if packet.size == 0:
                continue
            data, pts, key = bytearray(packet), packet.pts, packet.is_keyframe
            packet.stream = copy
            container.mux(packet)
            if key:
                data[0] &= ~0x10
                unseen = av.Packet(bytes(data))
                unseen.pts, unseen.dts, unseen.time_base, unseen.stream = pts + 1, pts + 1, stream.time_base, copy
                container.mux(unseen)
                hidden += 1
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux()) == 40 + hidden > 42
    video = VideoFile(path)
    assert len(video) == 40 and [number(f) for f in video.read(range(40))] == list(range(40))
    assert [number(f) for f in video.frames_at([10, 11, 32])] == [10, 11, 32]


def test_audio_only_is_refused(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no video in this file, only audio"):
        open_views(path)


@pytest.mark.parametrize(("name", "match"), [("none.avi", "zero frames"), ("none.mp4", "no video in this file")])
def test_video_without_frames_is_refused(tmp_path, name, match):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = H, W, "yuvj420p"
        container.start_encoding()
    with pytest.raises(ValueError, match=match):
        open_views(path)


# --------------------------------------------------------------------------------------------------------------- images


def test_images_in_natural_order(tmp_path):
    for i in (1, 2, 10, 11, 100):
        Image.fromarray(picture(i)).save(tmp_path / f"img{i}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert layout_of(tmp_path) == "images"
    views = open_views(tmp_path)
    assert [number(f) for f in views.frames] == [1, 2, 10, 11, 100]
    assert np.array_equal(views.frames[2].permute(1, 2, 0).numpy(), picture(10))
    assert [number(f) for f in open_views(tmp_path, frames=2).frames] == [1, 100]
    listed = [tmp_path / "img11.png", tmp_path / "img2.png"]
    assert [number(f) for f in open_views(listed).frames] == [11, 2]
    assert number(open_views(tmp_path / "img10.png").frames[0]) == 10


def test_images_stand_upright_and_transparency_is_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn 90 degrees clockwise to show
    Image.fromarray(picture(5)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(open_images(tmp_path).frames[0].permute(1, 2, 0).numpy(), np.rot90(picture(5), -1))
    glass = np.zeros((4, 4, 4), dtype=np.uint8)
    Image.fromarray(glass).save(tmp_path / "b.png")
    assert (open_images(tmp_path / "b.png").frames == 255).all()


def test_images_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="nothing to read"):
        open_views(tmp_path)
    with pytest.raises(ValueError, match="no images"):
        open_views([])
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    Image.fromarray(picture(0, 20, 30)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"a\.png is 64x48, b\.png is 30x20"):
        open_views(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"b\.png: cannot be read"):
        open_views(tmp_path)
    Image.fromarray(np.zeros((H, W), dtype=np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: expected an RGB image"):
        open_views(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        open_views([tmp_path / "gone.png"])


# --------------------------------------------------------------------------------------------------------------- RGB-D

K = np.array([[60.0, 0, W / 2], [0, 60.0, H / 2], [0, 0, 1]])


def write_rgbd(folder, n=4, depth_size=(H, W), millimetres=2000, color=".color.png"):
    folder.mkdir(exist_ok=True)
    np.savetxt(folder / "camera-intrinsics.txt", K)
    for i in range(n):
        stem = folder / f"frame-{8 * i:06d}"
        Image.fromarray(picture(i)).save(f"{stem}{color}")
        depth = np.full(depth_size, millimetres + 100 * i, dtype=np.uint16)
        depth[0, 0], depth[0, 1] = 0, 65535
        Image.fromarray(depth).save(f"{stem}.depth.png")
        pose = np.eye(4)
        pose[0, 3] = 0.5 * i
        np.savetxt(f"{stem}.pose.txt", pose)
    return folder


def test_rgbd_reads_what_was_written(tmp_path):
    folder = write_rgbd(tmp_path / "scene")
    assert layout_of(folder) == "rgbd"
    views = open_views(folder)
    assert views.scale == "metric" and views.indices.tolist() == [0, 8, 16, 24]
    assert [number(f) for f in views.frames] == [0, 1, 2, 3]
    assert views.depth[:, 5, 5].tolist() == pytest.approx([2.0, 2.1, 2.2, 2.3])
    assert views.depth[0, 0, :2].tolist() == [0, 0]  # 0 and 65535 both mean nothing was measured
    assert views.camera_to_world[:, 0, 3].tolist() == [0, 0.5, 1.0, 1.5]
    assert torch.equal(views.intrinsics[2], torch.tensor(K).float())
    assert open_views(folder, frames=2).indices.tolist() == [0, 24]
    assert open_views(folder, intrinsics=2 * K).intrinsics[0, 0, 0] == 120
    assert open_views(folder, depth_scale=5000).depth[0, 5, 5] == pytest.approx(0.4)
    turned = open_views(folder, up=(0, -1, 0)).camera_to_world
    assert torch.allclose(turned[1] @ torch.tensor([0.0, -1, 0, 0]), torch.tensor([0.0, 0, 1, 0]), atol=1e-6)
    assert torch.linalg.det(turned[1, :3, :3]).item() == pytest.approx(1)


def test_rgbd_registers_depth_to_colour(tmp_path):
    """Depth seen by one lens, colour by a longer one: each colour pixel gets the depth its ray meets."""
    folder = write_rgbd(tmp_path / "scene", n=1)
    depth = np.tile(np.arange(1000, 1000 + 10 * W, 10, dtype=np.uint16), (H, 1))
    Image.fromarray(depth).save(folder / "frame-000000.depth.png")
    color_k = np.array([[120.0, 0, W / 2], [0, 120.0, H / 2], [0, 0, 1]])
    views = open_rgbd(folder, color_intrinsics=color_k)
    # twice the focal length: colour column c looks where depth column 16 + c / 2 does
    assert views.depth[0, 7].tolist() == pytest.approx([1 + 0.01 * (16 + c // 2) for c in range(W)])
    assert views.intrinsics[0, 0, 0] == 120


def test_rgbd_depth_of_another_size(tmp_path):
    folder = write_rgbd(tmp_path / "scene", depth_size=(H // 2, W // 2))
    with pytest.raises(ValueError, match="depth is 32x24, colour 64x48"):
        open_views(folder)
    np.savetxt(folder / "camera-intrinsics.txt", [[30, 0, W / 4], [0, 30, H / 4], [0, 0, 1]])
    views = open_views(folder, resize_depth=True)
    assert views.depth.shape == (4, H, W) and torch.allclose(views.intrinsics[0], torch.tensor(K).float())


def test_rgbd_depth_of_other_proportions_is_refused(tmp_path):
    folder = write_rgbd(tmp_path / "scene", depth_size=(H // 2, H // 2))
    with pytest.raises(ValueError, match=r"scene: depth is 24x24, colour 64x48: expected one field of view"):
        open_views(folder, resize_depth=True)
    assert open_rgbd(folder, color_intrinsics=K).depth.shape == (4, H, W)


def test_rgbd_options_that_mean_nothing_are_refused(tmp_path):
    folder = write_rgbd(tmp_path / "scene")
    for scale in (0, -1000, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"depth_scale: found {scale}, expected a positive number"):
            open_rgbd(folder, depth_scale=scale)
    for odd in (np.diag([60.0, 60, 0]), np.diag([-60.0, 60, 1]), np.full((3, 3), 60.0), np.diag([np.nan, 60, 1])):
        for option in ("intrinsics", "color_intrinsics"):
            with pytest.raises(ValueError, match=rf"^{option}: expected 3x3 intrinsics, upper triangular .*, found"):
                open_rgbd(folder, **{option: odd})


def test_rgbd_bad_poses(tmp_path):
    folder = write_rgbd(tmp_path / "scene")
    np.savetxt(folder / "frame-000008.pose.txt", np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match=r"frame-000008\.pose\.txt.*not finite"):
        open_views(folder)
    np.savetxt(folder / "frame-000008.pose.txt", np.diag([2.0, 2, 2, 1]))
    with pytest.raises(ValueError, match=r"frame-000008\.pose\.txt.*not rigid"):
        open_views(folder)
    np.savetxt(folder / "frame-000008.pose.txt", np.diag([1.0, 1, -1, 1]))  # a mirror
    with pytest.raises(ValueError, match="not rigid"):
        open_views(folder)
    (folder / "frame-000016.pose.txt").unlink()
    assert open_views(folder, drop_bad_poses=True).indices.tolist() == [0, 24]
    (folder / "frame-000008.pose.txt").write_text("1 0 0")
    with pytest.raises(ValueError, match="expected 4x4 numbers, found 3"):
        open_views(folder)


def test_rgbd_bad_depth(tmp_path):
    folder = write_rgbd(tmp_path / "far", millimetres=20000)  # a tenth of a millimetre, perhaps
    with pytest.raises(ValueError, match="another unit"):
        open_views(folder)
    assert open_views(folder, depth_scale=10000).depth[0, 9, 9] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="another unit"):
        open_views(write_rgbd(tmp_path / "near", millimetres=2))  # metres
    folder = write_rgbd(tmp_path / "eight")
    Image.fromarray(np.full((H, W), 7, dtype=np.uint8)).save(folder / "frame-000008.depth.png")
    with pytest.raises(ValueError, match=r"frame-000008\.depth\.png: expected 16-bit"):
        open_views(folder)
    (folder / "frame-000008.depth.png").unlink()
    with pytest.raises(ValueError, match=r"frame-000008\.depth\.png: the depth picture is missing"):
        open_views(folder)
    folder = write_rgbd(tmp_path / "nointrinsics")
    (folder / "camera-intrinsics.txt").unlink()
    with pytest.raises(ValueError, match="camera-intrinsics"):
        open_views(folder)


# ------------------------------------------------------------------------------------------------------------ all of them


def write_images(folder, n=4):
    folder.mkdir()
    for i in range(n):
        Image.fromarray(picture(i)).save(folder / f"{i}.png")
    return folder


def test_frames_come_in_time_order_whatever_the_order_of_the_list(tmp_path):
    images, rgbd = write_images(tmp_path / "images"), write_rgbd(tmp_path / "rgbd")
    for source in (images, sorted(images.iterdir()), rgbd, write_video(tmp_path / "a.mp4", n=4)):
        views = open_views(source, [3, 1, 3])
        assert [number(f) for f in views.frames] == [1, 3, 3]
        assert views.indices.tolist() == ([8, 24, 24] if source is rgbd else [1, 3, 3])
    assert open_views(rgbd, [3, 1]).camera_to_world[:, 0, 3].tolist() == [0.5, 1.5]
    assert open_views(rgbd, [3, 1]).depth[:, 5, 5].tolist() == pytest.approx([2.1, 2.3])


def test_frames_that_do_not_fit_into_memory_are_refused_before_room_is_made(tmp_path, monkeypatch):
    images, rgbd, video = write_images(tmp_path / "images"), write_rgbd(tmp_path / "rgbd"), write_video(tmp_path / "a.mp4", n=4)
    monkeypatch.setattr("allocentric.readers.choose.MAX_BYTES", 2 * H * W * 7)
    for source in (images, rgbd, video):
        assert len(open_views(source, 2)) == 2
    monkeypatch.setattr("torch.empty", None)
    monkeypatch.setattr("allocentric.readers.choose.MAX_BYTES", 3 * H * W * 3)
    for source, found in ((images, "4 frames of 64x48"), (rgbd, "4 frames of 64x48 with depth"), (video, "4 frames of 64x48")):
        with pytest.raises(ValueError, match=f"{source.name}: found {found}, .* GiB, expected at most .* GiB") as error:
            open_views(source)
        assert "\n" not in str(error.value) and ("max_side" in str(error.value)) == (source is not rgbd)
