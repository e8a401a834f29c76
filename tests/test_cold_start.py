"""Cold start: what teachers are asked and say, what is kept of it, and that a collection can be interrupted."""

import base64
import io
import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from allocentric.model import Model
from allocentric.readers import open_views
from allocentric.rooms import load_scene
from allocentric.rooms.scene_io import save_scene
from allocentric.tasks import VSI_TASKS
from allocentric.tasks.notes import with_notes
from allocentric.train.cold_start import (
    PROGRAMS,
    Trace,
    chat,
    cold_start,
    collect,
    endpoint_teacher,
    gather_questions,
    model_teacher,
    program_teacher,
    read_traces,
    score_trace,
    select,
)
from allocentric.train.jsonl import Conversations
from allocentric.train.questions import question_line, read_questions
from allocentric.train.recipe import Annotations
from allocentric.train.rewards import answer_in, well_formed
from test_model import write_video
from test_spatial_mllm import frames, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def places(tmp_path_factory, shards):
    """Scene folders of the three rooms, with a few frames of noise for a video."""
    folder = tmp_path_factory.mktemp("places")
    for i in range(3):
        room = folder / f"room-{i}"
        room.mkdir()
        save_scene(shards[i].scene, room / "scene.json")
        write_video(room / "video.mp4", frames(6, seed=i))
    return folder


@pytest.fixture(scope="module")
def questions(places):
    file = places / "questions.jsonl"
    file.write_text("".join(json.dumps(question_line(posed)) + "\n" for posed in gather_questions(places, 12)))
    return file


class Server:
    """A chat server that answers as `reply(request)` says."""

    def __init__(self, reply):
        self.requests, self.headers = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, request))
                outer.headers.append(dict(self.headers))
                status, body = reply(request)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()


def says(text: str) -> tuple[int, dict]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


# ---- questions ----


def test_questions_of_scenes_and_of_files_are_the_same_ones(places, questions):
    made, read = gather_questions(places, 12), read_questions(questions)
    assert len(made) == len(read) == 12
    for a, b in zip(made, read, strict=True):
        assert (a.question.text, a.question.options, a.question.answer, a.paths) == (
            b.question.text, b.question.options, b.question.answer, b.paths,
        )  # fmt: skip
        assert a.scene is not None and b.scene is None
    some = gather_questions(questions, 5)
    assert [p.question for p in some] == [p.question for p in gather_questions(questions, 5)]
    assert len({p.question.text for p in some}) == 5
    assert [p.question for p in some] != [p.question for p in gather_questions(questions, 5, seed=1)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{nonsense", "expected JSON"),
        ('{"task": "object_counting", "question": "?", "answer": "1"}', "expected either `video` or `image`"),
        ('{"video": "a", "task": "object_counting", "question": "?"}', r"expected text under \['answer'\]"),
        ('{"video": "a", "task": "poetry", "question": "?", "answer": "1"}', "question type: found 'poetry'"),
        ('{"video": [], "task": "object_counting", "question": "?", "answer": "1"}', "expected text under video"),
        ('{"video": 5, "task": "object_counting", "question": "?", "answer": "1"}', "video: found 5, expected a list of texts"),
        ('{"video": "a", "task": "object_counting", "question": "?", "answer": "1", "options": 5}', "options: found 5, expected"),
        ('{"video": "a", "task": "t", "question": "?", "answer": "A", "options": "A. bed"}', "options: found 'A. bed', expected"),
        ('{"video": "a", "task": "t", "question": "?", "answer": "A", "references": [5]}', r"references: found \[5\], expected"),
        ('{"scene": 5, "task": "object_counting", "text": "?", "answer": "1"}', r"expected text under \['scene'\]"),
    ],
)
def test_a_faulty_question_is_named_by_its_line(tmp_path, line, complaint):
    file = tmp_path / "q.jsonl"
    file.write_text('{"video": "a", "task": "object_counting", "question": "?", "answer": "1"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"q\.jsonl:3: {complaint}"):
        read_questions(file)


@pytest.mark.parametrize("mark", ["\u2028", "\u0085"])
def test_what_ends_lines_elsewhere_is_text_in_json(tmp_path, mark):
    file, asked = tmp_path / "q.jsonl", f"How many{mark}chairs?"
    line = {"video": "a", "task": "object_counting", "question": asked, "answer": "1"}
    file.write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [posed.question.text for posed in read_questions(file)] == [asked]


def test_questions_that_allo_data_makes_are_read(tmp_path):
    file = tmp_path / "questions.jsonl"
    made = {"task": "object_counting", "scene": "room-3", "text": "How many chairs?", "answer": "4", "id": "7"}
    file.write_text(json.dumps(made) + "\n")
    (posed,) = read_questions(file)
    assert (posed.kind, posed.paths) == ("video", ("room-3/video.mp4",))
    assert (posed.question.text, posed.question.answer, posed.question.scene) == ("How many chairs?", "4", "room-3")


def test_a_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found no scene folders"):
        gather_questions(tmp_path, 3)


# ---- teachers ----


def test_a_server_is_shown_the_frames_and_asked_k_times(places, questions, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    posed = read_questions(questions)[0]
    with Server(lambda request: says(f"<think>{request['seed']}</think><answer>4</answer>")) as server:
        texts = endpoint_teacher(server.url, "big", places, k=3, frames=4, temperature=0.7, max_new_tokens=99)(posed, 2)
    assert texts == [f"<think>{seed}</think><answer>4</answer>" for seed in (6, 7, 8)]
    path, request = server.requests[0]
    assert path == "/v1/chat/completions" and server.headers[0]["Authorization"] == "Bearer a key"
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("big", 0.7, 99)
    *pictures, text = request["messages"][0]["content"]
    assert posed.question.text in text["text"] and "<think>" in text["text"]
    assert len(pictures) == 4
    expected = open_views(places / posed.paths[0], 4).frames
    for picture, frame in zip(pictures, expected, strict=True):
        kind, data = picture["image_url"]["url"].split(",")
        assert kind == "data:image/jpeg;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        again = io.BytesIO()
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(again, format="JPEG", quality=90)
        assert np.array_equal(np.asarray(shown), np.asarray(Image.open(again))) and shown.size == (84, 56)


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ((500, {"error": "out of memory"}), "found status 500 .*out of memory"),
        ((200, {"choices": []}), "found no chat completion"),
        ((200, b"<html>"), "found no chat completion"),
    ],
)
def test_a_failing_server_is_one_clear_line(reply, complaint):
    with Server(lambda request: reply) as server, pytest.raises(ValueError, match=complaint):
        chat(server.url, {})


def test_no_server_is_one_clear_line():
    with Server(lambda request: says("")) as server:
        url = server.url
    with pytest.raises(ValueError, match="found no server that answers"):
        chat(url, {})


def test_a_local_model_is_sampled_k_times(places, questions):
    model = Model(tiny_model(), tiny_processor())
    posed = read_questions(questions)[0]
    ask = model_teacher(model, places, k=3, frames=4, max_new_tokens=5)
    texts = ask(posed, 0)
    assert len(texts) == 3 and len(set(texts)) == 3
    assert ask(posed, 0) == texts and ask(posed, 1) != texts


@pytest.mark.parametrize("name", ["geometry", "notes"])
def test_programs_are_right_about_annotated_scenes(places, name):
    questions = gather_questions(places, 1000, per_task=4)
    teacher, scores = program_teacher(PROGRAMS[name]), []
    for number, posed in enumerate(questions):
        for text in teacher(posed, number):
            assert well_formed(text)
            scores.append(score_trace(posed.question, text))
    assert len(scores) > 0.5 * len(questions) and np.mean(scores) > 0.9


def test_notes_are_those_of_nano(places):
    posed = next(p for p in gather_questions(places, 1000) if p.question.task == "object_abs_distance")
    (text,) = program_teacher(PROGRAMS["notes"], "notes")(posed, 0)
    assert text == with_notes(posed.scene, posed.question) and text.endswith(f"</think>{posed.question.answer}")
    size = next(p for p in gather_questions(places, 1000) if p.question.task == "room_size_estimation")
    assert program_teacher(PROGRAMS["notes"], "notes")(size, 0) == [size.question.answer]  # there is nothing to note
    assert program_teacher(PROGRAMS["notes"])(size, 0) == []  # and no reasoning to show where some is asked for
    with pytest.raises(ValueError, match="found no annotated scene"):
        program_teacher()(replace(posed, scene=None), 0)


# ---- what is kept ----


def trace(number: int, task: str, *rewards: float) -> Trace:
    return Trace(number, task, f"question {number}", tuple(f"text {i}" for i in range(len(rewards))), rewards)


def test_the_best_of_each_question_from_the_median_of_its_type_on():
    numbers = [trace(0, "size", 0.1, 0.3), trace(1, "size", 0.0, 0.0), trace(2, "size", 0.6, 0.6, 0.2), trace(3, "size", 0.5)]
    choices = [trace(4, "route", 0.0, 1.0), trace(5, "route", 0.0), trace(6, "route", 0.0, 0.0)]
    # medians of the best: size (0 .3 .5 .6) 0.4, route (0 0 1) 0; nothing wrong is kept even where it is the median
    assert [(t.number, i) for t, i in select(choices + numbers)] == [(2, 0), (3, 0), (4, 1)]
    assert select([trace(0, "size")]) == [] and select([]) == []
    assert [t.number for t, _ in select([trace(1, "size", 1.0), trace(0, "size", 1.0)])] == [0, 1]


def test_a_trace_of_the_wrong_form_is_worth_nothing(places):
    posed = next(p for p in gather_questions(places, 1000) if p.question.options)
    right = posed.question.answer
    assert score_trace(posed.question, f"<think>so</think><answer>{right}</answer>") == 1
    assert score_trace(posed.question, f"<answer>{right}</answer>") == 0
    assert score_trace(posed.question, f"<think>so</think>{right}", "notes") == 1


def test_a_collection_becomes_conversations_and_resumes(places, questions, tmp_path):
    """The teacher knows the answer to every third question, and dies on the way."""
    asked, posed = [], read_questions(questions)

    def teacher(one, number):
        asked.append(number)
        if len(asked) == 5:
            raise KeyboardInterrupt
        right = f"<think>number {number}</think><answer>{one.question.answer}</answer>"
        return ["<think>hm</think><answer>Z</answer>", right] if number % 3 == 0 else ["<answer>Z</answer>"]

    out = tmp_path / "cold.jsonl"
    with pytest.raises(KeyboardInterrupt):
        list(cold_start(posed, teacher, out))
    assert not out.exists() and asked == [0, 1, 2, 3, 4]
    traces = tmp_path / "cold.jsonl.traces"
    with traces.open("a") as file:
        file.write('{"number": 4, "ta')  # killed while writing
    progress = list(cold_start(posed, teacher, out))
    assert progress[0] == (4, 12) and progress[-1] == (12, 12)
    assert asked[5:] == list(range(4, 12))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    thoughts = [line["conversations"][1]["value"].split("</think>")[0] for line in lines]
    assert thoughts == [f"<think>number {n}" for n in (0, 3, 6, 9)]
    assert all(line["reward"] == 1 for line in lines)
    again = out.read_text()
    assert list(cold_start(posed, teacher, out)) == [(12, 12)] and out.read_text() == again
    with pytest.raises(ValueError, match="found traces of other questions"):
        list(collect(posed[1:], teacher, traces))

    packs = Conversations(Annotations((str(out),), str(places), frames=4), tiny_processor())
    assert len(packs) == 4
    text = tiny_processor().tokenizer.decode(packs[0]["input_ids"][packs[0]["labels"] >= 0])
    answer = posed[0].question.answer
    assert text == f"<think>number 0</think><answer>{answer}</answer><|im_end|>"


def test_traces_of_another_teacher_are_not_taken_for_new_ones(questions, tmp_path):
    posed, out = read_questions(questions), tmp_path / "cold.jsonl"

    def teacher(one, number):
        return [f"<think>so</think><answer>{one.question.answer}</answer>"]

    settings = {"k": 1, "temperature": 1.0, "endpoint": "http://a/v1", "served": "big"}
    list(cold_start(posed, teacher, out))  # before there was a record
    for made in (settings, settings):
        assert list(cold_start(posed, teacher, out, settings=made)) == [(12, 12)]
    assert json.loads((tmp_path / "cold.jsonl.traces.json").read_text()) == settings
    for other, complaint in (
        (settings | {"k": 3, "served": "small"}, "found traces of k 1, served big, expected k 3, served small; take another --out"),
        ({"k": 1, "temperature": 1.0, "model": "nano"}, "of model none, endpoint http://a/v1, served big, expected model nano, "),
    ):
        with pytest.raises(ValueError, match=re.escape(complaint)):
            list(cold_start(posed, teacher, out, settings=other))
    (tmp_path / "cold.jsonl.traces").unlink()  # a record alone binds nobody
    assert list(cold_start(posed, teacher, out, settings={"k": 3}))[-1] == (12, 12)


def test_the_command_refuses_traces_of_other_settings(questions, places, tmp_path, capsys):
    from allocentric.cli import main

    out = tmp_path / "cold.jsonl"
    command = ["data", "cold-start", str(places), "--out", str(out), "--count", "3", "--program"]
    main([*command, "geometry"])
    assert "program" in json.loads((tmp_path / "cold.jsonl.traces.json").read_text())
    main([*command, "geometry"])
    with pytest.raises(SystemExit) as stop:
        main([*command, "notes", "--form", "notes"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "found traces of program geometry, form answer_tags, expected program notes, form notes" in err


def test_several_questions_at_a_time(questions, tmp_path):
    posed = read_questions(questions)
    together = threading.Barrier(3, timeout=20)

    def teacher(one, number):
        together.wait()  # passes only if three are under way at once
        return [f"<think>{number}</think><answer>{one.question.answer}</answer>"]

    list(collect(posed, teacher, tmp_path / "t", workers=3))
    assert [t.number for t in read_traces(tmp_path / "t", posed)] == list(range(12))
    assert all(answer_in(t.texts[0]) == p.question.answer for t, p in zip(read_traces(tmp_path / "t", posed), posed, strict=True))


def test_every_benchmark_type_is_among_the_questions(places):
    found = {p.question.task for p in gather_questions(places, 1000, per_task=3)}
    names = {name for name in VSI_TASKS if any(task.startswith(name) for task in found)}
    assert len(names) >= 6 and load_scene(places / "room-0").objects
