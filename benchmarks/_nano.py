"""What the benchmarks share: nano's architecture with random weights, a clip, and eighteen questions about one place."""

from pathlib import Path

import torch
import yaml
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

import allocentric
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMForConditionalGeneration
from allocentric.tasks.base import Question
from allocentric.tasks.vsibench import vsi_prompt
from allocentric.train.tokenizer import fixed_phrases, train_tokenizer
from allocentric.views import Views

RECIPE = Path(__file__).parents[1] / "recipes" / "nano.yaml"
SHIPPED = Path(allocentric.__file__).parent / "nano"
HEIGHT, WIDTH = 112, 140  # pixels; what nano is trained at

DIRECTION = "If I am standing by the {} and facing the {}, is the {} to {}"
MEDIUM = "my left, right, or back?\nAn object is to my back if I would have to turn at least 135 degrees in order to face it."
HARD = (
    "my front-left, front-right, back-left, or back-right?\nThe directions refer to the quadrants of a Cartesian plane (if I am "
    "standing at the origin and facing along the positive y-axis)."
)
ROUTE = (
    "You are a robot beginning at the {} and facing the {}. You want to navigate to the {}. You will perform the following actions "
    "(Note: for each [please fill in], choose either 'turn back,' 'turn left,' or 'turn right.'): {}. You have reached the final "
    "destination."
)
DISTANCE = "Measuring from the closest point of each object, what is the distance between the {} and the {} (in meters)?"
SIZE = "What is the length of the longest dimension (length, width, or height) of the {}, measured in centimeters?"
CLOSEST = "Measuring from the closest point of each object, which of these objects ({}) is the closest to the {}?"
ORDER = "What will be the first-time appearance order of the following categories in the video: {}?"
OBJECTS = (
    "bed", "bookshelf", "chair", "desk", "door", "lamp", "oven", "plant", "sink", "sofa", "stool", "table", "television",
    "wardrobe", "washing machine", "window",
)  # fmt: skip
ASKED = [
    ("How many chair(s) are in this room?",),
    ("How many lamp(s) are in this room?",),
    (DISTANCE.format("sofa", "table"),),
    (DISTANCE.format("bed", "wardrobe"),),
    (DISTANCE.format("washing machine", "door"),),
    (SIZE.format("table"),),
    (SIZE.format("bookshelf"),),
    ("What is the size of this room (in square meters)? \nIf multiple rooms are shown, estimate the size of the combined space.",),
    (CLOSEST.format("chair, stool, lamp, sofa", "television"), "chair", "stool", "lamp", "sofa"),
    (CLOSEST.format("bed, plant, desk, door", "window"), "bed", "plant", "desk", "door"),
    (DIRECTION.format("bed", "door", "lamp", "the left or the right of the door?"), "left", "right"),
    (DIRECTION.format("table", "sofa", "plant", MEDIUM), "left", "right", "back"),
    (
        DIRECTION.format("sink", "oven", "chair", HARD),
        "front-left", "front-right", "back-left", "back-right",
    ),
    (ORDER.format("sofa, plant, lamp, door"), "sofa, plant, lamp, door", "door, lamp, plant, sofa", "lamp, sofa, door, plant"),
    (ORDER.format("bed, chair, desk, window"), "desk, bed, chair, window", "bed, desk, window, chair", "chair, window, bed, desk"),
    (
        ROUTE.format("door", "bed", "desk", "1. Go forward until the bed 2. [please fill in] 3. Go forward until the desk"),
        "Turn Left", "Turn Right", "Turn Back",
    ),
    (
        ROUTE.format(
            "sofa", "television", "sink",
            "1. [please fill in] 2. Go forward until the table 3. [please fill in] 4. Go forward until the sink",
        ),
        "Turn Back, Turn Left", "Turn Right, Turn Left", "Turn Left, Turn Right",
    ),
    ("How many stool(s) are in this room?",),
]  # fmt: skip


def prompts() -> list[str]:
    """Eighteen prompts in VSI-Bench's words, of 23 to 98 words, all eight question types among them."""
    questions = [
        Question("", "", text, tuple(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False)), "")
        for text, *options in ASKED
    ]
    return [vsi_prompt(question) for question in questions]


def nano(recipe: Path = RECIPE) -> tuple[SpatialMLLMForConditionalGeneration, SpatialMLLMProcessor]:
    """A model and processor of nano's sizes. The tokenizer is the shipped one, or one trained on the prompts above."""
    sizes = yaml.safe_load(recipe.read_text())["model"]
    processor = SpatialMLLMProcessor.from_pretrained(SHIPPED) if (SHIPPED / "tokenizer.json").is_file() else _processor(sizes)
    tokenizer = processor.tokenizer
    names = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    ids = {f"{ours}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for ours, name in names.items()}
    text = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = SpatialMLLMForConditionalGeneration(SpatialMLLMConfig(**sizes | ids | {"text_config": sizes["text_config"] | text}))
    return model.eval(), processor


def _processor(sizes: dict) -> SpatialMLLMProcessor:
    phrases = fixed_phrases(prompts(), OBJECTS, least=2)
    tokenizer = train_tokenizer(prompts(), sizes["text_config"]["vocab_size"], phrases)
    pixels = {"shortest_edge": HEIGHT * WIDTH, "longest_edge": HEIGHT * WIDTH}
    patches = {"temporal_patch_size": sizes["vision_config"]["temporal_patch_size"], "size": pixels}
    return SpatialMLLMProcessor(
        Qwen2VLImageProcessor(**patches), tokenizer, Qwen2VLVideoProcessor(**patches), chat_template=tokenizer.chat_template
    )


def clip(frames: int, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Views:
    """Frames of noise: no part of the model looks for anything else."""
    generator = torch.Generator().manual_seed(seed)
    return Views(torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator))
