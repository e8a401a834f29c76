"""What a scene latent knows: features and depth predicted at a camera nobody filmed from, as pictures.

    model = load_spa3r("out/spa3r-nano/model")
    views = fit(open_views("room.mp4", 8), patch=14, width=140)
    imagined = imagine(model, views, Camera(like=3, move=(0.5, 0, 0), turn=(30, 0)))
    draw_imagined(imagined).save("features.png")
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from allocentric.encoders.spa3r import Field, Spa3R, load_spa3r, resize
from allocentric.geometry.cameras import invert_rigid
from allocentric.readers import Source, open_views
from allocentric.view.contact_sheet import FAINT, GAP, INK, MARGIN, PAPER, font
from allocentric.views import Views

CELL = 200  # width of one picture, pixels


@dataclass(frozen=True)
class Camera:
    """A camera named by a view and a motion from it.

    like   which view, counted from 0.
    move   right, down, forward: in VGGT's unit (metres for nano).
    turn   degrees to the right and downwards; turning comes after moving.
    """

    like: int = 0
    move: tuple[float | int, float | int, float | int] = (0.0, 0.0, 0.0)
    turn: tuple[float | int, float | int] = (0.0, 0.0)

    def extrinsics(self, views: Float[Tensor, "s 3 4"]) -> Float[Tensor, "3 4"]:
        """World to this camera, given those of the views."""
        if not 0 <= self.like < len(views):
            raise ValueError(f"camera: found view {self.like}, expected 0 to {len(views) - 1}")
        right, down = (math.radians(angle) for angle in self.turn)
        yaw = torch.tensor([[math.cos(right), 0, math.sin(right)], [0, 1, 0], [-math.sin(right), 0, math.cos(right)]])
        pitch = torch.tensor([[1, 0, 0], [0, math.cos(down), math.sin(down)], [0, -math.sin(down), math.cos(down)]])
        motion = torch.eye(4)  # new camera to old
        motion[:3, :3], motion[:3, 3] = yaw @ pitch, torch.tensor(self.move, dtype=torch.float32)
        return invert_rigid(invert_rigid(views[self.like]) @ motion.to(views))[:3]


@dataclass(frozen=True)
class Imagined:
    """What a latent of `views` says is seen from `camera`.

    field    (1, 1, n, ...) of `encoders.spa3r.Field`, on `grid` rows and columns of patches.
    shown    VGGT's features of the views, (S, n, 2C), for pictures in the same colours.
    """

    views: Views
    camera: Camera
    field: Field
    shown: Tensor
    grid: tuple[int, int]


def fit(views: Views, patch: int, width: int) -> Views:
    """The frames of views, `width` wide and a whole number of patches high; their geometry is left behind."""
    frames = (resize(views.frames, width, patch) * 255).round().to(torch.uint8)
    return Views(frames, times=views.times, indices=views.indices, source=views.source)


@torch.no_grad()
def imagine(model: Spa3R, views: Views, camera: Camera, latent: Float[Tensor, "q d"] | None = None) -> Imagined:
    """Predict what is seen from `camera`.

    views    all are context; sides are multiples of VGGT's patch size (`fit`).
    latent   of these views, if it was made before.
    """
    parameter = model.projection.weight
    images = (views.frames.to(parameter.device).to(parameter.dtype) / 255)[None]
    size, special = images.shape[-2:], model.config.vggt_config.special_tokens
    (tokens,) = model.aggregator(images)
    extrinsics, intrinsics = model.cameras(tokens, size)
    patches = tokens[:, :, special:]
    if latent is None:
        latent = model.encode(patches, model.grid(size))[0]
    pose = camera.extrinsics(extrinsics[0])[None, None]
    field = model.decode(latent[None].to(parameter), pose, intrinsics[:, camera.like, None], size)
    return Imagined(views, camera, field, patches[0], model.grid(size))


def picture_of(source: Source, weights: str | Path, camera: Camera, frames: int, out: str | Path) -> dict:
    """Read `frames` views of a place, predict what `camera` sees, write a picture; what was predicted, in numbers."""
    model = load_spa3r(weights)
    config = model.config.vggt_config
    views = open_views(source, frames)
    if camera.like >= len(views) or camera.like < 0:
        raise ValueError(f"camera: found view {camera.like}, expected 0 to {len(views) - 1}")
    imagined = imagine(model, fit(views, config.patch_size, config.img_size), camera)
    draw_imagined(imagined).save(out)
    depth = imagined.field.depth
    return {
        "source": str(source),
        "frames": list(range(len(views))) if views.indices is None else views.indices.tolist(),
        "camera": asdict(camera),
        "depth_min": float(depth.min()),
        "depth_max": float(depth.max()),
        "picture": str(out),
    }


def draw_imagined(imagined: Imagined) -> Image.Image:
    """The views, their features below them in colours of one PCA, and at the end the imagined features and depth."""
    views, (rows, columns) = imagined.views, imagined.grid
    geometry = imagined.field.geometry[0, 0]
    basis = Colours(imagined.shown.flatten(0, 1))
    real = [(views.frames[i], f"view {i}") for i in range(len(views))]
    shown = [(basis.picture(tokens, imagined.grid), "its geometry") for tokens in imagined.shown]
    depth = imagined.field.depth[0, 0].view(rows, columns)
    move, turn = (", ".join(f"{v:g}" for v in values) for values in (imagined.camera.move, imagined.camera.turn))
    semantic = imagined.field.semantic[0, 0]
    made = [
        (basis.picture(geometry, imagined.grid), "imagined geometry"),
        (Colours(semantic).picture(semantic, imagined.grid), "imagined semantics"),
        (depth_picture(depth), f"depth {float(depth.min()):.1f} to {float(depth.max()):.1f}"),
    ]
    title = f"imagined from view {imagined.camera.like} moved by ({move}), turned by ({turn}) degrees"
    return grid_of([real, shown, made], title)


class Colours:
    """The first three principal components of some features as red, green and blue."""

    def __init__(self, features: Float[Tensor, "n c"]):
        features = features.detach().float().cpu()
        self.mean = features.mean(0)
        _, _, v = torch.linalg.svd(features - self.mean, full_matrices=False)
        # each axis points the way in which most of its weight lies, so that a picture does not depend on the solver's sign
        v = v[:3] * v[:3].sum(1, keepdim=True).sign()
        self.axes = torch.cat([v, v.new_zeros(3 - len(v), v.shape[1])])
        places = (features - self.mean) @ self.axes.T
        self.low, self.high = (torch.quantile(places[:100_000], q, dim=0) for q in (0.02, 0.98))

    def picture(self, features: Float[Tensor, "n c"], grid: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
        places = (features.detach().float().cpu() - self.mean) @ self.axes.T
        unit = ((places - self.low) / (self.high - self.low).clamp(min=1e-9)).clamp(0, 1)
        return (255 * unit).round().to(torch.uint8).T.unflatten(1, grid)


def depth_picture(depth: Float[Tensor, "h w"]) -> UInt8[Tensor, "3 h w"]:
    """Near is light, far is dark."""
    depth = depth.detach().float().cpu()
    unit = 1 - (depth - depth.min()) / (depth.max() - depth.min()).clamp(min=1e-9)
    return (255 * unit).round().to(torch.uint8).expand(3, -1, -1)


def grid_of(rows: list[list[tuple[UInt8[Tensor, "3 _ _"], str]]], title: str) -> Image.Image:
    """Rows of pictures with captions, all drawn `CELL` wide and as high as the first one's shape says."""
    height = round(CELL * rows[0][0][0].shape[1] / rows[0][0][0].shape[2])
    step = height + 24 + GAP // 2
    width = max(2 * MARGIN + max(map(len, rows)) * (CELL + GAP) - GAP, 520)
    sheet = Image.new("RGB", (width, MARGIN + 30 + len(rows) * step), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 8), title, fill=INK, font=font(17))
    for r, row in enumerate(rows):
        for c, (picture, caption) in enumerate(row):
            at = (MARGIN + c * (CELL + GAP), MARGIN + 26 + r * step)
            coarse = picture.shape[2] < CELL // 4  # a map of patches keeps its edges
            how = Image.Resampling.NEAREST if coarse else Image.Resampling.LANCZOS
            sheet.paste(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).resize((CELL, height), how), at)
            draw.text((at[0], at[1] + height + 3), caption, fill=FAINT, font=font(13))
    return sheet
