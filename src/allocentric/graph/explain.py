"""A graph's answer for people: what it used, what it computed, and whether a model says otherwise."""

import re

from allocentric.graph.grammar import clean_label, write_line
from allocentric.graph.programs import GraphAnswer
from allocentric.graph.scene_graph import SceneGraph
from allocentric.graph.triplets import Triplet, local_triplet

SHOWN = 4  # triplets at most
AGREE = 0.1  # relative difference up to which two numbers say the same
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def used_triplets(graph: SceneGraph, answer: GraphAnswer) -> list[Triplet]:
    """The triplets that an answer rests on: the one of its three objects, or those of the map that touch most of its objects."""
    names = list(graph.names)
    used = [names.index(name) for name in answer.objects if name in names]
    if len(used) == 3:
        nodes = tuple((clean_label(graph.objects[i].label), graph.objects[i].instance) for i in used)
        return [local_triplet(nodes, graph.points[used], metric=graph.scale == "metric")]
    wanted = {(clean_label(graph.objects[i].label), graph.objects[i].instance) for i in used}
    touching = [t for t in graph.triplets() if wanted & set(t.nodes)]
    return sorted(touching, key=lambda t: -len(wanted & set(t.nodes)))[:SHOWN]


def explain(graph: SceneGraph, answer: GraphAnswer) -> list[str]:
    """Lines of text: triplets, then the computation."""
    repeated = {clean_label(o.label) for o in graph.objects if o.instance > 1}
    lines = [f"triplet  {write_line(t, repeated).strip()}" for t in used_triplets(graph, answer)]
    lines += [f"compute  {step}" for step in answer.steps]
    if answer.guess:
        lines.append(f"likeliest, averaged over where the missing may be: {answer.guess} ({answer.confidence:.2f})")
    return lines


def disagrees(answer: GraphAnswer, text: str) -> bool:
    """Whether what a model wrote differs from the graph's answer; never when the graph lacks something.

    Numbers agree within 10 percent; otherwise the first words must be the same.
    """
    if answer.missing:
        return False
    ours, theirs = NUMBER.search(answer.text), NUMBER.search(text)
    if ours and answer.text.strip().startswith(ours[0]):
        if theirs is None:
            return True
        return abs(float(ours[0]) - float(theirs[0])) > AGREE * max(abs(float(ours[0])), 1e-9)
    return _first(answer.text) != _first(text)


def _first(text: str) -> str:
    words = text.strip().lower().split()
    return words[0].strip(".,:;()*") if words else ""
