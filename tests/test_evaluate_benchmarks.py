"""Every benchmark from its official layout through `allo eval`: asked, scored, reported, asked again, imported."""

import base64
import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allocentric.evaluate.answers import read_rows
from allocentric.evaluate.benchmark import read_run
from allocentric.tasks import BENCHMARKS
from allocentric.tasks.files import read_rows as read_file
from test_benchmarks_text import write_sqa3d
from test_evaluate_models import allo, nano  # noqa: F401  (fixtures)
from test_evaluate_runs import write_vsibench
from test_model import write_video
from test_spatial_mllm import frames

ABOUT_OBJECTS = {"scanrefer", "nr3d", "sr3d", "multi3drefer", "scan2cap"}  # test_evaluate_grounding.py


def picture(seed: int) -> bytes:
    file = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (28, 42, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def put(file: Path, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(seed))


def write_json(file: Path, rows: list[dict]) -> None:
    file.write_text("\n".join(map(json.dumps, rows)) if file.suffix == ".jsonl" else json.dumps(rows))


def write_parquet(file: Path, rows: list[dict]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def vsibench(folder: Path) -> tuple:
    write_vsibench(folder, count=2)
    (folder / "set").mkdir()
    for scene in range(2):
        write_video(folder / "set" / f"{scene:02d}.mp4", frames(6, seed=scene))
    return "--videos", folder


def scanqa(folder: Path) -> tuple:
    rows = [
        {"scene_id": "scene0011_00", "question_id": f"val-scene0011-{i}", "question": text, "answers": answers, "object_names": []}
        for i, (text, answers) in enumerate([("What color is it?", ["brown", "dark brown"]), ("How many chairs?", ["4"])])
    ]
    write_json(folder / "ScanQA_v1.0_val.json", rows)
    write_video(folder / "scene0011_00.mp4", frames(6, seed=0))
    return "--videos", folder


def sqa3d(folder: Path) -> tuple:
    write_sqa3d(folder, ["piano", "two"])
    for i in range(3):
        put(folder / "scene0050_00" / f"{i}.jpg", i)  # a folder of frames serves as a video
    return "--videos", folder


def sparbench(folder: Path) -> tuple:
    asked = {
        "depth_prediction_oc": "2.5",
        "distance_prediction_oo_mv": "1.25",
        "view_change_infer": "move_up:1",
        "position_matching": "A",
    }
    rows = [
        {"id": f"s/{task}", "task": task, "question": "Q? A. x B. y", "answer": answer, "img_type": "single", "image": [picture(0)]}
        for task, answer in asked.items()
    ]
    write_parquet(folder / "test-00000-of-00001.parquet", rows)
    return "--images", folder / "images"


def mindcube(folder: Path) -> tuple:
    text = "What is behind you? A. Sofa B. White table"
    rows = [
        {"id": "among_g_q0", "question": text, "gt_answer": "B", "images": ["a/1.jpg", "a/2.jpg"]},
        {"id": "rotation_q1", "question": text, "gt_answer": "A", "images": ["a/1.jpg"]},
    ]
    write_json(folder / "MindCube_tinybench.jsonl", rows)
    put(folder / "a" / "1.jpg"), put(folder / "a" / "2.jpg", 1)
    return "--images", folder


def viewspatial(folder: Path) -> tuple:
    name = "ViewSpatial-Bench/scannetv2_val/scene0011_00/original_images/280.jpg"
    row = {
        "question_type": "Camera perspective - Relative Direction", "image_path": [name], "question": "Where is the counter?",
        "answer": "B. front", "choices": "A. right\nB. front",
    }  # fmt: skip
    write_json(folder / "ViewSpatial-Bench.json", [row, {**row, "question": "Where is the table?", "answer": "A. right"}])
    put(folder / name)
    return "--images", folder


def embspatial(folder: Path) -> tuple:
    row = {
        "question_id": "mp3d_57", "data_source": "mp3d", "scene_id": "Y", "question": "Which is closest?", "relation": "close",
        "image": base64.b64encode(picture(0)).decode(), "answer_options": ["door", "cabinet", "table", "bed"], "answer": 2,
    }  # fmt: skip
    write_json(folder / "embspatial_bench.json", [row, {**row, "question_id": "ai2thor_1", "data_source": "ai2thor", "answer": 0}])
    return "--images", folder / "images"


def mmsi(folder: Path) -> tuple:
    kind = "Positional Relationship (Cam.–Obj.)"
    rows = [
        {"id": i, "images": [picture(i), picture(9)], "question_type": kind, "question": "Where? \nOptions: A: Left, B: Right",
         "answer": "AB"[i], "thought": "long"}
        for i in range(2)
    ]  # fmt: skip
    write_parquet(folder / "MMSI_Bench.parquet", rows)
    return "--images", folder / "images"


def mmsi_video(folder: Path) -> tuple:
    rows = [
        {"id": i, "type": kind, "system_prompt": "Look.", "task_prompt": "<video>", "user_prompt": "What moved? A. chair B. bed",
         "format_prompt": " One letter.", "frames_list": [["v/0.jpg", "v/1.jpg"]], "ref_images": [], "ground_truth": "B. bed"}
        for i, kind in enumerate(["(Cross-Video) Memory Update", "Planning"])
    ]  # fmt: skip
    write_json(folder / "mmsivideo.json", rows)
    put(folder / "frames" / "v" / "0.jpg"), put(folder / "frames" / "v" / "1.jpg", 1)
    return "--images", folder


def site(folder: Path) -> tuple:
    shared = {"category": "counting & existence", "dataset": "CLEVR"}
    rows = [
        {**shared, "question": "How many?", "options": ["1", "2"], "visual": ["a.jpg"], "answer": "A"},
        {**shared, "question": "<image> and <image>?", "options": list("xyzw"), "visual": ["a.jpg", "b.jpg"], "answer": "D"},
        {**shared, "question": "What next?", "options": ["x", "y", "z"], "visual": ["clip.mp4"], "answer": "C"},
    ]
    write_json(folder / "site.jsonl", rows)
    put(folder / "a.jpg"), put(folder / "b.jpg", 1)
    write_video(folder / "clip.mp4", frames(6, seed=0))
    return "--images", folder, "--videos", folder


WRITERS: dict[str, Callable[[Path], tuple]] = {
    write.__name__: write
    for write in (vsibench, scanqa, sqa3d, sparbench, mindcube, viewspatial, embspatial, mmsi, mmsi_video, site)
}


def test_no_benchmark_is_left_out():
    assert WRITERS.keys() | ABOUT_OBJECTS == BENCHMARKS.keys()


@pytest.mark.filterwarnings("ignore:no METEOR")
@pytest.mark.parametrize("name", WRITERS)
def test_a_benchmark_is_asked_from_its_official_files(name, allo, tmp_path):  # noqa: F811
    data = tmp_path / "data"
    data.mkdir()
    shown = WRITERS[name](data)
    command = ("eval", name, "--data", data, *shown, "--frames", 4, "--max-new-tokens", 4, "--out", "runs", "--json")
    out, err, code = allo(*command)
    assert code == 0, err
    [folder] = (tmp_path / "runs").iterdir()
    about, rows = read_run(folder)
    benchmark = BENCHMARKS[name]()
    assert about["profile"] == benchmark.profiles[0] and len(rows) == about["questions"] >= 2
    for row in rows:
        assert row.frames and row.prompt == benchmark.prompt(row.question)
        assert row.score == benchmark.score(row.question, row.prediction)
    numbers = benchmark.aggregate([row.record() for row in rows])
    scores = json.loads(out)["scores"]
    assert scores["micro"]["score"] == pytest.approx(numbers["micro"]) and scores["micro"]["n"] == len(rows)
    assert next(v["score"] for k, v in scores.items() if k.startswith("overall")) == pytest.approx(numbers["overall"])
    page = (folder / "report.html").read_text()
    assert "<table>" in page and all(f"<td>{row.task}</td>".replace("&", "&amp;") in page for row in rows if row.task in scores)

    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert allo(*command)[0] == out and {path.name: path.read_bytes() for path in folder.iterdir()} == files

    # the right answers, written into somebody else's log, are all right
    assert allo("eval", "export", folder, "log.jsonl")[2] == 0
    log = [json.loads(line) | {"filtered_resps": row.question.answer} for line, row in zip(open("log.jsonl"), rows, strict=True)]
    (tmp_path / "right.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    out, err, code = allo("eval", "import", "right.jsonl", name, "--data", data, "--out", "imported", "--json")
    assert code == 0 and json.loads(out)["scores"]["micro"]["score"] == 100, err
    [imported] = (tmp_path / "imported").iterdir()
    assert [row.question.id for row in read_rows(imported / "answers.jsonl")] == [row.question.id for row in rows]
    found = json.loads(allo("eval", "compare", folder, imported, "--json")[0])  # also where the images were not named
    assert found["scores"]["micro"]["b"] == 100 and found["scores"]["micro"]["a"] == pytest.approx(numbers["micro"])


@pytest.mark.filterwarnings("ignore:no METEOR")
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("baseline", ["chance", "frequency", "blind"])
def test_baselines_need_only_the_questions(name, baseline, allo, tmp_path):  # noqa: F811
    (tmp_path / "data").mkdir()
    WRITERS[name](tmp_path / "data")
    words = ("--baseline", baseline, "--max-new-tokens", 2, "--out", "runs", "--json")
    out, err, code = allo("eval", name, "--data", tmp_path / "data", *words)
    assert code == 0, err
    [folder] = (tmp_path / "runs").iterdir()
    about, rows = read_run(folder)
    assert about["model"] == ("nano" if baseline == "blind" else baseline) and not any(row.frames for row in rows)
    report = json.loads(out)["scores"]["micro"]
    if baseline == "frequency":
        assert report["score"] == pytest.approx(report["frequency"])


@pytest.mark.filterwarnings("ignore:no METEOR")
@pytest.mark.parametrize("name", WRITERS)
def test_odd_rows_are_refused_in_one_line(name, allo, tmp_path):  # noqa: F811
    """Every field of the rows, in turn, is a number: it may do, or there is one line, and nothing is written."""
    (tmp_path / "data").mkdir()
    WRITERS[name](tmp_path / "data")
    file = next(path for path in sorted((tmp_path / "data").iterdir()) if path.suffix in (".json", ".jsonl", ".parquet"))
    write = {".parquet": write_parquet}.get(file.suffix, write_json)
    rows = list(read_file(file)) if name != "sqa3d" else json.loads(file.read_text())["questions"]
    refused = 0
    for field in rows[0]:
        odd = [{**row, field: 7.5} for row in rows]
        if name == "sqa3d":
            file.write_text(json.dumps({"questions": odd}))
        else:
            write(file, odd)
        _, err, code = allo("eval", name, "--data", tmp_path / "data", "--baseline", "chance", "--out", "runs")
        assert code in (0, 2), err
        if code == 2:
            refused += 1
            assert err.startswith("allo: ") and len(err.splitlines()) == 1 and not (tmp_path / "runs").exists(), err
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    assert refused


def test_images_that_are_nowhere_are_asked_for(allo, tmp_path):  # noqa: F811
    (tmp_path / "data").mkdir()
    embspatial(tmp_path / "data")
    _, err, code = allo("eval", "embspatial", "--data", tmp_path / "data", "--out", "runs")
    assert code == 2 and "--images: found none, expected the folder of the images of embspatial" in err
    assert not (tmp_path / "runs").exists()
