"""The processor of the Qwen2.5-VL based systems: frames and a question in, model inputs out."""

import re
from typing import no_type_check

from jaxtyping import UInt8
from torch import Tensor
from transformers import BatchFeature, Qwen2_5_VLProcessor

SYSTEM = "You are a helpful assistant."

# Bounds on the pixels of one resized frame, as (smallest, largest).
# "training": what v1.1 was trained at, for images and videos: every 4:3 frame becomes 476 x 644.
# "qwen": Qwen's own bounds (qwen-vl-utils), with which the published evaluations ran; 1080p becomes 560 x 1008.
PIXEL_CLAMPS = {
    "training": {"image": (374 * 28**2, 414 * 28**2), "video": (374 * 28**2, 414 * 28**2)},
    "qwen": {"image": (4 * 28**2, 16384 * 28**2), "video": (128 * 28**2, 768 * 28**2)},
}


class SpatialMLLMProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor with the switches in which the published paths differ from each other.

    Frames go in as uint8 tensors, (T, 3, H, W) per video and (3, H, W) per image; `allocentric.readers` opens files.

    pixel_clamp           "training" or "qwen" (`PIXEL_CLAMPS`); None: as the given image and video processors.
    newline_after_vision  write a newline between the last vision tag and the text. Training annotations of v1.1
                          reportedly have it, the published inference code does not (default).
    video_fps             frames per second of a video given without metadata; sets `second_per_grid_ts`. The published
                          inference always assumed 2.0, whatever the video.
    """

    text_kwargs = {"padding": True, "padding_side": "left"}  # noqa: RUF012  (left: batches are for generation)

    @no_type_check  # from_pretrained reads the argument names off this very function, not off a checking wrapper
    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        chat_template=None,
        pixel_clamp: str | None = None,
        newline_after_vision: bool = False,
        video_fps: float = 2.0,
        **kwargs,
    ):
        if pixel_clamp not in (None, *PIXEL_CLAMPS):
            raise ValueError(f"pixel_clamp: found {pixel_clamp!r}, expected one of {list(PIXEL_CLAMPS)} or None")
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template, **kwargs)
        self.pixel_clamp, self.newline_after_vision, self.video_fps = pixel_clamp, newline_after_vision, video_fps
        if pixel_clamp is not None:
            for processor, kind in ((self.image_processor, "image"), (self.video_processor, "video")):
                smallest, largest = PIXEL_CLAMPS[pixel_clamp][kind]
                processor.size = {"shortest_edge": smallest, "longest_edge": largest}
        # Qwen's published code shares one pixel budget among the frames of a long video. Said explicitly because the
        # default of transformers changes between versions.
        self.video_processor.cap_pixels_per_frame = pixel_clamp == "qwen"

    def __call__(self, images=None, text=None, videos=None, **kwargs):
        if text is not None:  # chats made by `apply_chat_template` come without the newline
            text = [self.after_vision(t) for t in ([text] if isinstance(text, str) else text)]
        kwargs.setdefault("return_tensors", "pt")
        return super().__call__(images=images, text=text, videos=videos, **kwargs)

    def _process_videos(self, videos, **kwargs):
        data, replacements = super()._process_videos(videos, **kwargs)
        if kwargs.get("video_metadata") is None:  # transformers would assume 24 frames per second
            seconds = self.video_processor.temporal_patch_size / self.video_fps
            data["second_per_grid_ts"] = [seconds] * len(data["video_grid_thw"])
        return data, replacements

    def look(self, frames: UInt8[Tensor, "t 3 h w"]) -> BatchFeature:
        """Model inputs of what all questions about one place share (`prefix`): its frames as one video."""
        return self(text=[self.prefix(videos=1)], videos=[frames])

    def prefix(self, images: int = 0, videos: int = 0) -> str:
        """The chat up to and including what is seen: the part that every question about one scene shares."""
        seen = ["<|vision_start|><|image_pad|><|vision_end|>"] * images
        seen += ["<|vision_start|><|video_pad|><|vision_end|>"] * videos
        return self.after_vision(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{''.join(seen)}")

    def suffix(self, question: str) -> str:
        """The chat from the question to where the answer starts."""
        return f"{question}<|im_end|>\n<|im_start|>assistant\n"

    def prompt(self, question: str, images: int = 0, videos: int = 0) -> str:
        """The whole chat for one question, ready for `processor(text=..., images=..., videos=...)`."""
        return self.prefix(images, videos) + self.suffix(question)

    def after_vision(self, text: str) -> str:
        """The chat with a newline behind the last of its vision tags, if that is switched on and not done yet."""
        if not self.newline_after_vision:
            return text
        return re.sub(r"<\|vision_end\|>(?!\n|<\|vision_start\|>)", "<|vision_end|>\n", text)
