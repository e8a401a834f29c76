"""Conversations about videos and images: read as written, packed by scene, and faults named by file and line."""

import json
import os

import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from allocentric.models.spatial_mllm import SpatialMLLMModel
from allocentric.train.finetune import write_features
from allocentric.train.jsonl import Conversations, parse_conversation, read_conversations
from allocentric.train.recipe import Annotations
from allocentric.train.sft import IGNORE, Turn, collate
from allocentric.train.video_features import VideoFeatures
from test_model import write_video
from test_sft import trainer
from test_spatial_mllm import frames, tiny_model, tiny_processor


def item(kind: str, paths, *said: str) -> dict:
    roles = ("human", "gpt") * len(said)
    return {kind: paths, "conversations": [{"from": role, "value": text} for role, text in zip(roles, said, strict=False)]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("visuals")
    for name in "ab":
        write_video(folder / f"{name}.mp4", frames(9, seed=ord(name)))
    for i, frame in enumerate(frames(2, seed=5)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def annotations(root):
    items = [
        item("video", "a.mp4", "<video>\nhow many?", "4"),
        item("video", "b.mp4", "<video>\nwhich?\nA. it\nB. that", "B"),
        item("video", "a.mp4", "<video>\nhow far?", "1.5"),
        item("image", ["0.png", "1.png"], "<image><image>\nsame?", "yes"),
        item("video", "a.mp4", "<video>\nwhere?", "left"),
    ]
    file = root / "mix.jsonl"
    file.write_text("".join(json.dumps(i) + "\n" for i in items))
    return file


def data(root, *files, **changes) -> Annotations:
    return Annotations(**{"files": tuple(map(str, files)), "root": str(root), "frames": 4, **changes})


def shown(processor, example) -> str:
    return processor.tokenizer.decode(example["input_ids"]).replace("<|video_pad|>", "V").replace("<|image_pad|>", "I")


def test_questions_about_one_video_share_a_sequence(root, annotations):
    processor = tiny_processor()
    packs = Conversations(data(root, annotations, questions=2), processor)
    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    video = head + "V" * 12 + "<|vision_end|>"
    images = head + "I" * 6 + "<|vision_end|><|vision_start|>" + "I" * 6 + "<|vision_end|>"
    turn = "{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>".format
    assert [shown(processor, packs[i]) for i in range(len(packs))] == [
        video + turn("how many?", "4") + turn("how far?", "1.5"),
        video + turn("where?", "left"),
        video + turn("which?\nA. it\nB. that", "B"),
        images + turn("same?", "yes"),
    ]
    first = packs[0]
    assert processor.tokenizer.decode(first["input_ids"][first["labels"] != IGNORE]) == "4<|im_end|>1.5<|im_end|>"
    assert len(Conversations(data(root, annotations), processor)) == 5  # one each, as published


def test_a_sample_is_what_the_processor_makes_of_the_frames(root, annotations):
    processor = tiny_processor(newline_after_vision=True)
    packs = Conversations(data(root, annotations), processor)
    seen = frames(9, seed=ord("a"))[[0, 2, 5, 8]]
    expected = processor(text=[processor.prompt("how many?", videos=1) + "4<|im_end|>"], videos=[seen])
    found = packs[0]
    assert torch.equal(found["input_ids"], expected["input_ids"][0])
    for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(expected[name])), name
    pictures = list(frames(2, seed=5))
    expected = processor(text=[processor.prompt("same?", images=2) + "yes<|im_end|>"], images=pictures)
    found = packs[4]
    assert torch.equal(found["input_ids"], expected["input_ids"][0])
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_the_loss_is_that_of_the_plain_model_on_the_plain_prompt(root, annotations, tmp_path):
    """Videos, images and packs in one batch against one question at a time through the model's own loss."""
    processor, model = tiny_processor(), tiny_model()
    packs = Conversations(data(root, annotations, questions=3), processor)
    pad = processor.tokenizer.pad_token_id or 0
    run = trainer(model, tmp_path)
    together = run.compute_loss(model, collate([packs[i] for i in range(len(packs))], pad)).item()
    total = count = 0
    for single in Conversations(data(root, annotations), processor):
        labels = single["labels"][None]
        inputs = {k: v for k, v in single.items() if k not in ("labels", "segments", "input_ids")}
        with torch.no_grad():
            loss = model(input_ids=single["input_ids"][None], labels=labels, **inputs).loss
        tokens = int((labels != IGNORE).sum())
        total, count = total + loss.item() * tokens, count + tokens
    assert together == pytest.approx(total / count, rel=1e-5)


def with_features(root, annotations, folder, model) -> Conversations:
    processor = tiny_processor()
    features = VideoFeatures(folder / "features", model.model, processor, 4, torch.float32)
    packs = Conversations(data(root, annotations, questions=3), processor, features)
    write_features(packs, model.model, TrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True))
    return packs


def test_kept_features_teach_what_the_videos_do(root, annotations, tmp_path):
    processor, model = tiny_processor(), tiny_model()
    run = trainer(model, tmp_path)
    plain = Conversations(data(root, annotations, questions=3), processor)
    kept = with_features(root, annotations, tmp_path, model)
    assert ["pixel_values_videos" in pack for pack in plain] == [True, True, False]
    assert ["video_features_3d" in pack for pack in kept] == [True, True, False]  # images are seen as before
    assert not any("pixel_values_videos" in pack for pack in kept)
    found, expected = (run.compute_loss(model, collate([packs[i] for i in range(3)], 0)).item() for packs in (kept, plain))
    assert found == pytest.approx(expected, rel=1e-6)


def test_features_are_kept_by_video_frames_preprocessing_and_encoders(root, annotations, tmp_path, monkeypatch):
    model = tiny_model()
    packs = with_features(root, annotations, tmp_path, model)
    files = sorted((tmp_path / "features").iterdir())
    monkeypatch.setattr(SpatialMLLMModel, "encode_2d", None)
    with torch.no_grad():
        model.model.visual.merger.mlp[0].bias.add_(1)  # trained, and not among what makes features
    with_features(root, annotations, tmp_path, model)  # encodes nothing
    assert sorted((tmp_path / "features").iterdir()) == files and len(files) == 2

    def path(network=model, processor=None, frames=4, dtype=torch.float32):
        return VideoFeatures(tmp_path, network.model, processor or tiny_processor(), frames, dtype).path([root / "a.mp4"]).name

    other = tiny_model()
    with torch.no_grad():
        other.model.spatial_encoder.camera_token.add_(1e-3)
    clamped = tiny_processor(pixel_clamp="training")
    names = {path(), path(other), path(processor=clamped), path(frames=3), path(dtype=torch.bfloat16)}
    before = (root / "a.mp4").stat()
    os.utime(root / "a.mp4", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert len(names | {path()}) == 6 and path() not in {file.name for file in files}
    with pytest.raises(ValueError, match=r"mix\.jsonl:1: .*No such file"):
        packs[0]


def test_processes_that_make_features_share_the_work_and_do_not_clash(root, annotations, tmp_path, monkeypatch):
    """While the first encodes its first video, the second makes everything."""
    encode, sizes = SpatialMLLMModel.encode_2d, []

    def encode_2d(self, pixels, grid):
        sizes.append(pixels.sum().item())
        if len(sizes) == 1:
            monkeypatch.setattr(TrainingArguments, "process_index", 1)
            with_features(root, annotations, tmp_path, model)
            monkeypatch.setattr(TrainingArguments, "process_index", 0)
        return encode(self, pixels, grid)

    model = tiny_model()
    monkeypatch.setattr(SpatialMLLMModel, "encode_2d", encode_2d)
    monkeypatch.setattr(TrainingArguments, "process_index", 0)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    packs = with_features(root, annotations, tmp_path, model)
    first, second, again = sizes
    assert first == again != second, "the second process begins elsewhere; the first passes over what it finds"
    assert {file.suffix for file in (tmp_path / "features").iterdir()} == {".safetensors"}
    assert [len(packs[i]["video_features_2d"]) for i in range(2)] == [12, 12]


def test_later_questions_come_with_what_was_said_before():
    found = parse_conversation(item("video", "a.mp4", "<video>\none?", "1", "two?", "2"), "f:1")
    history = "one?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\ntwo?"
    assert found.turns == (Turn("one?", "1"), Turn(history, "2"))
    assert (found.kind, found.paths) == ("video", ("a.mp4",))
    said = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "it"}]
    other = {"image": "a.png", "conversations": said}
    assert parse_conversation(other, "f:2").turns == (Turn("what?", "it"),)


def test_json_and_jsonl_say_the_same(annotations, tmp_path):
    lines = [json.loads(line) for line in annotations.read_text().splitlines()]
    (tmp_path / "mix.json").write_text(json.dumps(lines, indent=1))
    a, b = read_conversations(str(annotations)), read_conversations(str(tmp_path / "mix.json"))
    assert [x[:3] for x in a] == [x[:3] for x in b]
    assert (a[1].place, b[1].place) == (f"{annotations}:2", f"{tmp_path / 'mix.json'}[1]")


def test_a_share_of_a_file_is_drawn_once_and_for_all(tmp_path):
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps(item("video", f"{i}.mp4", "<video>?", "1")) + "\n" for i in range(40)))
    quarter = [c.paths[0] for c in read_conversations(f"{file}%25")]
    assert len(quarter) == 10 and quarter == [c.paths[0] for c in read_conversations(f"{file}%25")]
    assert quarter == sorted(quarter, key=lambda name: int(name[:-4]))
    assert quarter != [c.paths[0] for c in read_conversations(f"{file}%25", seed=1)]
    assert len(read_conversations(f"{file}%100")) == 40


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("{nonsense", "expected JSON"),
        (json.dumps({"conversations": []}), "expected `conversations` and either `video` or `image`"),
        (json.dumps(item("video", "a.mp4", "<video>?")), "found 1 messages"),
        (json.dumps(item("video", "a.mp4", "?", "1")), "expected 1 tags <video>"),
        (json.dumps(item("image", ["0.png", "1.png"], "<image>?", "1")), "expected 2 tags <image>"),
        (json.dumps(item("video", "a.mp4", "<video>look <video>", "1")), "no others"),
        (json.dumps({"video": "a", "conversations": [{"from": "gpt", "value": "1"}]}), "of 'gpt', expected text of the user"),
        (json.dumps({"video": "a", "conversations": [{"from": ["gpt"], "value": "1"}]}), "of ['gpt'], expected text of the user"),
        (json.dumps({"video": "a", "conversations": ["hi"]}), "conversations: found ['hi'], expected a list of messages"),
        (json.dumps({"video": "a", "conversations": 5}), "conversations: found 5, expected a list of messages"),
        (json.dumps({"video": "a", "conversations": None}), "conversations: found None, expected a list of messages"),
        (json.dumps(item("video", 5, "<video>?", "1")), "video: found 5, expected a path or a list of paths"),
        (json.dumps(item("video", None, "<video>?", "1")), "video: found None, expected a path"),
        (json.dumps(item("image", [5], "<image>?", "1")), "image: found [5], expected a path"),
        (json.dumps(item("image", [], "?", "1")), "image: found [], expected a path"),
    ],
)
def test_a_fault_is_named_by_its_line(tmp_path, bad, complaint):
    file = tmp_path / "mix.jsonl"
    file.write_text(json.dumps(item("video", "a.mp4", "<video>?", "1")) + "\n\n" + bad + "\n")
    with pytest.raises(ValueError, match=r"mix\.jsonl:3: ") as caught:
        read_conversations(str(file))
    assert complaint in str(caught.value)


def test_a_json_file_is_a_list(tmp_path):
    (tmp_path / "mix.json").write_text("5")
    with pytest.raises(ValueError, match=r"mix\.json: found int, expected a JSON list of conversations"):
        read_conversations(str(tmp_path / "mix.json"))


def test_a_video_that_cannot_be_read_stops_with_its_line(root, tmp_path):
    file = tmp_path / "mix.jsonl"
    file.write_text("".join(json.dumps(item("video", name, "<video>?", "1")) + "\n" for name in ("a.mp4", "gone.mp4", "0.png/x")))
    packs = Conversations(data(root, file), tiny_processor())
    assert packs[0]["segments"].max() == 1
    with pytest.raises(ValueError, match=r"mix\.jsonl:2: .*gone\.mp4: no such file"):
        packs[1]
    with pytest.raises(ValueError, match="found no such file, expected conversations"):
        Conversations(data(root, tmp_path / "nowhere.jsonl"), tiny_processor())
    file.write_text("")
    with pytest.raises(ValueError, match="found no conversations"):
        Conversations(data(root, file), tiny_processor())
