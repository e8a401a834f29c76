"""`allo eval` on benchmarks about objects of scans: true boxes, choices by a model that points, proposals from a file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from allocentric.evaluate.benchmark import read_run
from allocentric.models.grounding import GroundingScene, S2Processor, grounding_prompt, load_grounding
from allocentric.models.s2_mllm import GROUND, S2LlavaConfig, S2LlavaForConditionalGeneration
from allocentric.readers import open_views
from allocentric.readers.scannet import open_scannet_scene
from allocentric.tasks import BENCHMARKS
from allocentric.tasks.overlap import read_boxes, write_box
from test_benchmarks_grounding import LABELS, NR3D, write_csv
from test_evaluate_models import allo, nano  # noqa: F401  (fixtures)
from test_readers_scans import exported, scan
from test_spatial_mllm import tiny_processor

SCENES = ("scene0001_00", "scene0002_00")
ALIGNED = "axisAlignment = " + " ".join(map(str, np.eye(4).ravel()))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A tiny S2-MLLM with large random weights."""
    torch.manual_seed(0)
    tokenizer = tiny_processor(1).tokenizer
    tokenizer.add_tokens([GROUND, "<image>"], special_tokens=True)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (GROUND, "<image>", "<|im_end|>")}
    config = S2LlavaConfig.tiny(ground_token_id=ids[GROUND], video_token_index=ids["<image>"], image_token_index=ids["<image>"])
    model = S2LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    folder = tmp_path_factory.mktemp("pointing")
    model.save_pretrained(folder)
    S2Processor(tokenizer, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two scans with a floor (object 0), a chair (1) and a wall (2), their frames, and official files about them."""
    folder = tmp_path_factory.mktemp("official")
    first = exported(scan(folder / "scans", ALIGNED))
    second = shutil.copytree(first, folder / "scans" / SCENES[1])
    for file in second.glob("scene0001_00*"):
        file.rename(second / file.name.replace(*SCENES))
    write_scanrefer(folder)
    (folder / "scannetv2-labels.combined.tsv").write_text("\n".join("\t".join(line) for line in LABELS))
    rows = [
        [10 + i, f"{scene}-chair-1-1", f"the chair {i}", "True", scene, "office chair", 1, "['the', 'chair']", "True"]
        for i, scene in enumerate(SCENES)
    ]
    write_csv(folder / "nr3d.csv", NR3D, rows)
    names = "scan_id target_id utterance stimulus_id coarse_reference_type instance_type tokens mentions_target_class".split()
    write_csv(
        folder / "sr3d.csv", names, [[SCENES[0], 2, "the wall", f"{SCENES[0]}-wall-1-2", "support", "wall", "['wall']", "True"]]
    )
    shared = {"scene_id": SCENES[0], "object_name": "chair", "description": "the chairs"}
    several = [
        {**shared, "object_ids": [0, 1], "ann_id": 0, "eval_type": "mt"},
        {**shared, "object_ids": [], "ann_id": 1, "eval_type": "zt_w_d"},
    ]
    (folder / "multi3drefer_val.json").write_text(json.dumps(several))
    return folder


def write_scanrefer(folder: Path) -> None:
    described = [(0, "floor", "the floor"), (1, "office_chair", "A chair."), (1, "office_chair", "the seat"), (2, "wall", "a wall")]
    rows = [
        {
            "scene_id": scene, "object_id": str(target), "object_name": name, "ann_id": str(i), "description": text,
            "token": text.lower().replace(".", " .").split(),
        }
        for scene in SCENES
        for i, (target, name, text) in enumerate(described)
    ]  # fmt: skip
    (folder / "ScanRefer_filtered_val.json").write_text(json.dumps(rows))


def words(task: str, data: Path, *more: object) -> tuple:
    return ("eval", task, "--data", data, "--scenes", data / "scans", "--frames", 3, "--out", "runs", "--json", *more)


def only_run(folder: Path) -> tuple[dict, list]:
    [run] = folder.iterdir()
    return read_run(run)


def test_a_model_that_points_is_scored_on_scanrefer(allo, data, weights, tmp_path, monkeypatch):  # noqa: F811
    encoded, encode = [], GroundingScene.encode
    monkeypatch.setattr(GroundingScene, "encode", lambda m, p, v, b: encoded.append(v.source) or encode(m, p, v, b))
    command = words("scanrefer", data, "--model", weights)
    out, err, code = allo(*command)
    assert code == 0, err
    assert len(encoded) == 2  # a scene is seen once, however many descriptions there are
    about, rows = only_run(tmp_path / "runs")
    assert (about["questions"], about["scenes"], about["boxes"], about["frames"]) == (8, 2, "the true ones", 3)
    assert (
        about["recall@0.25 of the candidates"] == about["recall@0.5 of the candidates"] == 50
    )  # a flat floor and wall have no volume
    boxes = [o.box for o in open_scannet_scene(data / "scans" / SCENES[1], skip=()).objects]
    scene = encode(*load_grounding(weights, "cpu"), open_views(data / "scans" / SCENES[1], 3), boxes)
    found = scene.ground(["the floor", "A chair.", "the seat", "a wall"])
    for row, one in zip(rows[4:], found, strict=True):
        assert row.prediction == write_box(boxes[one.index]) and row.notes == one.text
        assert row.prompt == grounding_prompt(row.question.text) and row.frames == (0, 10, 30)
        assert row.score == BENCHMARKS["scanrefer"]().score(row.question, row.prediction)
    scores = json.loads(out)["scores"]
    assert scores["Acc@0.25"]["score"] == pytest.approx(100 * np.mean([row.score for row in rows]))
    assert {"unique/Acc@0.25", "multiple/Acc@0.5", "overall (= micro)"} <= set(scores) and "chance" not in scores["micro"]
    [folder] = (tmp_path / "runs").iterdir()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(GroundingScene, "encode", None)  # nothing is left to ask
    assert allo(*command)[0] == out and {path.name: path.read_bytes() for path in folder.iterdir()} == files
    lines = files["answers.jsonl"].splitlines(keepends=True)
    (folder / "answers.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:30])  # killed in the second scene
    monkeypatch.setattr(GroundingScene, "encode", lambda m, p, v, b: encoded.append(v.source) or encode(m, p, v, b))
    assert allo(*command)[0] == out and {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert len(encoded) == 3


def test_proposals_are_chosen_among(allo, data, weights, tmp_path):  # noqa: F811
    chair = [1.25, 1.5, 0.45, 0.5, 1.0, 0.9]
    near = [1.25, 1.5, 0.45, 0.5, 1.0, 0.5]  # overlaps the chair by 0.5 / 0.9
    files = {"good": chair, "near": near, "bad": [9, 9, 9, 1, 1, 1]}
    for name, box in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({scene: [box] for scene in SCENES}))
    expected = {"good": (50, 50), "near": (50, 50), "bad": (0, 0)}
    for name in files:
        out, err, code = allo(*words("scanrefer", data, "--model", weights, "--proposals", f"{name}.json"))
        assert code == 0, err
        report = json.loads(out)
        assert (report["scores"]["Acc@0.25"]["score"], report["scores"]["Acc@0.5"]["score"]) == expected[name]
        assert report["boxes"].startswith(f"{name}.json (sha256 ") and report["recall@0.25 of the candidates"] == expected[name][0]
    _, rows = read_run(next((tmp_path / "runs").glob("*")))
    assert len(rows) == 8
    _, err, code = allo(*words("scanrefer", data, "--model", weights, "--proposals", "nowhere.json"))
    assert code == 2 and "nowhere.json: found no such file" in err


def test_blind_pointing_and_chance(allo, data, weights, tmp_path):  # noqa: F811
    out, err, code = allo(*words("scanrefer", data, "--model", weights, "--baseline", "blind"))
    assert code == 0 and json.loads(out)["sees"].startswith("boxes and geometry"), err
    shutil.rmtree(tmp_path / "runs")
    # no frames are needed, and the same boxes are drawn every time
    first, second = (allo(*words("scanrefer", data, "--baseline", "chance"))[0] for _ in range(2))
    assert first == second
    about, rows = only_run(tmp_path / "runs")
    assert about["model"] == "chance" and {len(read_boxes(row.prediction)) for row in rows} == {1}
    assert len({row.prediction for row in rows}) > 1


def test_referit3d_chooses_numbers_or_boxes(allo, data, weights, tmp_path):  # noqa: F811
    out, err, code = allo(*words("nr3d", data, "--model", weights, "--scans", split(tmp_path, SCENES[1])))
    assert code == 0, err
    _, [row] = only_run(tmp_path / "runs")
    assert row.question.scene == SCENES[1] and row.prediction in ("0", "1", "2") and row.score == float(row.prediction == "1")
    assert json.loads(out)["scores"]["overall (= micro)"]["score"] == 100 * row.score
    (tmp_path / "chairs.json").write_text(json.dumps({scene: [[1.25, 1.5, 0.45, 0.5, 1.0, 0.9]] for scene in SCENES}))
    command = words("nr3d", data, "--model", weights, "--proposals", "chairs.json")
    out, err, code = allo(*command, "--profile", "detected")
    assert code == 0 and json.loads(out)["scores"]["Acc@0.5"]["score"] == 100, err
    _, err, code = allo(*command)
    assert code == 2 and "official chooses among the true boxes" in err
    out, err, code = allo(*words("sr3d", data, "--model", weights))
    assert code == 0 and json.loads(out)["scores"]["support"]["score"] in (0, 100), err


def split(folder: Path, *names: str) -> Path:
    (folder / "split.txt").write_text("\n".join(names))
    return folder / "split.txt"


def test_multi3drefer_may_choose_none_or_several(allo, data, weights, tmp_path):  # noqa: F811
    out, err, code = allo(*words("multi3drefer", data, "--model", weights))
    assert code == 0, err
    _, rows = only_run(tmp_path / "runs")
    boxes = [o.box for o in open_scannet_scene(data / "scans" / SCENES[0], skip=()).objects]
    scene = GroundingScene.encode(*load_grounding(weights, "cpu"), open_views(data / "scans" / SCENES[0], 3), boxes)
    for row, one in zip(rows, scene.ground(["the chairs", "the chairs"]), strict=True):
        assert row.prediction == (", ".join(write_box(boxes[i]) for i in one.several()) or "none")
    assert set(json.loads(out)["scores"]) >= {"mt/F1@0.25", "zt_w_d/F1@0.5"}


def test_models_that_answer_in_words_are_asked_too(allo, data, nano, tmp_path):  # noqa: F811
    out, err, code = allo(*words("scanrefer", data, "--model", nano, "--max-new-tokens", 3, "--limit", 2))
    assert code == 0, err
    _, rows = only_run(tmp_path / "runs")
    assert len(rows) == 2 and rows[0].prompt.endswith("[x, y, z, dx, dy, dz].") and rows[0].frames == (0, 10, 30)
    _, err, code = allo(*words("scanrefer", data, "--model", nano, "--proposals", data / "ScanRefer_filtered_val.json"))
    assert code == 2 and "ScanRefer_filtered_val.json" in err
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "floors.json").write_text(json.dumps({scene: [[2, 1.5, 0, 4, 3, 0.1]] for scene in SCENES}))
    out, err, code = allo(*words("scan2cap", data, "--max-new-tokens", 3, "--proposals", "floors.json"))
    assert code == 0 and json.loads(out)["scores"]["missed"]["score"] == 6, err
    about, rows = only_run(tmp_path / "runs")
    assert about["boxes"].startswith("floors.json") and len(rows) == 6


def test_what_is_missing_is_told_before_anything_is_written(allo, data, weights, nano, tmp_path):  # noqa: F811
    command = ("eval", "scanrefer", "--data", data, "--out", "runs")
    plain = tmp_path / "plain" / SCENES[0]
    plain.mkdir(parents=True)
    for more, complaint in (
        (("--model", weights), "--scenes: found none, expected the folder of annotated scans"),
        (("--model", weights, "--scenes", tmp_path), f"found no folder {tmp_path / SCENES[0]}, nor 1 others"),
        (("--scenes", data / "scans", "--baseline", "frequency"), "answers of scanrefer are places"),
        (("--scenes", data / "scans", "--model", weights, "--videos", tmp_path), "found nothing there"),
        (("--scenes", data / "scans", "--model", nano, "--proposals", floors(tmp_path)), "answers in words"),
        (("--scenes", data / "scans", "--subset", "tiny"), "--subset: scanrefer has none"),
        (("--scenes", data / "scans", "--model", weights, "--processor", nano), "--processor: found a model that points"),
        (("--scenes", data / "scans", "--model", weights, "--max-new-tokens", 9), "--max-new-tokens: found a model that points"),
        (("--scenes", data / "scans", "--geometry", nano, "--baseline", "chance"), "--geometry: found --baseline chance"),
    ):
        _, err, code = allo(*command, *more)
        assert code == 2 and complaint in err, err
    _, err, code = allo("eval", "vsibench", "--data", vsi(tmp_path), "--scenes", data, "--baseline", "chance")
    assert code == 2 and "--scenes: vsibench has none" in err
    assert not (tmp_path / "runs").exists()


def floors(folder: Path) -> Path:
    (folder / "floors.json").write_text(json.dumps({scene: [[2, 1.5, 0, 4, 3, 0.1]] for scene in SCENES}))
    return folder / "floors.json"


def vsi(folder: Path) -> Path:
    from test_evaluate_runs import write_vsibench

    return write_vsibench(folder / "vsi", count=1)
