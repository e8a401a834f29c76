"""MMSI-Video-Bench: spatial questions about one or several videos (hub id rbler/MMSI-Video-Bench)."""

import ast
from pathlib import Path
from typing import Any

import numpy as np

from allocentric.tasks.base import Question
from allocentric.tasks.choices import ChoiceBenchmark, image_paths, listed_options
from allocentric.tasks.files import check_ids, field, official_files, read_rows

FRAMES = 50  # of all videos of a question together
NONE = "O"  # what the scorer calls "no answer"; it equals no right letter
PHRASES = ('"answer":', "answer is", "answer:", '"Answer":', "Answer is", "Answer:", "The answer is", "the answer is")


class MMSIVideo(ChoiceBenchmark):
    """Scored with lmms-eval's rule, which follows VLMEvalKit's; shown as up to 50 frames, evenly spread over the videos."""

    name = "mmsi_video"
    profiles = ("lmms_eval_0_7_3", "vlmevalkit")

    def read(self, path: str | Path, images: str | Path | None = None) -> list[Question]:
        """`images` is the folder that holds `frames` and `ref_images`."""
        questions = []
        for file in official_files(path, "*.json", "*.jsonl", "**/test*.parquet", "**/*.parquet"):
            for row in read_rows(file):
                identity = str(field(row, "id", file))
                videos = spread([list(frames) for frames in _listed(row.get("frames_list"))], FRAMES)
                extra = [f"ref_images/{name}" for name in _listed(row.get("ref_images"))]
                prompt = "".join(row.get(part) or "" for part in ("task_prompt", "user_prompt", "format_prompt"))
                for frames in videos:
                    prompt = prompt.replace("<video>", "<image>" * len(frames), 1)
                if system := row.get("system_prompt"):
                    prompt = f"{system}\n{prompt}"
                questions.append(
                    Question(
                        task=row.get("type") or field(row, "question_type", file),
                        scene=identity,
                        text=row.get("user_prompt") or "",
                        options=listed_options(row.get("user_prompt") or ""),
                        answer=str(field(row, "ground_truth", file)).strip().upper()[:1],
                        id=identity,
                        context=prompt,
                        images=image_paths([f"frames/{name}" for frames in videos for name in frames] + extra, images),
                        groups=("single_input",) if not extra and "Cross-Video" not in str(row.get("type")) else (),
                    )
                )
        check_ids((q.id for q in questions), path)
        return questions

    def prompt(self, question: Question, profile: str = "") -> str:
        """The prompt that the file holds. Each <image> in it stands for the next image."""
        self.check(profile)
        return question.context

    def letter(self, text: str, options: int = 4) -> str | None:
        if "no answer" in text.lower():
            return NONE
        text = text.replace("<answer>", "").replace("</answer>", "")
        said = [text.split("boxed{")[1].split("}")[0]] if "boxed{" in text else []
        said += [text.split(phrase)[-1].split(",")[0].split(".")[0] for phrase in PHRASES if phrase in text]
        said.append(text.split(".")[0])
        for part in said:
            if (bare := part.translate({ord(c): None for c in " \"'\n:"})) in set("ABCDEF"):
                return bare
        for choice in "ABCDEF":
            if f"({choice})" in text or f" {choice} " in f" {text} " or f"{choice}." in text:
                return choice
        return NONE


def spread(videos: list[list[str]], most: int) -> list[list[str]]:
    """At most `most` frames of all videos together, evenly spread over them as one sequence; of each at least its first."""
    lengths = [len(frames) for frames in videos]
    if sum(lengths) <= most:
        return videos
    step = (sum(lengths) - 1) / (most - 1)
    picked = [int(i * step) for i in range(most)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    result = []
    for frames, first, last in zip(videos, starts[:-1], starts[1:], strict=True):
        chosen = [frames[i - first] for i in picked if first <= i < last]
        result.append(chosen or frames[:1])
    return result


def _listed(value: Any) -> list:
    """A list that some releases write as text."""
    return list(ast.literal_eval(value) if isinstance(value, str) else value or [])
