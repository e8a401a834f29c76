"""The command line: it teaches, it prints what the library found, and a mistake costs one line and leaves nothing behind."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import allocentric.model
from allocentric import cli
from allocentric.answer import Answer
from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.readers import open_views
from test_model import checkpoint, save_checkpoint, write_video  # noqa: F401  (checkpoint is a fixture)
from test_spatial_mllm import frames, tiny_processor


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """In nano's place: a tiny model with everything in one folder."""
    folder = save_checkpoint(tmp_path_factory.mktemp("nano"))
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "room.mp4", frames(10, seed=3))


@pytest.fixture
def allo(monkeypatch, capsys, nano, tmp_path):
    """Run a command in an empty folder: what it printed, its complaints, its exit code."""
    monkeypatch.setattr(allocentric.model, "NANO", nano)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[str, str, int]:
        code = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return said.out, said.err, code

    return run


def test_what_a_process_that_reads_data_says_is_one_line():
    from torch.utils.data import DataLoader

    from allocentric.processes import _one_line

    with pytest.raises(ValueError) as error:
        list(DataLoader(Unreadable(), num_workers=1))
    assert "Original Traceback" in str(error.value)
    assert _one_line(error.value) == "room.mp4: found no frames, expected some"


class Unreadable:
    """A dataset whose items are errors."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("room.mp4: found no frames, expected some")


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_says_what_a_command_does(allo, command):
    out, _, code = allo(*command.split(), "--help")
    assert code == 0
    if command:
        first = cli.COMMANDS[command].__doc__.splitlines()[0]
        assert first[:40] in " ".join(out.replace("│", " ").split())
    else:
        assert all(name in out for name in cli.COMMANDS)


def test_stages_build_on_one_another_in_one_process(allo, monkeypatch, request):
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, err, code = allo("train", request.config.rootpath / "recipes" / "nano.yaml", "--out", "made")
    assert code == 2 and "found 2 processes, expected one" in err


@pytest.mark.parametrize("command", ["ask", "sample", "info", "train", "eval"])
def test_help_shows_an_example(allo, command):
    if command == "train":
        pytest.skip("its example stands in the recipes")
    assert f"allo {command}" in allo(command, "--help")[0]


# ---- mistakes ----


def broken(folder):
    (folder / "broken.mp4").write_bytes(b"not a video at all" * 50)
    (folder / "empty").mkdir()
    (folder / "recipe.yaml").write_text("rooms: {count: 3, colour: red}")
    (folder / "odd.yaml").write_text("rooms: [unclosed")
    (folder / "mixed").mkdir()
    for i, size in enumerate([(64, 48), (48, 64)]):
        Image.new("RGB", size).save(folder / "mixed" / f"{i}.png")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("ask", "nowhere.mp4", "how many?"), "nowhere.mp4: found no such file or folder"),
        (("ask", "broken.mp4", "how many?"), "broken.mp4: not a video"),
        (("ask", "broken.mp4"), "questions: found none"),
        (("ask", "{video}", "how many?", "--latents", "kept"), "latents: found nano, a spatial-mllm, expected a Spa3-VLM"),
        (("map", "empty", "--labels", "chair"), "--labels: found no --detector"),
        (("ask", "{video}", " "), "question 0: found ' ', expected some text"),
        (("ask", "{video}", "how many?", "--frames", "0"), "expected"),
        (("ask", "{video}", "how many?", "--model", "nowhere"), "nowhere: found no such file or folder"),
        (("ask", "{video}", "how many?", "--geometry", "x"), "--geometry: found frames spread evenly, which needs none, expected"),
        (("ask", "empty", "how many?"), "empty: nothing to read"),
        (("sample", "nowhere.mp4"), "nowhere.mp4: found no such file or folder"),
        (("sample", "broken.mp4"), "broken.mp4: not a video"),
        (("sample", "{video}", "-k", "0"), "k"),
        (("sample", "mixed"), "mixed: images must have one size; 0.png is 64x48, 1.png is 48x64"),
        (("sample", "{video}", "--points", "measured"), "measured points need a posed RGB-D capture"),
        (("sample", "{video}", "--model", "empty"), "found no vggt_heads.safetensors, expected it there or --geometry"),
        (("sample", "{video}", "--sampling", "uniform", "--mode", "fill"), "--mode: found --sampling uniform, which takes none"),
        (("sample", "{video}", "--sampling", "uniform", "--bf16"), "--bf16: found --sampling uniform, which takes none, expected"),
        (("sample", "{video}", "--sampling", "uniform", "--geometry", "x"), "--geometry: found --sampling uniform"),
        (("ask", "{video}", "how many?", "--labels", "chair"), "--labels: found --via model, which takes none, expected"),
        (("ask", "{video}", "how many?", "--threshold", "0"), "--threshold: found --via model"),
        (("ask", "{video}", "how many?", "--via", "graph", "--scene", "x"), "room.mp4, of which a model's notes are the map"),
        (("ask", "{video}", "how many?", "--via", "both", "--labels", "chair"), "--labels: found"),
        (("map", "{video}", "--model", "nano", "--threshold", "0"), "--threshold: found --model, which takes none, expected no"),
        (("map", "empty", "--threshold", "0.3"), "--threshold: found no --detector, expected one"),
        (("info", "nowhere"), "nowhere: found no such file or folder"),
        (("info", "empty"), "empty: nothing to read"),
        (("rooms", "made", "--width", "33"), "width must be even"),
        (("rooms", "made", "--count", "0"), "count: found 0, expected at least 1 room"),
        (("rooms", "made", "--count", "-3"), "count: found -3"),
        (("train", "nowhere.yaml", "--out", "made"), "nowhere.yaml: found no such file"),
        (("train", "recipe.yaml", "--out", "made"), "recipe.yaml: found no ["),
        (("train", "odd.yaml", "--out", "made"), "odd.yaml: expected YAML"),
        (("train", "{nano_recipe}", "--out", "made", "--stages", "room"), "stages: found ['room'], expected some of ['rooms'"),
        (("eval", "rooms", "--model", "nowhere", "--out", "made"), "nowhere: found no such file or folder"),
        (("eval", "rooms", "--baseline", "chance", "--model", "nano"), "--model: found --baseline chance, which asks none"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(allo, tmp_path, video, words, complaint, request):
    broken(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    recipe = request.config.rootpath / "recipes" / "nano.yaml"
    out, err, code = allo(*(word.format(video=video, nano_recipe=recipe) for word in words))
    assert code == 2 and out == ""
    assert err.startswith("allo: ") and err.count("\n") == 1 and err.endswith("\n")
    assert complaint in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [("paint",), ("ask",), ("sample", "x.mp4", "-k", "many"), ("info", "nano", "--loud")])
def test_a_command_that_does_not_exist_ends_with_2(allo, words):
    out, err, code = allo(*words)
    assert code == 2 and out == "" and "--help" in err


# ---- results ----


def test_ask_prints_question_and_answer(allo, video):
    out, err, code = allo("ask", video, "how many chairs?", "left or right?", "--frames", 4)
    assert code == 0
    expected = allocentric.load().watch(video, 4).ask(["how many chairs?", "left or right?"])
    assert out == "".join(f"{a.question}\n  {a.text}  (confidence {a.confidence:.2f})\n" for a in expected)
    assert "nano was trained on procedural rooms alone" in " ".join(err.split())
    assert allo("ask", video, "how many chairs?", "left or right?", "--frames", 4, "--model", "nano")[0] == out


def test_ask_cuts_where_it_is_told_and_prints_what_is_in_the_answer_block(allo, video, monkeypatch):
    monkeypatch.setattr(
        "allocentric.models.scene.Scene.ask", lambda scene, questions, longest: [Answer(f"<answer>{longest}</answer>", "?", 0.5)]
    )
    assert allo("ask", video, "?", "--max-new-tokens", 7)[0] == "?\n  7  (confidence 0.50)\n"
    assert json.loads(allo("ask", video, "?", "--json")[0])["answers"][0]["text"] == "<answer>128</answer>"


def test_a_video_is_asked_via_what_the_model_noted(allo, video, nano, monkeypatch):
    wording = "If I am standing by the sofa and facing the bed, is the lamp to my left or my right?"
    said = Answer("right", wording, 0.5, (0, 3, 6, 9), "sofa 0.0 0.0, bed 0.0 2.0, lamp -1.5 1.0; 0.0 2.0")
    monkeypatch.setattr("allocentric.models.scene.Scene.ask", lambda scene, questions, longest: [said])
    out, err, code = allo("ask", video, wording, "--frames", 4, "--via", "graph")
    assert code == 0, err
    assert f"{wording}\n  left  (graph: noted by nano)" in out and "compute  turn 56 degrees to the left" in out
    assert "disagrees" not in out
    assert "  right  (model)   <- disagrees with the graph" in allo("ask", video, wording, "--frames", 4, "--via", "both")[0]
    found = json.loads(allo("ask", video, wording, "--frames", 4, "--via", "both", "--json")[0])
    (by_graph,) = found["graph_answers"]
    assert (found["model"], found["answers"][0]["text"], by_graph["text"]) == ("nano", "right", "left")
    assert by_graph["disagrees"] is True
    assert [[label for label, _, _ in t["objects"]] for t in by_graph["triplets"]] == [["sofa", "bed", "lamp"]]
    monkeypatch.setattr("allocentric.models.scene.Scene.ask", lambda scene, questions, longest: [replace(said, notes="")])
    assert "the graph has no sofa, bed or lamp" in allo("ask", video, wording, "--frames", 4, "--via", "graph")[0]


def test_ask_as_json(allo, video, nano):
    out, _, code = allo("ask", video, "how many chairs?", "--frames", 4, "--json", "--model", nano)
    answer = allocentric.load().watch(video, 4).ask("how many chairs?")
    found = json.loads(out)
    assert code == 0 and (found["source"], found["model"]) == (str(video), str(nano))
    assert found["answers"] == [
        {
            "text": answer.text,
            "question": answer.question,
            "confidence": pytest.approx(answer.confidence),
            "frames": [0, 3, 6, 9],
            "notes": "",
        }
    ]


def test_sample_writes_the_sheet_and_says_what_was_gained(allo, video, tmp_path):
    out, _, code = allo("sample", video, "-k", 3, "--candidates", 6, "--json")
    found = json.loads(out)
    model = allocentric.load()
    selection, views = allocentric.sample(video, 3, "space_aware", "fill", 6, model.geometry, width=70)
    assert code == 0
    assert found["frames"] == views.indices.tolist()
    assert found["coverage"] == pytest.approx(selection.coverage) and found["uniform_coverage"] == selection.uniform_coverage
    assert open_views(tmp_path / "sample.png").frames.shape[0] == 1
    out, _, code = allo("sample", video, "-k", 2, "--sampling", "uniform", "--out", "even.png")
    assert code == 0 and out.splitlines()[0] == "frames 0, 9" and (tmp_path / "even.png").is_file()


def test_sample_with_a_vggt_of_ones_own_as_the_published_code_runs_it(allo, video, tmp_path, monkeypatch):
    vggt = VGGT(VGGTConfig.tiny()).eval()
    vggt.config.save_pretrained(tmp_path / "vggt")
    save_file(vggt.state_dict(), tmp_path / "vggt" / "model.safetensors")
    monkeypatch.setattr(allocentric.model, "load", None)  # no other model is needed
    words = ("sample", video, "-k", 3, "--geometry", "vggt", "--mode", "reference", "--json")
    for points, bf16 in (("point_head", True), ("depth_camera", False)):
        out, err, code = allo(*words, "--points", points, *["--bf16"] * bf16)
        assert code == 0, err
        autocast = torch.bfloat16 if bf16 else None
        selection, views = allocentric.sample(video, 3, mode="reference", model=vggt, source=points, autocast=autocast)
        found = json.loads(out)
        assert (found["frames"], found["voxel_size"]) == (views.indices.tolist(), pytest.approx(selection.voxel_size))


def test_rooms_as_json(allo, tmp_path):
    out, err, code = allo("rooms", "made", "--count", 2, "--seconds", 0.4, "--width", 32, "--height", 24, "--json")
    assert code == 0, err
    folders = json.loads(out)["rooms"]
    assert folders == ["made/room-0", "made/room-1"]
    assert all((tmp_path / folder / "video.mp4").is_file() for folder in folders)


def test_info_on_a_video(allo, video):
    out, _, code = allo("info", video, "--json")
    expected = {"source": str(video), "layout": "video", "frames": 10, "seconds": 1.8, "height": 56, "width": 84}
    assert code == 0 and json.loads(out) == expected
    lines = [line.split(maxsplit=1) for line in allo("info", video)[0].splitlines()]
    assert dict(lines) == {name: str(value) for name, value in expected.items()}


def test_info_on_images(allo, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (20, 10)).save(tmp_path / "images" / f"{i}.png")
    found = json.loads(allo("info", "images", "--json")[0])
    assert (found["layout"], found["frames"], found["height"], found["width"], found["depth"]) == ("images", 3, 10, 20, "not given")


def test_info_on_models(allo, nano, checkpoint):  # noqa: F811
    found = json.loads(allo("info", "nano", "--json")[0])
    network = allocentric.load().network
    assert found["model"] == "nano" and found["type"] == "spatial-mllm" and found["dtype"] == "float32"
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    assert found["3D encoder"] == sum(p.numel() for p in network.model.spatial_encoder.parameters())
    (nano / "card.json").write_text('{"macro": 61.5}')
    assert json.loads(allo("info", "nano", "--json")[0])["macro"] == 61.5
    # weights alone are enough, tokenizer and image processor may lie elsewhere
    alone = json.loads(allo("info", checkpoint[0], "--json")[0])
    assert alone["model"] == str(checkpoint[0]) and alone["parameters"] == found["parameters"]


def test_rooms_are_videos_with_their_truth(allo, tmp_path):
    from allocentric.rooms import load_scene

    _, _, code = allo("rooms", "made", "--seed", 7, "--seconds", 0.5, "--width", 64, "--height", 48)
    assert code == 0
    assert load_scene(tmp_path / "made" / "room-7").objects
    assert len(open_views(tmp_path / "made" / "room-7" / "video.mp4")) == 5


def test_the_demo_asks_about_the_frames_it_shows(allo, tmp_path, monkeypatch):
    from allocentric import demo
    from allocentric.rooms import write_video as film

    small = {"height": 56, "width": 84, "seconds": 2, "annotated_frames": 4, "workers": 1}
    monkeypatch.setattr(demo, "write_video", lambda seed, folder, **size: film(seed, folder, **small))
    used, draw, watch = [], demo.contact_sheet, allocentric.model.Model.watch
    monkeypatch.setattr(demo, "contact_sheet", lambda views, *given, **how: used.append(views) or draw(views, *given, **how))
    monkeypatch.setattr(allocentric.model.Model, "watch", lambda model, views: used.append(views) or watch(model, views))
    out, err, code = allo("demo", "--out", "made", "--seed", 7)
    assert code == 0, err
    shown, watched = used
    assert watched is shown and len(shown) == demo.FRAMES
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"room", "frames.png", "map.png"} and "square metres" in out


def test_eval_renders_rooms_asks_and_resumes(allo, tmp_path, monkeypatch):
    from allocentric.evaluate.answers import read_rows
    from allocentric.evaluate.rooms import summary

    words = ("eval", "rooms", "--count", 1, "--per-task", 1, "--seed", 7, "--out", "made", "--json")
    out, err, code = allo(*words)
    assert code == 0, err
    rooms, folder = sorted((tmp_path / "made").iterdir(), key=lambda path: path.name != "rooms-parts-7")
    found, expected = json.loads(out), summary(read_rows(folder / "answers.jsonl"))
    assert rooms.name == "rooms-parts-7" and found["rooms"]["count"] == 1
    scores = {name.split(" ")[0]: line["score"] for name, line in found["scores"].items()}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {"run.json", "answers.jsonl", "report.md", "report.html", "report.json"}
    monkeypatch.setattr("allocentric.models.scene.Scene.encode", None)  # nothing is left to ask
    monkeypatch.setattr("allocentric.rooms.generate", None)  # nor to render
    assert json.loads(allo(*words)[0]) == found and {path.name: path.read_bytes() for path in folder.iterdir()} == files
    table = allo(*words[:-1])[0]
    assert f"{expected['overall']:.1f}" in table and "room_size_estimation" in table
