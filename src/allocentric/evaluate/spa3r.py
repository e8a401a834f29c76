"""Does a Spa3R predict views it was not shown? Its features against the teachers', beside two guesses that need no learning.

    nearest   the features of the context view whose camera is nearest, patch by patch
    mean      one average feature for every patch

R^2 counts from the mean of what is to be predicted; cosines are between features as they are. Depth is that of the probe.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allocentric.encoders.spa3r import Field, load_spa3r
from allocentric.geometry.cameras import invert_rigid
from allocentric.train.pretrain import Draw, FieldLoss, SceneClips, Targets, build, heldout_scenes, pretrain, smoke
from allocentric.train.recipe import Pretrain
from allocentric.view.features import Colours, depth_picture, grid_of

GUESSES = ("predicted", "nearest", "mean")
KINDS = ("geometry", "semantic")


@dataclass(frozen=True)
class Clip:
    """One scene's clip: what the teachers say, and what the model predicts for its target views."""

    images: Tensor
    targets: Tensor
    truth: Targets
    predicted: Field

    @property
    def places(self) -> tuple[list[int], list[int]]:
        """Positions of context and of target views."""
        return (~self.targets).nonzero().flatten().tolist(), self.targets.nonzero().flatten().tolist()

    def nearest(self) -> list[int]:
        """For each target view, the context view it should resemble most."""
        context, targets = self.places
        return [context[i] for i in nearest_views(self.truth.extrinsics[0], context, targets, float(self.truth.depth.mean()))]


def nearest_views(extrinsics: Float[Tensor, "v 3 4"], context: list[int], targets: list[int], distance: float) -> list[int]:
    """For each target the position in `context` of the nearest camera.

    Near: how far a surface at `distance` moves in view, that is the distance of the two cameras plus `distance` times the angle
    between their axes in radians.
    """
    poses = invert_rigid(extrinsics)
    apart = (poses[targets, None, :3, 3] - poses[None, context, :3, 3]).norm(dim=-1)
    cosine = (poses[targets, None, :3, 2] * poses[None, context, :3, 2]).sum(-1).clamp(-1, 1)
    return (apart + distance * cosine.acos()).argmin(1).tolist()


@torch.no_grad()
def predict_clips(loss: FieldLoss, clips: SceneClips, views: int, count: int | None = None) -> Iterator[Clip]:
    """A clip of `views` views of each scene, or of the first `count`."""
    loss.eval()
    device = loss.model.projection.weight.device
    for scene in range(len(clips) if count is None else min(count, len(clips))):
        item = clips[Draw(scene, views, 0)]
        images, targets = item["images"][None].to(device), item["targets"][None].to(device)
        truth = loss.look(images, targets)
        latent = loss.model.encode(truth.context, loss.model.grid(images.shape[-2:]))
        chosen = item["targets"].nonzero().flatten()
        extrinsics, intrinsics = truth.extrinsics[:, chosen], truth.intrinsics[:, chosen]
        yield Clip(images[0], item["targets"], truth, loss.model.decode(latent, extrinsics, intrinsics, images.shape[-2:]))


def measure(loss: FieldLoss, clips: SceneClips, views: int, resamples: int = 1000) -> dict[str, dict[str, float]]:
    """Per kind of feature and guess: `cosine`, `r2`, and the 95% interval of each over scenes (percentile bootstrap).

    Under "depth": mean absolute relative error against the geometric teacher's depth; the guesses are those above.
    """
    if len(clips) < 2:
        raise ValueError(f"scenes: found {len(clips)}, expected at least 2 to measure on")
    means = _context_means(loss, clips, views)
    table: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    sums = {kind: [] for kind in KINDS}
    for clip in predict_clips(loss, clips, views):
        _, targets = clip.places
        near = clip.nearest()
        for kind in KINDS:
            true = getattr(clip.truth, kind)[0].float()
            guesses = {"predicted": getattr(clip.predicted, kind)[0].float(), "nearest": true[near], "mean": means[kind]}
            wanted = true[targets]
            flat = wanted.flatten(0, 1).double()
            sums[kind].append((flat.sum(0).cpu(), flat.square().sum(0).cpu(), len(flat)))
            for name, guess in guesses.items():
                guess = guess.expand_as(wanted)
                cosine = torch.cosine_similarity(guess, wanted, dim=-1).mean()
                error = (guess - wanted).double().square().sum()
                table.setdefault((kind, name), []).append((float(cosine), float(error)))
        depth = clip.truth.depth[0]
        guesses = {"predicted": clip.predicted.depth[0], "nearest": depth[near], "mean": means["depth"]}
        for name, guess in guesses.items():
            error = ((guess - depth[targets]).abs() / depth[targets].clamp(min=1e-6)).mean()
            table.setdefault(("depth", name), []).append((float(error),))

    rng = np.random.default_rng(0)
    draws = rng.integers(len(clips), size=(resamples, len(clips)))
    report: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        total, square, count = (np.stack([np.asarray(row[i]) for row in sums[kind]]) for i in range(3))

        def spread(rows: np.ndarray, total=total, square=square, count=count) -> float:
            return float((square[rows].sum(0) - total[rows].sum(0) ** 2 / count[rows].sum()).sum())

        spreads = np.array([spread(rows) for rows in draws])
        for name in GUESSES:
            cosine, error = np.array(table[kind, name]).T
            report[f"{kind} {name}"] = {
                "cosine": float(cosine.mean()),
                **_interval("cosine", cosine[draws].mean(1)),
                "r2": 1 - float(error.sum()) / spread(np.arange(len(clips))),
                **_interval("r2", 1 - error[draws].sum(1) / spreads),
            }
    for name in GUESSES:
        (error,) = np.array(table["depth", name]).T
        report[f"depth {name}"] = {"abs_rel": float(error.mean()), **_interval("abs_rel", error[draws].mean(1))}
    return report


def _context_means(loss: FieldLoss, clips: SceneClips, views: int, most: int = 32) -> dict[str, Tensor]:
    """Average feature and depth of context views: what can be known without looking at a target."""
    found: dict[str, list[Tensor]] = {name: [] for name in (*KINDS, "depth")}
    for clip in predict_clips(loss, clips, views, most):
        context, _ = clip.places
        for name, values in found.items():
            part = getattr(clip.truth, name)[0][context].float()
            values.append(part.flatten(0, 1).mean(0))
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def write_report(loss: FieldLoss, clips: SceneClips, views: int, folder: str | Path, pictures: int = 4) -> dict:
    """`measure`, as report.json and report.md, and features.png: true and predicted feature maps in the colours of one PCA."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = measure(loss, clips, views)
    about = {"scenes": len(clips), "views": views, "mask_ratio": clips.mask_ratio, "objective": asdict(loss.objective)}
    for i, clip in enumerate(predict_clips(loss, clips, views, pictures)):
        draw_clip(clip, loss.model.grid(clip.images.shape[-2:])).save(folder / f"features-{i}.png")
    lines = [
        "# Features of views that were not shown\n",
        f"{len(clips)} scenes, {views} views each, of which {round(100 * clips.mask_ratio)} % are targets. In brackets: the 95 % "
        "interval over scenes.\n",
        "| features | guess | cosine | R² |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        for name in GUESSES:
            row = numbers[f"{kind} {name}"]
            lines.append(f"| {kind} | {name} | {_said(row, 'cosine')} | {_said(row, 'r2')} |")
    lines += ["\n| depth | mean relative error |", "|---|---|"]
    lines += [f"| {name} | {_said(numbers[f'depth {name}'], 'abs_rel')} |" for name in GUESSES]
    lines += ["", *(f"![scene {i}](features-{i}.png)" for i in range(min(pictures, len(clips))))]
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    report = {"about": about, "numbers": numbers}
    partial = folder / "report.json.part"
    partial.write_text(json.dumps(report, indent=1))
    partial.replace(folder / "report.json")
    return report


def pretrain_and_report(
    recipe: Pretrain, out: str | Path, short: bool = False, progress=None, workers: int = 2
) -> Path | None:
    """Run a recipe, or its smoke version, and measure the result; the report written, if the recipe names scenes to measure on."""
    recipe = smoke(recipe) if short else recipe
    pretrain(recipe, Path(out), progress, workers)
    leader = int(os.environ.get("RANK", "0")) == 0  # one process measures
    report = report_on(recipe, out, progress, workers) if leader else None
    return None if report is None else Path(out) / "report" / "report.md"


def report_on(recipe: Pretrain, out: str | Path, progress=None, workers: int = 2) -> dict | None:
    """Measure the model in `out/model` on the recipe's held-out scenes and write `out/report`. None: the recipe names none."""
    out = Path(out)
    file = out / "report" / "report.json"
    if file.is_file():
        return json.loads(file.read_text())
    scenes = heldout_scenes(recipe, out, progress, workers)
    if scenes is None:
        return None
    loss = build(recipe, model=load_spa3r(out / "model"))
    loss.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    clips = SceneClips(scenes, recipe.data.width, loss.block, recipe.data.gaps, recipe.mask_ratio)
    return write_report(loss, clips, recipe.views[1], out / "report")


def _said(row: dict[str, float], name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f})"


def draw_clip(clip: Clip, grid: tuple[int, int]):
    """A row per target view: picture, geometry true, predicted and of the nearest view, semantics likewise, depth."""
    _, targets = clip.places
    near, colours = clip.nearest(), {kind: Colours(getattr(clip.truth, kind)[0].flatten(0, 1)) for kind in KINDS}
    rows = []
    for i, view in enumerate(targets):
        picture = (255 * clip.images[view]).round().to(torch.uint8).cpu()
        row = [(picture, f"view {view}")]
        for kind in KINDS:
            true, paint = getattr(clip.truth, kind)[0], colours[kind]
            row.append((paint.picture(true[view], grid), f"{kind}, true"))
            row.append((paint.picture(getattr(clip.predicted, kind)[0, i], grid), "predicted"))
            row.append((paint.picture(true[near[i]], grid), f"nearest: view {near[i]}"))
        depth = clip.predicted.depth[0, i].view(grid)
        row.append((depth_picture(clip.truth.depth[0, view].view(grid)), "depth, true"))
        row.append((depth_picture(depth), "predicted"))
        rows.append(row)
    return grid_of(rows, "target views: features as colours of one PCA per kind")
