"""Benchmarks of free answers and captions: n-gram metrics, tokens, cleaning, matching, ScanQA, SQA3D and Scan2Cap."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from allocentric.geometry.boxes import Box3D
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks import BENCHMARKS
from allocentric.tasks.answers import clean_answer, match_any, match_leo
from allocentric.tasks.base import Question, Record
from allocentric.tasks.ngrams import bleu, caption_metrics, cider, mean_rouge_l, meteor, meteor_jar, rouge_l
from allocentric.tasks.ptb import ptb_tokenize
from allocentric.tasks.scanqa import question_class
from allocentric.tasks.sqa3d import localisation, question_type, shares_a_word

HERE = Path(__file__).parent
PROTOCOLS = {
    "official": "scanqa_official",
    "leo": "leo",
    "vlm_3r": "vlm3r_llava3d",
    "video_3d_llm": "video3dllm_spatialmllm",
}
EXACT = {"official": "em_official", "leo": "em_leo", "vlm_3r": "em_vlm3r", "video_3d_llm": "em_video3dllm"}
REFINED = {"leo": "em_refined_leo", "vlm_3r": "em_refined_vlm3r"}


@pytest.fixture(scope="module")
def table() -> dict:
    return json.loads((HERE / "parity" / "scorers" / "scanqa_parity.json").read_text())


def questions_of(table: dict) -> list[Question]:
    return [
        Question("Other", "s", "q", (), r["answers"][0], references=tuple(r["answers"]), id=str(i))
        for i, r in enumerate(table["rows"])
    ]


# --- Words ---


def test_tokens_and_cleaning_equal_the_published_ones(table):
    for row in table["rows"]:
        assert ptb_tokenize(row["prediction"]) == row["ptb_prediction"]
        assert [ptb_tokenize(a) for a in row["answers"]] == row["ptb_answers"]
        assert clean_answer(row["prediction"]) == row["clean_prediction"]
        assert [clean_answer(a) for a in row["answers"]] == row["clean_answers"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's a chair, isn't it?", "it 's a chair is n't it"),
        ("I can't and cannot.", "i ca n't and can not"),
        ("the chairs' legs", "the chairs legs"),
        ("(a chair) [b]", "-lrb- a chair -rrb- -lsb- b -rsb-"),
        ("left-most; 3.5 m, 1,000 of 5.", "left-most 3.5 m 1,000 of 5"),
        ("10 o'clock — by the “big” table…", "10 o'clock by the big table"),
        ("What?! Mr. B. said and/or", "what ?! mr. b. said and/or"),
        ("50% of a\nroom", "50 % of a room"),
        ("", ""),
    ],
)
def test_tokens(text, tokens):
    assert ptb_tokenize(text) == tokens


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  The  TV. ", "TV"),
        ("3.5", "35"),
        ("50%", "50"),
        ("none", "zero"),
        ("22 chairs", "22 chairs"),
        ("23", "twenty-three"),
        ("mat2", "mat"),
        ("the the chair", "the chair"),
        ("turn letf backwards", "turn left backward"),
        ("left\n", "left\n"),
        ("o'  clock", "o'clock"),
    ],
)
def test_cleaning(text, cleaned):
    assert clean_answer(text) == cleaned


def test_matching():
    assert match_leo("dark brown", ["brown", "dark brown"]) == (False, True)  # the first reference decides
    assert match_any("dark brown", ["brown", "dark brown"]) == (True, True)
    assert match_leo("", ["bed"]) == match_any("", ["bed"]) == (False, True)
    assert match_any("trashcan", ["trash can"]) == (False, True) and match_any("sofa", ["bed"]) == (False, False)


# --- Metrics ---


def test_metrics_of_small_corpora():
    assert bleu(["a b c d"], [["a b c d"]]) == pytest.approx([1, 1, 1, 1], abs=1e-8)
    one, two, *_ = bleu(["a a b"], [["a b", "c"]])  # the second "a" is one too many; no penalty, since it is longer
    assert one == pytest.approx(2 / 3) and two == pytest.approx((2 / 3 * 1 / 2) ** 0.5)
    assert bleu(["a"], [["a b c"]], 1)[0] == pytest.approx(np.exp(1 - 3), rel=1e-6)
    assert rouge_l("a b c", ["a c"]) == pytest.approx(2.44 * 2 / 3 / (1 + 1.44 * 2 / 3))
    assert rouge_l("sos  eos", ["sos a eos"]) == pytest.approx(2 / 3) and rouge_l("a", ["b"]) == 0
    assert cider(["red", "blue"], [["red"], ["blue"]]) == pytest.approx(2.5)  # one of four orders
    assert cider(["red", "red"], [["red"], ["red"]]) == 0  # a word of every reference says nothing
    assert cider(["a b c d e", "x"], [["a b c d e"], ["y"]]) == pytest.approx(5.0)
    with pytest.raises(ValueError, match="expected as many"):
        cider(["a"], [])


@pytest.mark.parametrize("profile", PROTOCOLS)
def test_scanqa_protocols_equal_the_published_ones(profile, table, monkeypatch):
    monkeypatch.setenv("PATH", "")  # METEOR has a test of its own
    benchmark, expected = BENCHMARKS["scanqa"](), table["corpus_scores"][PROTOCOLS[profile]]
    records = []
    for question, row in zip(questions_of(table), table["rows"], strict=True):
        exact, refined = benchmark.match(question, row["prediction"], profile)
        assert exact == row[EXACT[profile]] and (profile not in REFINED or refined == row[REFINED[profile]]), row
        records.append(Record(question, row["prediction"], benchmark.score(question, row["prediction"], profile)))
    with pytest.warns(UserWarning, match="Java"):
        numbers = benchmark.aggregate(records, profile)
    assert "METEOR" not in numbers
    names = {f"BLEU-{n}": f"Bleu_{n}" for n in (1, 2, 3, 4)} | {"ROUGE-L": "ROUGE_L", "CIDEr": "CIDEr", "EM": "EM@1"}
    for name, official in names.items():
        assert numbers[name] / 100 == pytest.approx(expected[official], abs=1e-9), name
    if profile in REFINED:
        assert numbers["EM-R"] / 100 == pytest.approx(expected["EM_refined"], abs=1e-9)


def test_meteor_equals_the_published_one(table):
    if meteor_jar()[0] is None:
        pytest.skip(meteor_jar()[1])
    benchmark = BENCHMARKS["scanqa"]()
    for profile, name in PROTOCOLS.items():
        pairs = [benchmark.sentences(q, r["prediction"], profile) for q, r in zip(questions_of(table), table["rows"], strict=True)]
        assert meteor(*zip(*pairs, strict=True)) == pytest.approx(table["corpus_scores"][name]["METEOR"], abs=1e-9)


def test_meteor_says_what_it_misses(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="METEOR needs Java"):
        meteor(["a"], [["a"]])
    with pytest.warns(UserWarning, match="no METEOR among the scores"):
        assert set(caption_metrics(["a"], [["a"]])) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}


# --- ScanQA ---


def test_scanqa_files_and_prompt(tmp_path):
    row = {
        "scene_id": "scene0011_00",
        "object_ids": [8],
        "object_names": ["cabinet"],
        "question": "What color is the cabinet?",
        "question_id": "val-scene0011-0",
        "answers": ["brown", "dark brown"],
    }
    (tmp_path / "ScanQA_v1.0_val.json").write_text(json.dumps([row]))
    benchmark = BENCHMARKS["scanqa"]()
    [question] = benchmark.read(tmp_path)
    assert (question.id, question.scene, question.references) == ("val-scene0011-0", "scene0011_00", ("brown", "dark brown"))
    assert question.task == "Color" and benchmark.prompt(question) == "What color is the cabinet? Answer the question simply."
    del row["answers"]
    (tmp_path / "ScanQA_v1.0_test_w_obj.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match="without answers"):
        benchmark.read(tmp_path / "ScanQA_v1.0_test_w_obj.json")
    assert [question_class(q) for q in ("Where is it?", "How many?", "What type?", "What is it?", "where")] == [
        "Place",
        "Number",
        "Object nature",
        "Object",
        "Other",
    ]


# --- SQA3D ---


def write_sqa3d(folder: Path, answers: list[str]) -> None:
    asked = [
        {"question_id": 220602000000 + i, "scene_id": "scene0050_00", "situation": f"I stand {i}.", "question": "What is it?"}
        for i in range(len(answers))
    ]
    told = [
        {"question_id": row["question_id"], "scene_id": "scene0050_00", "answers": [{"answer": answer, "answer_id": 1}]}
        for row, answer in zip(asked, answers, strict=True)
    ]
    (folder / "v1_balanced_questions_test_scannetv2.json").write_text(json.dumps({"questions": asked}))
    (folder / "v1_balanced_sqa_annotations_test_scannetv2.json").write_text(json.dumps({"annotations": told[::-1]}))


def test_sqa3d_joins_by_id(tmp_path):
    write_sqa3d(tmp_path, ["piano", "brown"])
    benchmark = BENCHMARKS["sqa3d"]()
    last, first = benchmark.read(tmp_path)
    assert (first.id, first.context, first.answer) == ("220602000000", "I stand 0.", "piano") and last.answer == "brown"
    assert benchmark.prompt(first) == "I stand 0. What is it? Answer the question using a single word or phrase."
    asked = tmp_path / "v1_balanced_questions_test_scannetv2.json"
    rows = json.loads(asked.read_text())
    rows["questions"].append({**rows["questions"][0], "question_id": 5})
    asked.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="without an answer"):
        benchmark.read(tmp_path)
    rows["questions"] = rows["questions"][:1]
    asked.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="220602000001"):
        benchmark.read(tmp_path)


@pytest.mark.parametrize(
    ("said", "strict", "official_llm"),
    [("Piano.", 1, 1), ("the piano", 1, 1), ("a grand piano", 0, 1), ("pia", 0, 1), ("", 0, 1), ("organ", 0, 0), ("pianos", 0, 0)],
)
def test_sqa3d_scores(said, strict, official_llm):
    benchmark, question = BENCHMARKS["sqa3d"](), Question("what", "s", "q", (), "piano")
    assert benchmark.score(question, said) == benchmark.score(question, said, "leo") == strict
    assert benchmark.score(question, said, "official_llm") == official_llm


def test_sqa3d_averages_and_types():
    benchmark = BENCHMARKS["sqa3d"]()
    pairs = [(Question("what", "s", "q", (), "piano"), "grand piano"), (Question("is", "s", "q", (), "yes"), "yes")]
    numbers = benchmark.aggregate([Record(q, t, benchmark.score(q, t, "leo")) for q, t in pairs], "leo")
    assert numbers["overall"] == 50 and numbers["EM-R"] == 100 and numbers["task/what"] == 0 and numbers["n/is"] == 1
    assert [
        question_type(q) for q in (" What?", "Island?", "Does it?", "which", "Can I?", "how")
    ] == "what is others which can how".split()
    assert shares_a_word("of brown", "dark brown") and not shares_a_word("browner", "dark brown")


def test_situation_localisation():
    positions = np.array([[[0.0, 0.0], [3.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]])
    headings = np.radians([[0.0, 180.0], [359.0, 100.0]])
    found = localisation(positions, headings, np.array([[3.2, 0.0], [0.0, 0.0]]), np.radians([20.0, 2.0]))
    assert found == {"Acc@0.5m": 50, "Acc@1.0m": 50, "Acc@15deg": 50, "Acc@30deg": 100}  # exactly 1 m is too far


def test_sqa3d_official_files():
    folder = Path(os.environ.get("ALLOCENTRIC_DATA", HERE.parents[1] / "shared" / "data")) / "sqa3d"
    if not folder.is_dir():
        pytest.skip(f"no SQA3D in {folder} (set ALLOCENTRIC_DATA to the folder that holds sqa3d/)")
    benchmark = BENCHMARKS["sqa3d"]()
    questions = benchmark.read(folder)
    majority = {"what": "brown", "is": "even", "how": "one", "can": "yes", "which": "left", "others": "yes"}
    numbers = benchmark.aggregate([Record(q, majority[q.task], benchmark.score(q, majority[q.task])) for q in questions])
    counts = {task: numbers[f"n/{task}"] for task in majority}
    assert counts == {"what": 1147, "is": 652, "how": 465, "can": 338, "which": 351, "others": 566} and numbers["n"] == 3519
    assert round(numbers["overall"], 2) == 21.31 and round(numbers["task/can"], 2) == 54.73


# --- Scan2Cap ---


def write_scanrefer(folder: Path, rows: list[tuple[int, str, int, str]], scene: str = "scene0011_00") -> None:
    written = [
        {
            "scene_id": scene,
            "object_id": str(target),
            "object_name": name,
            "ann_id": str(annotation),
            "description": text,
            "token": text.lower().replace(".", " .").split(),
        }
        for target, name, annotation, text in rows
    ]
    (folder / "ScanRefer_filtered_val.json").write_text(json.dumps(written))


def scene_of(boxes: list[Box3D], name: str = "scene0011_00") -> dict[str, AnnotatedScene]:
    return {name: AnnotatedScene(name, tuple(SceneObject(i + 1, "chair", box) for i, box in enumerate(boxes)))}


def test_scan2cap(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    long = " ".join(f"w{i}" for i in range(40))
    write_scanrefer(tmp_path, [(0, "chair", 0, "A chair."), (0, "chair", 1, long), (1, "office_desk", 0, "The desk, brown.")])
    boxes = [Box3D((x, 0.0, 0.0), (1.0, 1.0, 1.0)) for x in (0.0, 5.0)]
    benchmark = BENCHMARKS["scan2cap"]()
    chair, desk = benchmark.read(tmp_path, scenes=scene_of(boxes))
    assert (chair.id, desk.id) == ("scene0011_00|0|chair", "scene0011_00|1|office_desk") and desk.boxes == (boxes[1],)
    assert benchmark.prompt(desk) == "Given an object located at 5.00, 0.00, 0.00, describe the object in detail."

    said, references = benchmark.sentences(chair, " A chair. ")
    assert (said, references[0]) == ("sos a chair . eos", "sos a chair . eos")
    assert len(references[1].split()) == 32  # thirty words and the two markers
    said, references = benchmark.sentences(chair, "A chair.", "video_3d_llm")
    assert said == references[0] == "sos a chair .  eos" and len(references[1].split()) == 42
    assert benchmark.sentences(chair, "A chair. Red.", "leo")[0] == "sos A chair . Red . eos"
    far, half = "[3, 0, 0, 1, 1, 1] A chair.", "A chair. [0, 0, 0, 1, 1, 2]"
    assert benchmark.sentences(chair, far)[0] == benchmark.sentences(chair, half)[0] == "sos eos"
    assert benchmark.sentences(chair, far, "video_3d_llm")[0] == "sos  eos"
    assert benchmark.sentences(chair, "A chair. [0, 0, 0, 1, 1, 1.9]")[0] == "sos a chair . eos"
    assert benchmark.score(chair, "A chair.") == 1.0

    found, missed = benchmark.read(
        tmp_path, scenes=scene_of(boxes), proposals={"scene0011_00": [Box3D((0.1, 0.0, 0.0), (1.0, 1.0, 1.0))]}
    )
    assert found.text == "0.10, 0.00, 0.00" and missed.groups == ("missed",)
    assert benchmark.sentences(missed, "The desk, brown.")[0] == "sos eos"
    records = [Record(q, t, benchmark.score(q, t)) for q, t in ((found, "A chair."), (missed, "The desk, brown."))]
    with pytest.warns(UserWarning, match="METEOR"):
        numbers = benchmark.aggregate(records)
    assert numbers["missed"] == 1 and numbers["overall"] == numbers["CIDEr"] > 0
    said, references = ["sos a chair . eos", "sos eos"], [list(benchmark.sentences(q, "")[1]) for q in (chair, desk)]
    assert numbers["ROUGE-L"] == pytest.approx(100 * mean_rouge_l(said, references))
