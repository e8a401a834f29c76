"""Models in runs: shown the right frames of the right video, encoded once, asked blind; and the command line."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import allocentric.model
from allocentric import cli
from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.evaluate.benchmark import read_run
from allocentric.evaluate.responders import Seeing, as_video
from allocentric.evaluate.rooms import room_questions, room_views
from allocentric.models.scene import Scene
from allocentric.readers import open_views
from allocentric.tasks.base import Question
from allocentric.tasks.vsibench import VSIBench
from allocentric.views import Views
from test_evaluate_runs import write_vsibench
from test_model import save_checkpoint, write_video
from test_spatial_mllm import frames, tiny_processor


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """In nano's place: a tiny model with everything in one folder."""
    folder = save_checkpoint(tmp_path_factory.mktemp("nano"))
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Six questions about two videos, in VSI-Bench's layout."""
    folder = write_vsibench(tmp_path_factory.mktemp("data"), count=2)
    (folder / "set").mkdir()
    for scene in range(2):
        write_video(folder / "set" / f"{scene:02d}.mp4", frames(10, seed=scene))
    return folder


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


def test_every_question_is_asked_of_its_own_video_encoded_once(allo, benchmark, tmp_path, monkeypatch):
    encoded, encode = [], Scene.encode
    monkeypatch.setattr(Scene, "encode", lambda m, p, views: encoded.append(views.source) or encode(m, p, views))
    words = ("eval", "vsibench", "--data", benchmark, "--videos", benchmark, "--frames", 4, "--max-new-tokens", 5, "--out", "runs")
    out, err, code = allo(*words, "--json")
    assert code == 0, err
    assert len(encoded) == 2
    [folder] = (tmp_path / "runs").iterdir()
    about, rows = read_run(folder)
    assert about["frames"] == 4 and about["model"] == "nano" and len(about["weights"]) == 16
    model = allocentric.load()
    for scene in range(2):
        mine = [row for row in rows if row.scene == f"set/{scene:02d}"]
        watched = model.watch(open_views(benchmark / "set" / f"{scene:02d}.mp4", 4))
        for row, answer in zip(mine, watched.ask([VSIBench().prompt(row.question) for row in mine], 5), strict=True):
            assert (row.prediction, row.frames, row.prompt) == (answer.text, (0, 3, 6, 9), answer.question)
            assert row.score == VSIBench().score(row.question, row.prediction)
    assert json.loads(out)["scores"]["micro"]["score"] == pytest.approx(100 * sum(row.score for row in rows) / 6)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(Scene, "encode", None)  # nothing is left to ask
    assert allo(*words, "--json")[0] == out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_what_chooses_frames_and_reads_words_names_the_run(allo, benchmark, nano, tmp_path):
    words = ("eval", "vsibench", "--data", benchmark, "--videos", benchmark, "--frames", 2, "--max-new-tokens", 2, "--limit", 1)
    names, found = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        vggt = VGGT(VGGTConfig.tiny())
        vggt.config.save_pretrained(tmp_path / f"vggt-{seed}")
        save_file(vggt.state_dict(), tmp_path / f"vggt-{seed}" / "model.safetensors")
    for more in (
        ("--sampling", "space_aware"),
        ("--sampling", "space_aware", "--geometry", "vggt-0"),
        ("--sampling", "space_aware", "--geometry", "vggt-1"),
        (),
        ("--processor", nano),
    ):
        out, err, code = allo(*words, *more, "--json", "--out", tmp_path / "runs")
        assert code == 0, err
        found.append(json.loads(out))
        names.append(len(list((tmp_path / "runs").iterdir())))
    assert names == [1, 2, 3, 4, 5]
    assert "geometry" not in found[0] and found[1]["geometry"].startswith("vggt-0 (weights ")
    assert "processor" not in found[3] and found[4]["processor"] == str(nano)
    complaint = "--geometry: found frames spread evenly, which needs none, expected --sampling space_aware"
    assert complaint in allo(*words, "--geometry", "vggt-0")[1]


def test_the_blind_model_is_asked_without_videos(allo, benchmark, tmp_path):
    words = ("eval", "vsibench", "--data", benchmark, "--max-new-tokens", 3, "--out", "runs")
    assert allo(*words)[2] == 2  # a model that sees needs --videos
    out, err, code = allo(*words, "--baseline", "blind")
    assert code == 0 and "object_counting" in out, err
    [folder] = (tmp_path / "runs").iterdir()
    about, rows = read_run(folder)
    assert about["sees"] == "nothing (blind)" and all(row.frames == () for row in rows)


def test_runs_are_compared_scored_again_and_handed_on(allo, benchmark, tmp_path):
    for baseline in ("chance", "frequency"):
        assert allo("eval", "vsibench", "--data", benchmark, "--baseline", baseline, "--out", "runs")[2] == 0
    a, b = sorted((tmp_path / "runs").iterdir())
    found = json.loads(allo("eval", "compare", a, b, "--json")[0])
    rows = {folder: read_run(folder)[1] for folder in (a, b)}
    assert found["scores"]["micro"]["a"] == pytest.approx(100 * sum(row.score for row in rows[a]) / 6)
    assert found["mcnemar"]["n"] == 4 and "b - a" in allo("eval", "compare", a, b)[0]
    for name, mark in (("difference.html", "<td>micro</td>"), ("difference.md", "| micro |")):
        assert allo("eval", "compare", a, b, name)[2] == 0 and mark in (tmp_path / name).read_text()
    again = json.loads(allo("eval", "score", b, "--profile", "vlmevalkit", "--json")[0])
    assert again["profile"] == "vlmevalkit" and (b / "vlmevalkit" / "report.md").is_file()
    assert allo("eval", "export", b, "log.jsonl")[2] == 0
    out, err, code = allo("eval", "import", "log.jsonl", "vsibench", "--data", benchmark, "--out", "imported", "--json")
    assert code == 0, err
    assert json.loads(out)["scores"] == json.loads((b / "report.json").read_text())["scores"]
    # another log of that name, or another part of the benchmark, is another run
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_text("".join([*lines[1:], lines[0]]))
    found = json.loads(allo("eval", "import", "log.jsonl", "vsibench", "--data", benchmark, "--out", "imported", "--json")[0])
    assert (found["only"], found["scenes"]) == ("*", 2) and not any("Only a part" in note for note in found["notes"])
    (tmp_path / "log.jsonl").write_text(lines[0])
    command = ("eval", "import", "log.jsonl", "vsibench", "--data", benchmark, "--out", "imported", "--json")
    found = json.loads(allo(*command, "--limit", 1)[0])
    assert found["limit"] == 1 and any("Only a part" in note for note in found["notes"])
    folders = sorted((tmp_path / "imported").iterdir())
    assert sorted(len(read_run(folder)[1]) for folder in folders) == [1, 6, 6]
    assert all(folder.name.startswith("vsibench-log-") for folder in folders)
    for words, complaint in (
        (("compare", a), "found 1 files, expected two runs"),
        (("compare", a, b, "difference.pdf"), "ends in .md or .html"),
        (("rooms",), "found something else there, expected a folder of rooms"),
        (("vsibench", "--per-task", 2), "--per-task: vsibench has none"),
        (("vsibench", "--limit", 0), "--limit: found 0, expected at least 1"),
        (("compare", a, "nowhere"), "nowhere: found no answers"),
        (("nothing",), "task: found 'nothing'"),
        (("vsibench", a), "expected only options"),
    ):
        _, err, code = allo("eval", *words, "--data", benchmark)
        assert code == 2 and complaint in err, err


ROOMS = ("eval", "rooms", "--count", 3, "--per-task", 1, "--frames", 3, "--max-new-tokens", 4, "--out", "runs", "--json")


def test_rooms_are_a_benchmark(allo, shards, tmp_path, monkeypatch):
    out, err, code = allo(*ROOMS, "--data", shards.folder)
    assert code == 0, err
    [folder] = (tmp_path / "runs").iterdir()
    about, rows = read_run(folder)
    assert about["rooms"]["first_seed"] == 50 and about["rooms"]["count"] == 3 and about["frames"] == 3
    made = room_questions(shards, 1)
    assert [row.question.text for row in rows] == [question.text for asked in made for question in asked]
    assert len({row.question.id for row in rows}) == len(rows)
    model = allocentric.load()
    for i, asked in enumerate(made):
        mine = [row for row in rows if row.scene == f"room-parts-{50 + i}"]
        watched = model.watch(room_views(shards, i).select([0, 1, 3]))
        for row, answer in zip(mine, watched.ask([VSIBench().prompt(q) for q in asked], 4), strict=True):
            assert (row.prediction, row.frames, row.prompt) == (answer.text, (0, 1, 3), answer.question)
            assert row.score == VSIBench().score(row.question, row.prediction)
    assert json.loads(out)["scores"]["micro"]["score"] == pytest.approx(100 * sum(row.score for row in rows) / len(rows))
    assert "<table>" in (folder / "report.html").read_text() and "| micro |" in (folder / "report.md").read_text()

    # half of it lost, it goes on and ends the same
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "answers.jsonl").write_bytes(files["answers.jsonl"][: len(files["answers.jsonl"]) // 2])
    assert allo(*ROOMS, "--data", shards.folder)[0] == out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files

    # a part of the rooms, of the questions; scored by another scorer; compared
    only = json.loads(allo(*ROOMS, "--data", shards.folder, "--only", "room-parts-5[01]", "--baseline", "blind")[0])
    assert only["scenes"] == 2 and only["sees"] == "nothing (blind)" and any("Only a part" in note for note in only["notes"])
    assert json.loads(allo(*ROOMS, "--data", shards.folder, "--limit", 2)[0])["questions"] == 2
    again = json.loads(allo("eval", "score", folder, "--profile", "vlmevalkit", "--json")[0])
    assert again["profile"] == "vlmevalkit" and again["questions"] == len(rows)
    monkeypatch.setattr(allocentric.model, "NANO", tmp_path)  # baselines need no model
    for baseline in ("chance", "frequency"):
        report = json.loads(allo(*ROOMS, "--data", shards.folder, "--baseline", baseline)[0])
        assert report["model"] == baseline
        if baseline == "frequency":
            assert report["scores"]["micro"]["score"] == pytest.approx(report["scores"]["micro"]["frequency"])
    [guessed] = (tmp_path / "runs").glob("rooms-chance-*")
    assert json.loads(allo("eval", "compare", guessed, folder, "--json")[0])["scores"].keys() >= {"macro", "micro"}


def test_rooms_that_cannot_be_asked_about_are_refused(allo, shards, tmp_path):
    for words, complaint in (
        (("--data", shards.folder, "--seed", 51), "found rooms of {'first_seed': 50"),
        (("--data", shards.folder, "--frames", 5), "--frames: found 5, but a room has 4"),
        (("--data", shards.folder, "--subset", "tiny"), "--subset: rooms has none"),
        (("--videos", tmp_path), "--videos: rooms has none"),
        (("--only", "nothing", "--data", shards.folder), "found no questions about scenes 'nothing'"),
        (("--count", 0), "--count: found 0, expected at least 1"),
        (("--model", "nowhere"), "nowhere: found no such file or folder"),
    ):
        _, err, code = allo(*ROOMS, *words)
        assert code == 2 and complaint in err and len(err.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []


def test_broken_runs_and_logs_are_refused_in_one_line(allo, benchmark, tmp_path):
    assert allo("eval", "vsibench", "--data", benchmark, "--baseline", "chance", "--out", "runs")[2] == 0
    [run] = (tmp_path / "runs").iterdir()
    answers, record = run / "answers.jsonl", run / "run.json"
    good = {file: file.read_bytes() for file in (answers, record)}
    for file, content, command, complaint in (
        (answers, b"", "score", "found no answers yet"),
        (answers, b'{"question": 1}\n', "score", "answers.jsonl: found a line that is no answer"),
        (answers, b"\xff\n", "score", "answers.jsonl: 'utf-8' codec can't decode"),
        (record, b"{", "score", "run.json: expected JSON"),
        (record, b"[]", "score", "run.json: found list"),
        (record, b"{}", "export", "found no run.json beside the answers that names task and profile"),
    ):
        file.write_bytes(content)
        _, err, code = allo("eval", command, run, *(["log.jsonl"] if command == "export" else []))
        assert code == 2 and complaint in err and len(err.splitlines()) == 1, err
        file.write_bytes(good[file])
    for content in (b"{", b"[]", b'{"doc": {"id": 0, "question": "{"}, "filtered_resps": "2"}', b"\xff"):
        (tmp_path / "log.jsonl").write_bytes(content)
        _, err, code = allo("eval", "import", "log.jsonl", "vsibench", "--data", benchmark, "--out", "imported")
        assert code == 2 and "log.jsonl" in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "imported").exists() and not (run / "official").exists()


def test_images_are_shown_as_they_are_listed(nano, tmp_path, monkeypatch):
    monkeypatch.setattr(allocentric.model, "NANO", nano)
    for i, size in enumerate([(20, 10), (40, 20), (20, 10)]):
        Image.new("RGB", size, (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    question = Question("t", "s", "?", (), "1", id="1", images=tuple(str(tmp_path / f"{i}.png") for i in (2, 1)))
    seen = Seeing(allocentric.load(device="cpu"), {}).see([question])
    assert seen.frames.shape == (2, 3, 10, 20) and seen.frames[:, 0, 5, 5].tolist() == [120, 60]
    assert torch.equal(as_video([open_views(tmp_path / "0.png")]).frames, open_views(tmp_path / "0.png").frames)


def test_space_aware_sampling_is_that_of_watching(nano, benchmark, monkeypatch):
    monkeypatch.setattr(allocentric.model, "NANO", nano)
    model = allocentric.load(device="cpu")
    video = benchmark / "set" / "01.mp4"
    responder = Seeing(model, {"set/01": video}, frames=3, sampling="space_aware", candidates=6, max_new_tokens=2)
    asked = [Question("t", "set/01", "how many?", (), "1", id="1")]
    [reply] = responder.reply(responder.see(asked), asked, ["how many?"])
    assert reply.frames == model.watch(video, 3, "space_aware", candidates=6).frames
    # measured depth needs no model; of frames that show the same, those farthest apart in time
    posed = {"depth": torch.full((4, 28, 28), 2.0), "camera_to_world": torch.eye(4).repeat(4, 1, 1)}
    posed["intrinsics"] = torch.tensor([[20.0, 0, 14], [0, 20, 14], [0, 0, 1]]).repeat(4, 1, 1)
    seen = Views(frames(4)[..., :28, :28], **posed, times=torch.tensor([0.0, 1, 2, 50]), indices=torch.arange(4))
    [reply] = responder.reply(seen, asked, ["how many?"])
    assert reply.frames == (0, 2, 3)


def test_data_is_made_and_described(allo, tmp_path):
    from allocentric.scenes import save_scene
    from test_data_make import room

    for seed in range(3):
        (tmp_path / "scenes" / str(seed)).mkdir(parents=True)
        save_scene(room(seed), tmp_path / "scenes" / str(seed) / "scene.json")
    words = ("data", "make", "--task", "object_counting", "room_size_estimation", "--scenes", "scenes", "--out", "made")
    found = json.loads(allo(*words, "--json")[0])
    assert set(found["types"]) == {"object_counting", "room_size_estimation"} and found["types"]["room_size_estimation"]["n"] == 3
    assert json.loads(allo("data", "report", "made/questions.jsonl", "--json")[0]) == found
    assert json.loads((tmp_path / "made" / "report.json").read_text()) == found
    _, err, code = allo("data", "make", "--scenes", "nowhere")
    assert code == 2 and "nowhere: found no such file or folder" in err
