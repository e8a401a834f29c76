"""`SceneGraph`: what is where in a place. The map that is generated, parsed, solved, reasoned on and drawn."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from allocentric.geometry.boxes import Box3D, box_distance, boxes_to_array, into_footprint_frame
from allocentric.geometry.floor import polygon_area
from allocentric.graph.grammar import parse_map, spelled, write_map
from allocentric.graph.solve import solve_layout
from allocentric.graph.triplets import Node, Triplet, build_chain
from allocentric.scenes import VISIBLE, AnnotatedScene

TOUCHING = 0.05  # metres between the underside of an object and what it stands on
NEAR = 0.5  # metres between the closest points of objects that are next to each other


@dataclass(frozen=True)
class GraphObject:
    """One object: a box, or only a point seen from above.

    instance     1, 2, ... among the objects of one label, in order of first appearance.
    box          world metres; None when only the place is known.
    point        centre seen from above, metres; given exactly when there is no box.
    first_seen   number of the frame in which it first appears; None when unknown.
    sigma        standard deviation of its place in metres; None when unknown, 0 when exact.
    """

    label: str
    instance: int = 1
    box: Box3D | None = None
    point: tuple[float, float] | None = None
    first_seen: int | None = None
    sigma: float | None = None

    def __post_init__(self):
        if (self.box is None) == (self.point is None):
            raise ValueError(f"{self.label}: expected either a box or a point, found {'neither' if self.box is None else 'both'}")

    @property
    def xy(self) -> tuple[float, float]:
        """Centre seen from above, metres."""
        return self.point if self.box is None else self.box.center[:2]


@dataclass(frozen=True)
class Relation:
    """`subject` is `predicate` `object`; both are names as `SceneGraph.names` gives them."""

    subject: str
    predicate: Literal["on", "above", "next to"]
    object: str


@dataclass(frozen=True)
class SceneGraph:
    """Objects of one place and how they relate, in world metres (z up), or in unknown units when `scale` is "relative".

    floor       outline of each room as an (n, 2) polygon; empty when unknown.
    room_area   square metres of floor; None when unknown.
    viewpoint   (x, y, z, heading) of the first camera, heading in radians counter-clockwise from the x axis; None when unknown.
    written     the triplets of the map that it was read from; empty when there was none.
    """

    name: str
    objects: tuple[GraphObject, ...]
    relations: tuple[Relation, ...] = ()
    floor: tuple[Float[np.ndarray, "v 2"], ...] = field(default=(), compare=False)
    room_area: float | None = None
    viewpoint: tuple[float, float, float, float] | None = None
    scale: Literal["metric", "relative"] = "metric"
    written: tuple[Triplet, ...] = field(default=(), compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """One name per object: its label, with ".k" behind it where the label repeats ("chair.2")."""
        counts = Counter(o.label for o in self.objects)
        return tuple(o.label if counts[o.label] == 1 else f"{o.label}.{o.instance}" for o in self.objects)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Each object as maps write it: its label as the grammar spells it ("object" where it cannot), and its number among those
        that are spelled alike.
        """
        labels = [spelled(o.label) for o in self.objects]
        numbered = tuple((label, o.instance) for label, o in zip(labels, self.objects, strict=True))
        if len(set(numbered)) == len(numbered):
            return numbered
        counts: Counter[str] = Counter()  # "Chair" and "chair" are two labels, but one in a map
        return tuple((label, counts.update((label,)) or counts[label]) for label in labels)

    @property
    def points(self) -> Float[np.ndarray, "n 2"]:
        """Centres of all objects seen from above, metres."""
        return np.array([o.xy for o in self.objects], dtype=np.float64).reshape(-1, 2)

    @classmethod
    def from_scene(cls, scene: AnnotatedScene) -> "SceneGraph":
        """The exact graph of an annotated scene. Objects come in order of first appearance, the larger view first."""
        seen = scene.visibility
        firsts: list[int | None] = [None] * len(scene.objects)
        if seen is not None:
            reached = seen >= VISIBLE
            firsts = [int(column.argmax()) if column.any() else None for column in reached.T]

        def when(i: int) -> tuple[float, float, int]:
            first = firsts[i]
            return (math.inf, 0.0, i) if first is None else (float(first), -float(seen[first, i]), i)

        order = sorted(range(len(scene.objects)), key=when)
        area = scene.room_area
        if area is None and scene.floor:
            area = sum(polygon_area(polygon) for polygon in scene.floor)
        return cls.from_objects(
            scene.name,
            [GraphObject(scene.objects[i].label, 1, scene.objects[i].box, None, firsts[i], 0.0) for i in order],
            floor=scene.floor,
            room_area=area,
            viewpoint=_viewpoint(scene.camera_to_world),
        )

    @classmethod
    def from_boxes(
        cls,
        boxes: Iterable[Box3D],
        name: str = "",
        first_seen: Sequence[int | None] | None = None,
        sigma: float | None = None,
        **known,
    ) -> "SceneGraph":
        """A graph of labelled boxes, detected or annotated. `known`: floor, room_area, viewpoint, scale."""
        boxes = list(boxes)
        if unnamed := sum(not box.label for box in boxes):
            raise ValueError(f"scene graph: expected a label on every box, found {unnamed} of {len(boxes)} without")
        firsts = [None] * len(boxes) if first_seen is None else list(first_seen)
        order = sorted(range(len(boxes)), key=lambda i: (firsts[i] is None, firsts[i] or 0, i))
        return cls.from_objects(name, [GraphObject(boxes[i].label, 1, boxes[i], None, firsts[i], sigma) for i in order], **known)

    @classmethod
    def from_text(
        cls,
        text: str,
        name: str = "",
        viewpoint: tuple[float, float, float, float] | None = None,
        axes: Literal["shared", "free"] = "shared",
    ) -> "SceneGraph":
        """The layout that a written map describes (`graph.grammar`), solved jointly (`graph.solve`).

        Without extents ("r=") the scale is relative. Lines that cannot be read or that hang in the air are left out; parse and
        solve by hand to learn which.

        axes   of the lines: "shared", or "free" for a map whose lines are turned each as it likes ("ego" or "random" axes), which
               nothing in its text tells.
        """
        parsed = parse_map(text)
        layout = solve_layout(parsed.triplets, axes)
        return cls(
            name,
            tuple(
                GraphObject(label, instance, None, (float(x), float(y)), None, float(sigma))
                for (label, instance), (x, y), sigma in zip(layout.nodes, layout.points, layout.sigma, strict=True)
            ),
            viewpoint=viewpoint,
            scale="metric" if layout.metric else "relative",
            written=parsed.triplets,
        )

    @classmethod
    def from_objects(cls, name: str, objects: Iterable[GraphObject], **known) -> "SceneGraph":
        """A graph of objects in the order given: they get new instance numbers, and relations where there are boxes."""
        counts: Counter[str] = Counter()
        numbered = []
        for o in objects:
            counts[o.label] += 1
            numbered.append(replace(o, instance=counts[o.label]))
        graph = cls(name, tuple(numbered), **known)
        return replace(graph, relations=find_relations(graph))

    def canonical(self) -> "SceneGraph":
        """The same place seen from the first camera: it stands at the origin, y is its heading, x its right (spec 7.1)."""
        if self.viewpoint is None:
            raise ValueError(f"{self.name}: expected a viewpoint to turn the graph by, found none")
        x0, y0, z0, heading = self.viewpoint
        turn = math.pi / 2 - heading
        cos, sin = math.cos(turn), math.sin(turn)
        rotation = np.array([[cos, -sin], [sin, cos]])

        def move(xy) -> tuple[float, float]:
            x, y = rotation @ (np.asarray(xy, dtype=np.float64) - (x0, y0))
            return float(x), float(y)

        def moved(o: GraphObject) -> GraphObject:
            if o.box is None:
                return replace(o, point=move(o.point))
            yaw = math.remainder(o.box.yaw + turn, math.tau)
            return replace(o, box=replace(o.box, center=(*move(o.xy), o.box.center[2] - z0), yaw=yaw))

        floor = tuple((np.asarray(polygon) - (x0, y0)) @ rotation.T for polygon in self.floor)
        return replace(self, objects=tuple(map(moved, self.objects)), floor=floor, viewpoint=(0.0, 0.0, 0.0, math.pi / 2))

    def triplets(self, redundancy: int = 3, axes: Literal["shared", "ego", "random"] = "shared") -> list[Triplet]:
        """The graph as a chain of local triplets (`graph.triplets`), in order of first appearance; extents where it is metric."""
        gaps = None
        if self.objects and all(o.box is not None for o in self.objects):
            rows = boxes_to_array(o.box for o in self.objects)
            i, j = np.indices((len(rows), len(rows))).reshape(2, -1)
            gaps = box_distance(rows[i], rows[j]).reshape(len(rows), len(rows))
        return build_chain(self.nodes, self.points, gaps, redundancy, axes, metric=self.scale == "metric")

    def boxes(self) -> list[Box3D]:
        """The boxes of all objects; ValueError when some are known as points only."""
        if points := [name for name, o in zip(self.names, self.objects, strict=True) if o.box is None]:
            raise ValueError(f"{self.name}: expected boxes, found only points of {', '.join(points)}")
        return [o.box for o in self.objects]

    def to_json(self) -> str:
        """One JSON object; `from_json` is its inverse."""
        return json.dumps(
            {
                "format": "allocentric-graph",
                "version": 1,
                "name": self.name,
                "scale": self.scale,
                "room_area": self.room_area,
                "viewpoint": None if self.viewpoint is None else list(self.viewpoint),
                "floor": [np.asarray(polygon).tolist() for polygon in self.floor],
                "objects": [_object_to_dict(o) for o in self.objects],
                "relations": [asdict(r) for r in self.relations],
                "map": write_map(self.written) if self.written else None,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "SceneGraph":
        """Read what `to_json` wrote; anything else raises ValueError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"scene graph: expected JSON, found something else ({error})") from None
        if not isinstance(data, dict) or data.get("format") != "allocentric-graph" or data.get("version") != 1:
            raise ValueError('scene graph: expected {"format": "allocentric-graph", "version": 1, ...}, found other JSON')
        try:
            view = data["viewpoint"]
            if data["scale"] not in ("metric", "relative"):
                raise ValueError(f"scale {data['scale']!r}")
            return cls(
                name=str(data["name"]),
                objects=tuple(_object_from_dict(o) for o in data["objects"]),
                relations=tuple(Relation(r["subject"], r["predicate"], r["object"]) for r in data["relations"]),
                floor=tuple(_polygon(corners) for corners in data["floor"]),
                room_area=None if data["room_area"] is None else float(data["room_area"]),
                viewpoint=None if view is None else _numbers(view, 4),
                scale=data["scale"],
                written=parse_map(data.get("map") or "").triplets,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"scene graph: found something malformed ({error!r}), expected what to_json writes") from None


def find_relations(graph: SceneGraph) -> tuple[Relation, ...]:
    """What stands on, hangs above or stands next to what, from the boxes. "next to" is given once per pair.

    on       the middle of the upper one lies over the other and its underside is within TOUCHING of the other's top
             (or sunk into it by less than half its height).
    above    the same with a gap.
    next to  closest points within NEAR, and neither of the two others.
    """
    some = [(name, o.box) for name, o in zip(graph.names, graph.objects, strict=True) if o.box is not None]
    if len(some) < 2 or graph.scale != "metric":
        return ()
    rows = boxes_to_array(box for _, box in some)
    i, j = np.triu_indices(len(rows), k=1)
    distance = np.zeros((len(rows), len(rows)))
    distance[i, j] = distance[j, i] = box_distance(rows[i], rows[j])
    over = (np.abs(into_footprint_frame(rows[:, None, :2], rows[None])) <= rows[None, :, 3:5] / 2).all(-1)
    gap = (rows[:, 2] - rows[:, 5] / 2)[:, None] - (rows[:, 2] + rows[:, 5] / 2)[None]
    higher = over & (gap > -0.5 * rows[:, 5:6]) & ~np.eye(len(rows), dtype=bool)
    found = []
    for a, b in np.argwhere(higher).tolist():
        found.append(Relation(some[a][0], "on" if gap[a, b] <= TOUCHING else "above", some[b][0]))
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        if distance[a, b] <= NEAR and not higher[a, b] and not higher[b, a]:
            found.append(Relation(some[a][0], "next to", some[b][0]))
    return tuple(found)


def _viewpoint(camera_to_world: np.ndarray | None) -> tuple[float, float, float, float] | None:
    """Place and heading of the first camera; None when it is unknown or looks straight up or down."""
    if camera_to_world is None or len(camera_to_world) == 0:
        return None
    pose = np.asarray(camera_to_world[0], dtype=np.float64)
    if not np.isfinite(pose).all() or np.hypot(*pose[:2, 2]) < 1e-3:
        return None
    return (*pose[:3, 3].tolist(), math.atan2(pose[1, 2], pose[0, 2]))


def _object_to_dict(o: GraphObject) -> dict:
    place: dict = {"point": list(o.point)} if o.box is None else {
        "center": list(o.box.center), "size": list(o.box.size), "yaw": o.box.yaw, "score": o.box.score,
    }  # fmt: skip
    return {"label": o.label, "instance": o.instance, **place, "first_seen": o.first_seen, "sigma": o.sigma}


def _object_from_dict(data: dict) -> GraphObject:
    label, box, point = str(data["label"]), None, None
    if "point" in data:
        point = _numbers(data["point"], 2)
    else:
        score = None if data["score"] is None else float(data["score"])
        size = _numbers(data["size"], 3)
        if min(size) < 0:
            raise ValueError(f"expected sides of at least 0, found {size}")
        box = Box3D(_numbers(data["center"], 3), size, float(data["yaw"]), label, score)
    first, sigma = data["first_seen"], data["sigma"]
    return GraphObject(
        label, int(data["instance"]), box, point, None if first is None else int(first), None if sigma is None else float(sigma)
    )


def _polygon(corners: Sequence) -> Float[np.ndarray, "corners 2"]:
    polygon = np.array(corners, dtype=float).reshape(-1, 2)
    if len(polygon) < 3 or not np.isfinite(polygon).all():
        raise ValueError(f"expected a floor of at least 3 corners with finite numbers, found {corners!r}")
    return polygon


def _numbers(values: Sequence, count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected {count} finite numbers, found {values!r}")
    return numbers
