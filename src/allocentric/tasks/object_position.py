"""Object position: where an object is, seen from the first camera. For training only; no benchmark asks it."""

import math
import re

import numpy as np
from jaxtyping import Float

from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, Task
from allocentric.tasks.facts import the_box, unique_objects

NUMBER = r"([-+]?\d+(?:\.\d+)?)"
ANSWER_FORM = 'Answer in the form "x 0.0 y 0.0 z 0.0".'
ANSWER = re.compile(rf"x\s*{NUMBER}\s*y\s*{NUMBER}\s*z\s*{NUMBER}")


class ObjectPosition(Task):
    """Centre of a unique object in metres: x to the right of, y ahead of and z above the first camera, "x 1.2 y 3.4 z -0.5".

    Ahead is the first camera's heading in the horizontal plane, whatever its pitch and roll. The score falls with the distance
    between the written and the true position as exp(-metres), so 0.1 m off is worth 0.90 and 1 m is worth 0.37.
    """

    name = "object_position"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if scene.camera_to_world is None or first_heading(scene) is None:
            return []
        questions = []
        for i in rng.permutation(unique_objects(scene))[:limit]:
            label = scene.objects[i].label
            x, y, z = position(scene, label) + 0.0  # no minus sign on zero
            text = f"Where is the {label} from the first camera position (x right, y forward, z up, in meters)?"
            answer = f"x {x:z.1f} y {y:z.1f} z {z:z.1f}"
            questions.append(Question(self.name, scene.name, text, (), answer, (label,)))
        return questions

    def prompt(self, question: Question) -> str:
        return f"{question.text}\n{ANSWER_FORM}"

    def parse(self, text: str) -> tuple[float, ...] | None:
        found = ANSWER.search(text)
        return tuple(float(number) for number in found.groups()) if found else None

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        written, truth = self.parse(prediction), self.parse(question.answer)
        return math.exp(-math.dist(written, truth)) if written and truth else 0.0


def first_heading(scene: AnnotatedScene) -> float | None:
    """Direction of the first camera in the horizontal plane, radians from the x axis; None when it looks straight up or down."""
    if scene.camera_to_world is None:
        raise ValueError(f"scene {scene.name}: expected camera poses, found none")
    forward = scene.camera_to_world[0][:2, 2]
    return float(math.atan2(forward[1], forward[0])) if math.hypot(*forward) > 1e-3 else None


def position(scene: AnnotatedScene, label: str) -> Float[np.ndarray, "3"]:
    """Centre of a unique object in the first camera's gravity-aligned frame: metres right, forward, up."""
    heading = first_heading(scene)
    if heading is None:
        raise ValueError(f"scene {scene.name}: expected a first camera that looks ahead, found one straight up or down")
    x, y, z = np.asarray(the_box(scene, label).center, dtype=np.float64) - scene.camera_to_world[0][:3, 3]
    cos, sin = math.cos(heading), math.sin(heading)
    return np.array([sin * x - cos * y, cos * x + sin * y, z])
