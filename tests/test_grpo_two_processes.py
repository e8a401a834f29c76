"""Two processes learn by reward as one does at the same global batch."""

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

from allocentric.train.recipe import GRPOSettings
from test_grpo import PROMPTS, asked, low, trainer
from test_spatial_mllm import tiny_model, tiny_processor

out, batch, updates = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
processor, model = tiny_processor(), tiny_model()
data = [asked(processor, seed=i, prompts=PROMPTS[: 1 + i % 2]) for i in range(8)]
evaluation = [asked(processor, seed=20 + i) for i in range(3)]
settings = GRPOSettings(group=4, max_new_tokens=5, beta=0.1, updates=updates, stop=("5",))
optimizer = torch.optim.SGD(model.parameters(), 0.5)  # Adam hides the gradient's scale
run = trainer(
    model, processor, data, out / f"run-{batch}", settings, {"model.connector": 1e-2, "model.language_model": 1e-2},
    per_device_train_batch_size=batch, per_device_eval_batch_size=1, max_steps=4, optimizers=(optimizer, None),
    ddp_find_unused_parameters=False, eval_dataset=evaluation,
)
run.train()
metrics = run.evaluate()
if run.is_world_process_zero():
    name = f"{run.args.world_size}-{updates}"
    rewards = [entry["reward"] for entry in run.state.log_history if "reward" in entry]
    numbers = torch.tensor([*rewards, metrics["eval_reward"], metrics["eval_length"]])
    save_file({"numbers": numbers, **{n: v.detach().clone() for n, v in model.named_parameters()}}, out / f"{name}.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2])
def test_two_processes_learn_as_one(tmp_path, updates):
    (tmp_path / "learn.py").write_text(SCRIPT)
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "learn.py")]
    one = [sys.executable, str(tmp_path / "learn.py")]
    for command in ([*two, str(tmp_path), "1", str(updates)], [*one, str(tmp_path), "2", str(updates)]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    found, expected = (load_file(tmp_path / f"{count}-{updates}.safetensors") for count in (2, 1))
    from test_spatial_mllm import tiny_model

    start = dict(tiny_model().named_parameters())
    assert torch.allclose(found.pop("numbers"), expected.pop("numbers"), atol=1e-5)
    moved = {name for name, value in expected.items() if not torch.equal(value, start[name])}
    assert {name.split(".")[1] for name in moved} == {"connector", "language_model"}
    assert max((expected[name] - start[name]).abs().max().item() for name in moved) > 1e-3
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name
