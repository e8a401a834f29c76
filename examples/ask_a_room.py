"""Make a room, film it, and ask about it: the library in a page.

.venv/bin/python examples/ask_a_room.py
"""

from pathlib import Path

import numpy as np

import allocentric
from allocentric.rooms import write_video
from allocentric.tasks import VSI_TASKS, make_questions


def main(folder: Path = Path("out/example"), seed: int = 30_000_000) -> None:
    truth = write_video(seed, folder, seconds=10, height=240, width=320)
    model = allocentric.load()
    scene = model.watch(folder / "video.mp4", frames=16)

    print(scene.ask("How many door(s) are in this room?"))

    questions = make_questions(truth, np.random.default_rng(0))
    tasks = {q: next(task for name, task in VSI_TASKS.items() if q.task.startswith(name)) for q in questions}
    for question, answer in zip(questions, scene.ask([tasks[q].prompt(q) for q in questions]), strict=True):
        score = tasks[question].score(question, answer.text)
        print(f"{question.task:32} {answer.text:>8}  truth {question.answer:>8}  score {score:.1f}")


if __name__ == "__main__":
    main()
