"""How well a model points at things in rooms nobody trained on, and what each of its parts is worth.

    allo train recipes/s2_nano.yaml --out out/s2_nano                        rooms, training, card
    allo train recipes/s2_nano.yaml --out out/s2_nano --stages ablations     one part left out at a time, each trained anew

Every description is asked once. The model chooses among the boxes of three kinds of proposals: the true ones; noisy ones (moved,
missed and false boxes); and what `geometry.proposals` finds in the depth. Their recall stands beside the accuracy, which it bounds,
and so do two guesses: any proposal, and any proposal of the right category (as if a perfect detector named them).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from allocentric.evaluate.answers import Row, read_rows
from allocentric.evaluate.rooms import numbered
from allocentric.evaluate.run import Reply, Responder, ask, process
from allocentric.evaluate.statistics import DRAWS, interval
from allocentric.files import write_whole
from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array
from allocentric.geometry.cameras import unproject_depth
from allocentric.geometry.proposals import propose
from allocentric.models.grounding import GroundingScene, S2Processor, load_grounding
from allocentric.models.s2_mllm import S2Model
from allocentric.models.scene import weights_id
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question
from allocentric.tasks.grounding import ReferringExpression
from allocentric.train.card import HELD_OUT_SEED
from allocentric.train.grounding import BEGIN, jittered, room_views, smoke, train_grounding
from allocentric.train.recipe import GroundingTraining
from allocentric.train.shards import RoomSample, RoomShards, write_rooms

STAGES = ("train", "card", "ablations")
KINDS = {"perfect": "the true boxes", "noisy": "moved, missed and false boxes", "shape": "what stands apart in the depth"}
GROUPS = ("overall", "unique", "multiple", "easy", "hard", "view_dependent", "view_independent")
LEAST = (0.25, 0.5)  # overlaps that count

Progress = Callable[[str, Iterable[tuple[int, int]]], None]


def train_and_report(
    recipe: GroundingTraining,
    out: Path,
    small: bool = False,
    progress: Progress | None = None,
    stages: Sequence[str] = (),
    workers: int = 2,
) -> list[Path]:
    """Run the stages (default: train, and the card if the recipe has one); returns the reports that were written.

    `small` runs the same code on a handful of rooms.
    """
    stages = stages or ("train", *(["card"] if recipe.card else []))
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ValueError(f"stages: found {unknown}, expected some of {list(STAGES)}")
    if recipe.card is None and {"card", "ablations"} & set(stages):
        raise ValueError("stages: found no `card` in the recipe, expected it to say what is asked about which rooms")
    recipe, out = smoke(recipe) if small else recipe, Path(out)
    progress = progress or (lambda name, steps: [None for _ in steps])
    reports = []
    if "train" in stages:
        train_grounding(recipe, out, None, progress, workers)
    if "card" in stages:
        reports.append(make_card(recipe, out, progress))
    if "ablations" in stages:
        reports.append(make_ablations(recipe, out, progress, workers))
    return reports


# ------------------------------------------------------------------------------------------------------------------ what is asked


def held_out(recipe: GroundingTraining, out: Path, progress: Progress) -> tuple[RoomShards, list[Question]]:
    """Rooms that no recipe trains on, of the size and style of training, and the same questions about them every time."""
    spec = replace(recipe.data.rooms, count=recipe.card.rooms, first_seed=HELD_OUT_SEED)
    folder = out / "held-out"
    if process()[0] == 0:
        progress("held-out rooms", write_rooms(folder, spec))
    shards = RoomShards(folder, spec.count)
    task = ReferringExpression()
    asked = [task.make(shards[i].scene, np.random.default_rng([0, i]), recipe.card.descriptions) for i in range(len(shards))]
    return shards, [question for questions in numbered(asked) for question in questions]


def proposals(sample: RoomSample, seed: int) -> dict[str, list[Box3D]]:
    """The boxes of each of `KINDS`. Labels are known here; a model never sees them."""
    perfect = [replace(o.box, label=o.label) for o in sample.scene.objects]
    views = room_views(sample)
    points = unproject_depth(views.depth, views.intrinsics, views.camera_to_world).reshape(-1, 3).numpy()
    return {
        "perfect": perfect,
        "noisy": noisy(sample.scene, np.random.default_rng([1, seed])),
        "shape": named(propose(points), perfect),
    }


def noisy(
    scene: AnnotatedScene, rng: np.random.Generator, missed: float = 0.1, moved: float = 0.2, false: float = 0.3
) -> list[Box3D]:
    """The boxes of a scene as a detector might give them, in no order.

    missed   share of the boxes that are not there.
    moved    the others are moved and resized by up to this share of their size along each axis (`train.grounding.jittered`).
    false    so many boxes for each true one have the size of one and stand anywhere in the room; they have no label.
    """
    boxes = [replace(o.box, label=o.label) for o in scene.objects]
    kept = jittered([box for box in boxes if rng.random() >= missed], moved, rng)
    places = np.array([box.center for box in boxes])
    wrong = [
        replace(boxes[i], center=tuple(rng.uniform(places.min(0), places.max(0)).tolist()), label="")
        for i in rng.integers(len(boxes), size=round(false * len(boxes)))
    ]
    found = [*kept, *wrong]
    return [found[i] for i in rng.permutation(len(found))]


def named(boxes: Sequence[Box3D], truth: Sequence[Box3D]) -> list[Box3D]:
    """Each box with the label of the true one that it overlaps most, if by 0.25 at least."""
    if not boxes:
        return []
    overlap = pair_iou(boxes, truth)
    best = overlap.argmax(1)
    return [replace(box, label=truth[best[i]].label if overlap[i, best[i]] >= LEAST[0] else "") for i, box in enumerate(boxes)]


def pair_iou(a: Sequence[Box3D], b: Sequence[Box3D]) -> Float[np.ndarray, "a b"]:
    """The overlap of each box with each other one."""
    first, second = boxes_to_array(a), boxes_to_array(b)
    pairs = box_iou(np.repeat(first, len(second), axis=0), np.tile(second, (len(first), 1)))
    return pairs.reshape(len(first), len(second))


class PointingRooms(Responder):
    """A model that chooses among all kinds of proposals of a room. It writes a JSON object: the box chosen of each kind,
    and whether the model came to `<ground>` by itself (`models.grounding.Grounding`).

    given   what is proposed in each room.
    leak    answers begin with the gold category, as in the published evaluation: what that is worth.
    """

    def __init__(
        self,
        network: S2Model,
        processor: S2Processor,
        shards: RoomShards,
        given: Sequence[Mapping[str, list[Box3D]]],
        leak: bool = False,
    ):
        self.network, self.processor, self.shards, self.given, self.leak = network, processor, shards, given, leak

    def reply(self, seen: None, questions: Sequence[Question], prompts: Sequence[str]) -> list[Reply]:
        room = int(questions[0].scene)
        given = self.given[room]
        boxes = [box for kind in given.values() for box in kind]
        # which of some boxes scores highest does not depend on the others, so one look serves all kinds
        scene = GroundingScene.encode(self.network, self.processor, room_views(self.shards[room]), boxes)
        begun = [BEGIN.format(question.objects[0]) for question in questions] if self.leak else None
        found = scene.ground([question.text for question in questions], begun=begun)
        replies = []
        for one in found:
            chosen, start = {"complete": one.complete}, 0
            for kind, some in given.items():
                if some:
                    chosen[kind] = written(some[int(np.argmax(one.scores[start : start + len(some)]))])
                start += len(some)
            replies.append(Reply(json.dumps(chosen), one.text))
        return replies


def written(box: Box3D) -> list[float]:
    return [*box.center, *box.size, box.yaw]


def score(question: Question, prediction: str) -> float:
    """Whether the true box that was chosen is the right one."""
    return ReferringExpression().score(question, json.dumps(json.loads(prediction).get("perfect")))


def ask_model(
    network: S2Model,
    processor: S2Processor,
    shards: RoomShards,
    questions: Sequence[Question],
    given: Sequence[Mapping[str, list[Box3D]]],
    file: Path,
    progress: Progress,
    leak: bool = False,
) -> list[Row]:
    """Every answer, also in the JSONL `file`, which is continued where it stops (`evaluate.run.ask`)."""
    responder = PointingRooms(network, processor, shards, given, leak)
    progress(f"questions ({file.stem})", ask(questions, ReferringExpression().prompt, score, responder, file))
    return read_rows(file)


# ------------------------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Hits:
    """How often each description was understood: 0 or 1, or the probability of a guess; at each overlap of `LEAST`."""

    rooms: Int[np.ndarray, " n"]
    right: dict[float, Float[np.ndarray, " n"]]

    def within(self, chosen: np.ndarray) -> "Hits":
        return Hits(self.rooms[chosen], {least: right[chosen] for least, right in self.right.items()})

    def shares(self, least: float, weights: Float[np.ndarray, "draws rooms"]) -> Float[np.ndarray, " draws"]:
        """Percent right, for each row of how often each room counts; NaN where no room that counts is asked about."""
        count, rooms = weights.shape[1], self.rooms
        right, asked = (weights @ np.bincount(rooms, value, count) for value in (self.right[least], np.ones(len(rooms))))
        return np.divide(100 * right, asked, out=np.full(len(weights), np.nan), where=asked > 0)


def draw_rooms(rooms: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws rooms"]:
    """How often each room is drawn; the same for everything that is compared, so that differences are paired."""
    picks = np.random.default_rng(seed).integers(0, rooms, (draws, rooms))
    return np.stack([np.bincount(pick, minlength=rooms) for pick in picks]).astype(float)


def model_hits(rows: Sequence[Row], kind: str) -> Hits:
    """What the model chose among the proposals of a kind."""
    chosen = [json.loads(row.prediction).get(kind) for row in rows]
    ious = [_overlap(row.question, [_box(box)] if box else []).max(initial=0.0) for row, box in zip(rows, chosen, strict=True)]
    return _hits([row.question for row in rows], [np.array([iou]) for iou in ious], [slice(None)] * len(rows))


def guesses(questions: Sequence[Question], given: Sequence[Mapping[str, list[Box3D]]], kind: str) -> dict[str, Hits]:
    """The chance of two guesses, and `recall`: whether any proposal would be right."""
    boxes = [given[int(question.scene)][kind] for question in questions]
    ious = [_overlap(question, some) for question, some in zip(questions, boxes, strict=True)]
    same = [np.array([box.label == q.answer for box in some], dtype=bool) for q, some in zip(questions, boxes, strict=True)]
    best = [np.array([iou.max(initial=0.0)]) for iou in ious]
    return {
        "category": _hits(questions, ious, [one if one.any() else slice(None) for one in same]),
        "random": _hits(questions, ious, [slice(None)] * len(ious)),
        "recall": _hits(questions, best, [slice(None)] * len(ious)),
    }


def _hits(questions: Sequence[Question], ious: Sequence[np.ndarray], among: Sequence) -> Hits:
    rooms = np.array([int(question.scene) for question in questions])
    chosen = [iou[some] for iou, some in zip(ious, among, strict=True)]
    return Hits(rooms, {least: np.array([(c >= least).mean() if len(c) else 0.0 for c in chosen]) for least in LEAST})


def _overlap(question: Question, boxes: Sequence[Box3D]) -> Float[np.ndarray, " k"]:
    return pair_iou(boxes, question.boxes).max(1) if boxes else np.zeros(0)


def _box(numbers: Sequence[float]) -> Box3D:
    return Box3D(tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6])


def table(questions: Sequence[Question], columns: Mapping[str, Hits], rooms: int) -> list[dict]:
    """A row for each group of descriptions: percent right at each overlap in each column, and the middle 95 % of draws of rooms."""
    weights, plain = draw_rooms(rooms), np.ones((1, rooms))
    rows = []
    for group in GROUPS:
        inside = np.array([group == "overall" or group in question.groups for question in questions], dtype=bool)
        if not inside.any():
            continue
        numbers = {}
        for name, hits in columns.items():
            some = hits.within(inside)
            numbers[name] = {
                str(least): [float(some.shares(least, plain)[0]), *interval(some.shares(least, weights))] for least in LEAST
            }
        rows.append({"group": group, "n": int(inside.sum()), **numbers})
    return rows


# -------------------------------------------------------------------------------------------------------------------------- card


def make_card(recipe: GroundingTraining, out: Path, progress: Progress) -> Path:
    """Ask the model in `out/model` and write `out/card.md`, and its numbers as `card.json`."""
    shards, questions = held_out(recipe, out, progress)
    given = [proposals(shards[i], i) for i in range(len(shards))]
    network, processor = load_grounding(out / "model", dtype=torch.float32)
    file = out / f"answers-{weights_id(network)[:8]}.jsonl"
    rows = ask_model(network, processor, shards, questions, given, file, progress)
    content = {"rooms": len(shards), "descriptions": len(questions), "steps": recipe.optimisation.steps, "kinds": {}}
    for kind in KINDS:
        columns = {"model": model_hits(rows, kind), **guesses(questions, given, kind)}
        boxes = sum(len(one[kind]) for one in given) / len(given)
        content["kinds"][kind] = {"boxes_per_room": boxes, "groups": table(questions, columns, len(shards))}
    content["complete"] = float(np.mean([json.loads(row.prediction)["complete"] for row in rows]))
    if process()[0] == 0:
        write_whole(out / "card.json", json.dumps(content, indent=1) + "\n")
        write_whole(out / "card.md", card_text(recipe, content))
    return out / "card.md"


CARD = """# s2_nano

An S2-MLLM trained from `{start}` on {trained} procedural rooms: {steps} steps of {batch} room(s), {each} descriptions each.
It knows those rooms and no others.

Asked: {descriptions} descriptions of objects in {rooms} rooms that nobody trained on, each once. The model is given the
description alone and writes its answer itself; it came to `<ground>` of its own accord in {complete:.1f} %. Numbers are percent
whose chosen box overlaps the right one by 0.25 and by 0.5; brackets: middle 95 % of draws of rooms. `category` guesses among
proposals of the right category, as if a perfect detector named them, `random` among all. `recall`: some proposal would be right.
"""


def card_text(recipe: GroundingTraining, content: dict) -> str:
    asked = {name: content[name] for name in ("rooms", "descriptions", "steps")}
    lines = [
        CARD.format(
            start=recipe.start,
            trained=recipe.data.rooms.count,
            batch=recipe.optimisation.batch_size,
            each=recipe.data.descriptions,
            complete=100 * content["complete"],
            **asked,
        )
    ]
    for kind, numbers in content["kinds"].items():
        lines.append(f"\n## {kind.capitalize()}: {KINDS[kind]} ({numbers['boxes_per_room']:.1f} a room)\n")
        for least in map(str, LEAST):
            lines += [f"| Acc@{least} | n | model | category | random | recall |", "|---|---|---|---|---|---|"]
            for row in numbers["groups"]:
                value, low, high = row["model"][least]
                rest = " | ".join(f"{row[name][least][0]:.1f}" for name in ("category", "random", "recall"))
                lines.append(f"| {row['group']} | {row['n']} | **{value:.1f}** [{low:.1f}, {high:.1f}] | {rest} |")
            lines.append("")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------------- ablations


def variants(recipe: GroundingTraining) -> dict[str, GroundingTraining]:
    """The recipe, and the same without one part, or with the published mistake in it."""
    structure = lambda **changes: replace(recipe, structure={**recipe.structure, **changes})  # noqa: E731
    rates = {pattern: rate for pattern, rate in recipe.learning_rates.items() if "guidance" not in pattern}
    return {
        "full": recipe,
        "without guidance": replace(recipe, guidance=None, learning_rates=rates),
        "without position encoding": structure(use_position=False),
        "without structure module": structure(use_structure=False),
        "without language guidance": replace(recipe, data=replace(recipe.data, language=False)),
        "scrambled groups": structure(scrambled_groups=True),
    }


def make_ablations(recipe: GroundingTraining, out: Path, progress: Progress, workers: int = 2) -> Path:
    """Train every variant for as many steps on the same rooms, ask all the same, and write `out/ablations.md` and `.json`.

    Each has a folder in `out/ablations`; what is there is not made again, so an interrupted run goes on where it stopped.
    """
    recipe = replace(recipe, optimisation=replace(recipe.optimisation, steps=recipe.card.ablation_steps, epochs=None))
    shards, questions = held_out(recipe, out, progress)
    given = [proposals(shards[i], i) for i in range(len(shards))]
    answers: dict[str, list[Row]] = {}
    for name, variant in variants(recipe).items():
        folder = out / "ablations" / name.replace(" ", "-")
        train_grounding(variant, folder, None, progress, workers, rooms=out / "rooms")
        network, processor = load_grounding(folder / "model", dtype=torch.float32)
        asked = partial(ask_model, network, processor, shards, questions, given)
        answers[name] = asked(folder / "answers.jsonl", progress)
        if name == "full":
            answers["full, told the gold category"] = asked(folder / "answers-leak.jsonl", progress, leak=True)
    content = {"rooms": len(shards), "descriptions": len(questions), "steps": recipe.optimisation.steps, "variants": {}}
    weights, plain = draw_rooms(len(shards)), np.ones((1, len(shards)))
    for name, rows in answers.items():
        for kind in ("perfect", "noisy"):
            hits, full = model_hits(rows, kind), model_hits(answers["full"], kind)
            for least in LEAST:
                change = [hits.shares(least, w) - full.shares(least, w) for w in (plain, weights)]
                content["variants"].setdefault(name, {})[f"{kind}@{least}"] = {
                    "accuracy": [float(hits.shares(least, plain)[0]), *interval(hits.shares(least, weights))],
                    "change": [float(change[0][0]), *interval(change[1])],
                }
    guess = {kind: guesses(questions, given, kind)["category"].shares(LEAST[0], plain)[0] for kind in ("perfect", "noisy")}
    content["category"] = {kind: float(value) for kind, value in guess.items()}
    if process()[0] == 0:
        write_whole(out / "ablations.json", json.dumps(content, indent=1) + "\n")
        write_whole(out / "ablations.md", ablations_text(content))
    return out / "ablations.md"


ABLATIONS = """# What each part of s2_nano is worth

Every row was trained anew for {steps} steps on the same rooms in the same order, from one seed, and asked the same {descriptions}
descriptions in {rooms} held-out rooms. Percent right; in brackets the middle 95 % of draws of rooms, which does not hold what
another seed of training would change. `change` is against the first row, on the same draws. The second row is the model of the
first, whose answer is begun with the gold category as in the published evaluation. Guessing within the right category:
{perfect:.1f} with true boxes, {noisy:.1f} with noisy ones.

| | true boxes, Acc@0.25 | change | noisy boxes, Acc@0.25 | change | noisy boxes, Acc@0.5 | change |
|---|---|---|---|---|---|---|"""


def ablations_text(content: dict) -> str:
    asked = {name: content[name] for name in ("rooms", "descriptions", "steps")}
    lines = [ABLATIONS.format(**asked, **content["category"])]
    for name, numbers in content["variants"].items():
        cells = []
        for column in ("perfect@0.25", "noisy@0.25", "noisy@0.5"):
            value, low, high = numbers[column]["accuracy"]
            change, least, most = numbers[column]["change"]
            cells.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
            cells.append("" if name == "full" else f"{change:+.1f} [{least:+.1f}, {most:+.1f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
