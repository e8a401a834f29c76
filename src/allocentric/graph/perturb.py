"""Graphs with errors in them: how much does an answer depend on what a map gets wrong?"""

from dataclasses import replace

import numpy as np

from allocentric.graph.scene_graph import GraphObject, SceneGraph


def perturb(
    graph: SceneGraph, rng: np.random.Generator, position: float = 0.0, labels: float = 0.0, missed: float = 0.0
) -> SceneGraph:
    """The graph with Gaussian noise of `position` metres on each coordinate of every centre, a share of `labels` replaced by
    those of other objects, and a share of objects `missed`.
    """
    for name, share in (("labels", labels), ("missed", missed)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}: expected a share from 0 to 1, found {share}")
    known = sorted({o.label for o in graph.objects})
    objects = []
    for o in graph.objects:
        moved = _moved(o, rng.normal(0, position, 3), position) if position else o
        if rng.random() < labels and len(known) > 1:
            others = [label for label in known if label != o.label]
            moved = _renamed(moved, others[int(rng.integers(len(others)))])
        if rng.random() >= missed:
            objects.append(moved)
    return SceneGraph.from_objects(
        graph.name, objects, floor=graph.floor, room_area=graph.room_area, viewpoint=graph.viewpoint, scale=graph.scale
    )


def _moved(o: GraphObject, offset: np.ndarray, sigma: float) -> GraphObject:
    if o.box is None:
        return replace(o, point=tuple((np.array(o.point) + offset[:2]).tolist()), sigma=sigma)
    return replace(o, box=replace(o.box, center=tuple((np.array(o.box.center) + offset).tolist())), sigma=sigma)


def _renamed(o: GraphObject, label: str) -> GraphObject:
    return replace(o, label=label, box=None if o.box is None else replace(o.box, label=label))
