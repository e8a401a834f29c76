"""Notes: what to write down before answering. Computed from the annotation, they teach a model to look first and to reckon then.

    <think>sofa -1.2 3.4, stove 0.8 2.0</think>1.6

Positions are metres to the right and ahead of the first camera, as in `object_position`.
"""

import numpy as np
from jaxtyping import Float

from allocentric.answer import END_THINK, THINK
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.appearance_order import first_frames
from allocentric.tasks.base import Question
from allocentric.tasks.facts import indices_of, seen, the_box
from allocentric.tasks.object_position import first_heading

MOMENTS = 16  # the video's length in the notes on when something appears


def with_notes(scene: AnnotatedScene, question: Question) -> str:
    """The answer, with notes before it where the question has any."""
    text = notes(scene, question)
    return f"{THINK}{text}{END_THINK}{question.answer}" if text else question.answer


def notes(scene: AnnotatedScene, question: Question) -> str:
    """What the answer follows from: places, sizes or moments of first appearance; empty for other questions."""
    if question.task == "object_size_estimation":
        return " ".join(_number(side) for side in the_box(scene, question.objects[0]).size)
    if question.task == "obj_appearance_order":
        frames = first_frames(scene, list(question.objects)) * (MOMENTS - 1) / max(len(scene.visibility) - 1, 1)
        return ", ".join(f"{label} {round(float(frame))}" for label, frame in zip(question.objects, frames, strict=True))
    if not question.objects or question.task == "object_position" or (places := _places(scene)) is None:
        return ""
    if question.task == "object_counting":
        (label,) = question.objects
        instances = [i for i in indices_of(scene, label) if seen(scene)[i]]
        return ", ".join(_place(label, places[i]) for i in sorted(instances, key=lambda i: places[i, 0]))
    last = indices_of(scene, question.objects[-1])[0]
    written = []
    for label in question.objects:  # of several, the one next to what is asked about
        nearest = min(indices_of(scene, label), key=lambda i: float(np.hypot(*(places[i] - places[last]))))
        written.append(_place(label, places[nearest]))
    return ", ".join(written)


def _places(scene: AnnotatedScene) -> Float[np.ndarray, "n 2"] | None:
    """Metres right of and ahead of the first camera, of every object; None when the camera's heading is unknown."""
    if scene.camera_to_world is None or (heading := first_heading(scene)) is None:
        return None
    away = np.array([o.box.center[:2] for o in scene.objects]) - scene.camera_to_world[0][:2, 3]
    sin, cos = np.sin(heading), np.cos(heading)
    return away @ np.array([[sin, cos], [-cos, sin]])


def _place(label: str, place: Float[np.ndarray, "2"]) -> str:
    return f"{label} {_number(place[0])} {_number(place[1])}"


def _number(value: float) -> str:
    return f"{float(value):z.1f}"


def number_words() -> list[str]:
    """Every number notes usually hold, as written behind a space; a small tokenizer makes each one token."""
    return [f" {tenths / 10:z.1f}" for tenths in range(-99, 100)]
