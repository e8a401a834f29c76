"""Our models as a model of lmms-eval (0.7.3), in an environment of its own: docs/lmms_eval.md says how.

    lmms-eval eval --model allocentric --model_args pretrained=weights --tasks vsibench ...

lmms-eval finds it by the entry point `lmms_eval.models`. Requests about one video are put together, so that every video is encoded
once. Nothing here needs decord: PyAV decodes.
"""

import os
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

import allocentric
from allocentric.evaluate.responders import as_video
from allocentric.models.scene import Scene
from allocentric.readers import open_views
from allocentric.views import Views

manifests = ModelManifest("allocentric", simple_class_path="allocentric.evaluate.lmms_eval.AllocentricModel")


class AllocentricModel(lmms):
    """A system of this library.

    pretrained        folder or hub id of weights; empty for nano.
    max_num_frames    how many frames of a video the model sees.
    sampling          "uniform" or "space_aware".
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        processor: str = "",
        geometry: str = "",
        max_num_frames: int = 16,
        sampling: str = "uniform",
        device: str | None = None,
        batch_size: int | str = 1,  # questions about one video are asked together, whatever this says
        max_batch_size: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise ValueError(f"model_args: found {sorted(unknown)}, which allocentric has not")
        self.frames, self.sampling = int(max_num_frames), sampling
        self.model = allocentric.load(pretrained or None, processor or None, geometry or None, device=device)
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, questions about one video asked together. lmms-eval's default `until` does not cut answers off."""
        groups: dict[Any, list[int]] = {}
        shown: dict[Any, list] = {}
        for i, request in enumerate(requests):
            _, _, doc_to_visual, doc_id, task, split = request.args
            visuals = doc_to_visual(self.task_dict[task][split][doc_id])
            key = tuple(v if isinstance(v, str) else id(v) for v in visuals)
            groups.setdefault(key, []).append(i)
            shown[key] = visuals
        answers = [""] * len(requests)
        for key, indices in groups.items():
            scene = self._watch(shown[key])
            longest = max(requests[i].args[1].get("max_new_tokens", 128) for i in indices)
            texts = [requests[i].args[0].replace("<image>", "").strip() for i in indices]
            for i, answer in zip(indices, scene.ask(texts, longest), strict=True):
                answers[i] = answer.text
        return answers

    def _watch(self, visuals: list) -> Scene:
        if len(visuals) == 1 and isinstance(visuals[0], str):
            return self.model.watch(visuals[0], self.frames, self.sampling)
        return self.model.watch(as_video([open_views(v) if isinstance(v, str) else _image(v) for v in visuals]))

    def loglikelihood(self, requests: list[Instance]):
        raise NotImplementedError("allocentric answers questions; choose tasks with output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]):
        raise NotImplementedError("allocentric answers one question at a time")


def _image(image: Any) -> Views:
    """A PIL image as one view."""
    return Views(frames=torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].contiguous())
