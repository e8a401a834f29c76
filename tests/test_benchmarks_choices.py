"""Benchmarks of multiple-choice questions about images: the published letter rules, files, prompts and averages."""

import base64
import json
from pathlib import Path

import pytest

from allocentric.tasks import BENCHMARKS
from allocentric.tasks.base import Question, Record
from allocentric.tasks.choices import listed_options
from allocentric.tasks.mmsi_video import spread
from allocentric.tasks.sitebench import chance_adjusted

PARITY = Path(__file__).parent / "parity" / "scorers"
PIXEL = base64.b64decode("/9j/4AAQSkZJRg==")  # a beginning is enough: images are copied, not read
COLUMNS = {
    "mindcube": "mindcube",
    "viewspatial": "viewspatial",
    "embspatial": "embspatial",
    "mmsi_video": "mmsi_video",
    "sitebench": "site",
    "mmsi_bench": "mmsi",
}


def make(name: str):
    return BENCHMARKS[name]()


def read(name: str, rows: list[dict], tmp_path: Path, file: str = "rows.jsonl", **options) -> list[Question]:
    tmp_path.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("\n".join(map(json.dumps, rows)) if file.endswith("l") else json.dumps(rows))
    return make(name).read(tmp_path / file, **options)


# --- Letters and numbers ---


@pytest.mark.parametrize("column", COLUMNS)
def test_letters_equal_the_published_ones(column):
    benchmark = make(COLUMNS[column])
    for row in json.loads((PARITY / "mcq_extract_parity.json").read_text())["rows"]:
        expected = None if row[column] in ("", "RANDOM") else row[column]
        assert benchmark.parse(row["prediction"]) == expected, row
        assert benchmark.parse(row["prediction"], "vlmevalkit") == (row["vlmevalkit_rule"] or None), row


@pytest.mark.parametrize(
    ("name", "text", "letter"),
    [
        ("mindcube", "<Answer>My answer is C</Answer> A", "C"),
        ("mindcube", "D. first, then\nAnswer: B", "D"),
        ("mindcube", "first B\nthen C", "C"),
        ("mindcube", "b", None),
        ("viewspatial", "A\nit is on a chair", "A"),
        ("viewspatial", "B\nnothing", None),
        ("viewspatial", " C\n", "C"),
        ("embspatial", "( d", "D"),
        ("embspatial", "The answer is A", "T"),
        ("embspatial", "1. A", None),
        ("mmsi", "``B`` or `C`", "B"),
        ("mmsi", "{c}", "C"),
        ("mmsi", "A chair, so D", "D"),
        ("mmsi_video", "the answer is A. my answer is unknown", "A"),
        ("mmsi_video", "boxed{ 'B' }", "B"),
        ("mmsi_video", "D. then B.", "D"),
        ("mmsi_video", "it is (C) or  B ", "B"),
        ("mmsi_video", "No Answer: A", "O"),
        ("site", "(A) or (B), I say B ", "B"),
        ("site", "D: yes", "D"),
        ("site", "E.", None),
    ],
)
def test_letters_of_free_text(name, text, letter):
    assert make(name).parse(text) == letter


def test_a_letter_beyond_the_options_is_none():
    assert make("site").parse("C.", options=2) is None and make("site").parse("C.", options=3) == "C"


def test_authors_code_of_viewspatial_keeps_white_space():
    question = Question("t", "s", "q", ("A. x", "B. y"), "A")
    assert make("viewspatial").score(question, "A\n") == 1.0 and make("viewspatial").score(question, "A\n", "official") == 0.0


def test_spar_scores_equal_the_published_ones():
    benchmark = make("sparbench")
    for row in json.loads((PARITY / "sparbench_parity.json").read_text())["rows"]:
        question = Question(row["task"], "", "", (), row["answer"])
        assert benchmark.score(question, row["prediction"]) == pytest.approx(row["spar_official"], abs=1e-9), row
        regression = benchmark.score(question, row["prediction"], "lmms_eval_0_7_3")
        assert regression == pytest.approx(row["pypi_lmms_eval_0_7_3"], abs=1e-9), row
    for row in json.loads((PARITY / "mcq_extract_parity.json").read_text())["rows"]:
        questions = [Question("spatial_imagination_oc", "", "", (), letter) for letter in "ABCD"]
        right = [q.answer for q in questions if benchmark.score(q, row["prediction"]) == 1.0]
        assert right == row["sparbench_scores_1_for"], row


@pytest.mark.parametrize(
    ("task", "answer", "text", "score"),
    [
        ("depth_prediction_oc", "2.5", "object 1 is 2.5 m away", 0.0),
        ("depth_prediction_oc_mv", "2.5", "object 1 is 2.5 m away", 1.0),
        ("depth_prediction_oc_mv", "2.5", "far away", 0.0),
        ("depth_prediction_oo", "10", "x^3 then 10", 1.0),
        ("view_change_infer", "move_right:0.5", "move_left:0.5", 0.8),
        ("view_change_infer", "move_right:0.5", "move_right:0.5.", 0.0),
        ("view_change_infer", "move_right:0.5", "move_right:x,move_right:0.5", 0.0),
        ("view_change_infer", "move_up:2", "move_up:3,move_down:1", 1.0),
        ("view_change_infer", "move_up:2", "move_up:4", 0.82),  # half of the prediction: one tolerance of ten
    ],
)
def test_spar_scores_of_free_text(task, answer, text, score):
    assert make("sparbench").score(Question(task, "", "", (), answer), text) == pytest.approx(score)


# --- Files and prompts ---


def test_embspatial(tmp_path):
    row = {
        "question_id": "mp3d_57",
        "data_source": "mp3d",
        "scene_id": "Y",
        "question": "Which object is closest?",
        "relation": "close",
        "image": base64.b64encode(PIXEL).decode(),
        "answer_options": ["garage door", "cabinet", "table"],
        "answer": 2,
        "objects": [{"name": "table", "bbox": [0, 396, 640, 84]}],
    }
    [question] = read("embspatial", [row], tmp_path, "bench.json", images=tmp_path / "images")
    assert (question.id, question.task, question.scene, question.answer) == ("mp3d_57", "close", "mp3d/Y", "C")
    assert question.groups == ("mp3d",) and Path(question.images[0]).read_bytes() == PIXEL
    assert make("embspatial").prompt(question) == (
        "Note: You only need to respond with A, B, C, D without providing any additional information.\n"
        "Which object is closest?\nA) garage door\nB) cabinet\nC) table"
    )
    assert make("embspatial").prompt(question, "vlmevalkit") == (
        "Question: Which object is closest?\nOptions:\nA: garage door\nB: cabinet\nC: table\n"
        "Give me the answer letter directly. The best answer is:"
    )
    with pytest.raises(ValueError, match=r"mp3d_57.*more than once"):
        read("embspatial", [row, row], tmp_path)
    with pytest.raises(ValueError, match="found answer 3"):
        read("embspatial", [{**row, "answer": 3}], tmp_path)
    with pytest.raises(ValueError, match="base64"):
        read("embspatial", [{**row, "question_id": "2", "image": "?"}], tmp_path, images=tmp_path / "images")


def test_viewspatial(tmp_path):
    row = {
        "question_type": "Camera perspective - Relative Direction",
        "image_path": ["ViewSpatial-Bench/scannetv2_val/scene0011_00/original_images/280.jpg"],
        "question": "Where is the counter?",
        "answer": "B. front",
        "choices": "A. right\nB. front",
    }
    first, again = read("viewspatial", [row, row], tmp_path, "ViewSpatial-Bench.json", images="data")
    assert (first.answer, first.options, first.scene) == ("B", ("A. right", "B. front"), "scannetv2_val/scene0011_00")
    assert first.images == (f"data/{row['image_path'][0]}",) and again.id == f"{first.id}-2"
    other = {**row, "question": "Where is the table?"}
    moved = read("viewspatial", [other, row], tmp_path, "ViewSpatial-Bench.json")
    assert moved[1].id == first.id and moved[0].id != first.id  # ids stay when rows move
    choices = "A. right\nB. front\nReply only to the corresponding option.\nAnswer:"
    assert make("viewspatial").prompt(first) == f"Question: Where is the counter?\nChoices: {choices}"
    assert make("viewspatial").prompt(first, "official") == f"Where is the counter?{choices}"
    with pytest.raises(ValueError, match="front"):
        read("viewspatial", [{**row, "answer": "front"}], tmp_path)


def test_mindcube(tmp_path):
    text = "From view 1, what is behind you? A. Sofa B. White table"
    rows = [
        {"id": "among_group1_q0", "question": text, "gt_answer": "B", "images": ["a/1.jpg", "a/2.jpg"]},
        {"id": "aroundnew_2", "question": text, "gt_answer": "A", "input_prompt": "<image> What?"},
        {"id": "translation_3", "question": text, "gt_answer": "A"},
    ]
    questions = read("mindcube", rows, tmp_path, "MindCube_tinybench.jsonl", images="root")
    assert [q.task for q in questions] == ["among", "around", "translation"]
    assert questions[0].options == ("A. Sofa", "B. White table") and questions[0].images == ("root/a/1.jpg", "root/a/2.jpg")
    benchmark = make("mindcube")
    assert benchmark.prompt(questions[0]).endswith(f"'<answer>A. Above</answer>'.\n\n[Question]\n{text}")
    assert benchmark.prompt(questions[1]) == "<image> What?"
    records = [Record(q, "A", benchmark.score(q, "A")) for q in questions]
    assert [r.score for r in records] == [0, 1, 1]
    assert benchmark.aggregate(records)["overall"] == 50.0  # translation is left out
    assert benchmark.aggregate(records, "lmms_eval_0_7_3")["overall"] == pytest.approx(200 / 3)


def test_mmsi_from_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {
            "id": 3,
            "images": [PIXEL, b"second"],
            "question_type": "Positional Relationship (Cam.–Obj.)",
            "question": "Where? \nOptions: A: Left, near the door, B: Right ",
            "answer": "B",
            "thought": "long",
        }
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "MMSI_Bench.parquet")
    [question] = make("mmsi").read(tmp_path, images=tmp_path / "images")
    assert question.task == "Positional Relationship (Cam.-Obj.)" and question.options == ("A: Left, near the door", "B: Right")
    assert [Path(file).read_bytes() for file in question.images] == [PIXEL, b"second"]
    assert make("mmsi").prompt(question) == (
        "Where? \nOptions: A: Left, near the door, B: Right\n"
        "Answer with the option's letter from the given choices directly. Enclose the option's letter within ``."
    )
    assert make("mmsi").read(tmp_path)[0].images == ()
    (tmp_path / "broken.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="expected a parquet file"):
        make("mmsi").read(tmp_path / "broken.parquet")


def test_mmsi_video(tmp_path):
    row = {
        "id": 7,
        "type": "(Cross-Video) Memory Update",
        "system_prompt": "Look.",
        "task_prompt": "<video><video>",
        "user_prompt": "What moved? A. chair B. bed",
        "format_prompt": " One letter.",
        "frames_list": "[['v/0.jpg', 'v/1.jpg'], ['w/0.jpg']]",
        "ref_images": ["r.jpg"],
        "ground_truth": "b. bed",
    }
    [question] = read("mmsi_video", [row], tmp_path, images="data")
    assert make("mmsi_video").prompt(question) == "Look.\n<image><image><image>What moved? A. chair B. bed One letter."
    assert question.images == ("data/frames/v/0.jpg", "data/frames/v/1.jpg", "data/frames/w/0.jpg", "data/ref_images/r.jpg")
    assert (question.answer, question.groups, question.options) == ("B", (), ("A. chair", "B. bed"))
    frames = [[f"v{i}" for i in range(90)], ["w0"], [f"x{i}" for i in range(9)]]
    chosen = spread(frames, 50)
    assert [len(video) for video in chosen] == [45, 1, 4] and chosen[0][:3] == ["v0", "v2", "v4"]
    assert chosen[2] == ["x1", "x3", "x5", "x7"]  # as published: rounding misses the last frame
    assert spread(frames, 100) == frames


def test_site(tmp_path):
    shared = {"category": "counting & existence", "dataset": "CLEVR", "answer": "A"}
    rows = [
        {**shared, "question": " How many? ", "options": ["1", "2"], "visual": ["a.jpg"]},
        {**shared, "question": "<image> and <image>?", "options": ["x", "y", "z", "w"], "visual": ["a.jpg", "b.jpg"]},
        {**shared, "question": "What next?", "options": ["x", "y"], "visual": ["clip.mp4"]},
    ]
    one, two, video = read("site", rows, tmp_path, images="root")
    benchmark = make("site")
    body = "Question: How many?\nOptions:\nA: 1\nB: 2\nGive me the answer letter directly. The best answer is:"
    assert benchmark.prompt(one) == f"<image>\n{body}" and one.images == ("root/a.jpg",)
    assert benchmark.prompt(two).startswith("Question: <image> and <image>?\nOptions:\nA: x\n")
    assert benchmark.prompt(video).startswith(
        "Select the best answer to the following multiple-choice question based on the video."
    )
    assert (video.scene, video.images, video.groups) == ("clip.mp4", (), ("video", "CLEVR"))
    records = [Record(q, t, benchmark.score(q, t)) for q, t in ((one, "A"), (two, "B"), (video, "(A)"))]
    numbers = benchmark.aggregate(records)
    assert numbers["accuracy"] == pytest.approx(200 / 3)
    assert numbers["overall"] == pytest.approx(100 * (2 - 1.25) / (3 - 1.25))
    assert numbers["chance_adjusted/counting & existence"] == numbers["overall"] and numbers["n/video"] == 1
    assert chance_adjusted(records[1:2]) == pytest.approx(-100 / 3)


def test_spar_files_prompts_and_averages(tmp_path):
    tasks = ("depth_prediction_oc", "view_change_infer", "position_matching", "distance_infer_center_oo")
    rows = [
        {"id": f"s/{task}", "task": task, "question": "Q? A. x B. y", "answer": "A", "img_type": "single", "image": None}
        for task in tasks
    ]
    rows[0]["answer"], rows[1]["answer"] = "2.0", "move_up:1"
    questions = read("sparbench", rows, tmp_path)
    benchmark = make("sparbench")
    assert benchmark.prompt(questions[0]) == "\nQ? A. x B. y\nPlease answer the question using a single word or phrase."
    assert benchmark.prompt(questions[1]) == "\nQ? A. x B. y\n\n"
    letter = "Answer with the option's letter from the given choices directly."
    assert benchmark.prompt(questions[3]) == f"\nQ? A. x B. y\n\n{letter}"
    assert benchmark.prompt(questions[2]).endswith(f"with the top-left corner as the origin of the image.\n{letter}")
    assert [q.options for q in questions] == [(), (), ("A. x", "B. y"), ("A. x", "B. y")]
    answers = ("2.0", "move_up:2", "B", "A")
    records = [Record(q, t, benchmark.score(q, t)) for q, t in zip(questions, answers, strict=True)]
    numbers = benchmark.aggregate(records)
    assert numbers["low"] == 100 and numbers["high"] == 100 and numbers["middle"] == 0 and numbers["partial"] == 1
    assert numbers["middle_with_view_change"] == pytest.approx(41)  # (0 + 82) / 2
    assert numbers["overall"] == pytest.approx((100 + 82 + 0 + 100) / 4)
    with pytest.raises(ValueError, match="telepathy"):
        read("sparbench", [{**rows[0], "task": "telepathy"}], tmp_path)


def test_listed_options():
    assert listed_options("Which? A. one B. two, C. three") == ("A. one", "B. two", "C. three")
    assert listed_options("Plan A. or not") == () and listed_options("none") == ()
    assert listed_options("A. or B. was said.\nA. one\nB. two") == ("A. one", "B. two")
