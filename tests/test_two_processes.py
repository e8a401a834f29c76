"""Two processes train as one does at the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

from allocentric.models.patches import patchify
from allocentric.processes import end_processes
from allocentric.train.sft import SFTTrainer, Turn, collate, pack
from test_spatial_mllm import tiny_model, tiny_processor

out, batch = Path(sys.argv[1]), int(sys.argv[2])
processor, model = tiny_processor(), tiny_model()
data = []
for i in range(8):
    frames = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(i))
    pixels, grid = patchify(frames, model.config)
    turns = [Turn("how many?", "4" * (1 + 3 * (i % 2)))] * (1 + i % 3)  # answers of many lengths
    data.append(pack(processor, [4], turns) | {"pixel_values_videos": pixels, "video_grid_thw": grid[None]})
arguments = TrainingArguments(
    output_dir=str(out), max_steps=3, per_device_train_batch_size=batch, report_to=[], use_cpu=True, remove_unused_columns=False,
    save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", ddp_find_unused_parameters=False,
)
rates = {"model.connector": 0.05, "model.language_model": 0.02}
collator = lambda examples: collate(examples, 0)
trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, data_collator=collator, learning_rates=rates)
trainer.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)  # Adam hides the gradient's scale
trainer.train()
if trainer.is_world_process_zero():
    save_file({name: value.detach() for name, value in model.named_parameters()}, out / f"{trainer.args.world_size}.safetensors")
del trainer
end_processes()
"""

ENDS = """
from pathlib import Path

import torch
import torch._dynamo  # once there is a group its import would keep it; transformers imports it before
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from allocentric.processes import end_processes


def names() -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def train() -> None:
    distributed.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    model.itself = [model]  # as a Trainer and its parts do
    model(torch.ones(1, 2)).sum().backward()


train()
distributed.barrier()
assert [name for name in names() if "gloo" in name]
end_processes()
assert not [name for name in names() if "gloo" in name], names()
end_processes()
"""


def launch(*command: object, processes: int) -> None:
    """Run a script, or a module ("-m", name, ...), with its words in that many processes, each on one thread of a CPU."""
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    done = subprocess.run([sys.executable, *many, *map(str, command)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="names of threads are Linux's")
def test_threads_of_a_group_end_with_the_run(tmp_path):
    """Or else one may want Python's lock while Python shuts down, and abort."""
    (tmp_path / "ends.py").write_text(ENDS)
    launch("-m", "torch.distributed.run", "--standalone", tmp_path / "ends.py", processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["spatial_mllm_v1_1", "cold_start", "grpo"])
def test_every_stage_runs_in_two_processes(recipe, request, tmp_path):
    """As a user starts it; what the stage does is compared with one process above and in test_grpo_two_processes."""
    file = request.config.rootpath / "recipes" / f"{recipe}.yaml"
    launch("-m", "allocentric.cli", "train", file, "--out", tmp_path, "--smoke", processes=2)
    assert (tmp_path / "model" / "config.json").is_file() and load_file(tmp_path / "model" / "model.safetensors")


def test_two_processes_train_as_one(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    for processes in (2, 1):  # at the same global batch
        launch(tmp_path / "train.py", tmp_path, 4 // processes, processes=processes)
    found, expected = load_file(tmp_path / "2.safetensors"), load_file(tmp_path / "1.safetensors")
    from test_spatial_mllm import tiny_model

    start = dict(tiny_model().named_parameters())
    moved = {name for name, value in expected.items() if not torch.equal(value, start[name])}
    assert {name.split(".")[1] for name in moved} == {"connector", "language_model"}
    assert max(float((expected[name] - start[name]).abs().max()) for name in moved) > 1e-3
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name
