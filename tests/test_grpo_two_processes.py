"""Two processes learn by reward as one does at the same global batch."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from test_two_processes import launch

SCRIPT = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from allocentric.processes import end_processes
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
del run
end_processes()
"""


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2])
def test_two_processes_learn_as_one(tmp_path, updates):
    (tmp_path / "learn.py").write_text(SCRIPT)
    for processes in (2, 1):  # at the same global batch
        launch(tmp_path / "learn.py", tmp_path, 2 // processes, updates, processes=processes)
    found, expected = (load_file(tmp_path / f"{count}-{updates}.safetensors") for count in (2, 1))
    from test_spatial_mllm import tiny_model

    start = dict(tiny_model().named_parameters())
    assert torch.allclose(found.pop("numbers"), expected.pop("numbers"), atol=1e-5)
    moved = {name for name, value in expected.items() if not torch.equal(value, start[name])}
    assert {name.split(".")[1] for name in moved} == {"connector", "language_model"}
    assert max((expected[name] - start[name]).abs().max().item() for name in moved) > 1e-3
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


SHARDED = """
import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from allocentric.train.grpo import complete, pack_completions, placeholders, score
from allocentric.train.recipe import GRPOSettings
from allocentric.train.sft import collate
from test_grpo import PROMPTS, asked
from test_spatial_mllm import tiny_model, tiny_processor

UNITS = sys.argv[1].split(",")
dist.init_process_group("gloo")
rank, processor, plain, model = dist.get_rank(), tiny_processor(), tiny_model(), tiny_model()
mesh = init_device_mesh("cpu", (2,))
units = [module for module in model.modules() if type(module).__name__ in UNITS]
for unit in units:
    fully_shard(unit, mesh=mesh)
fully_shard(model, mesh=mesh)
local = sum(parameter.to_local().numel() for parameter in model.parameters())
assert len(units) >= 4 and local < 0.6 * plain.num_parameters(), (len(units), local, plain.num_parameters())

# a scene each, the first of which ends soon: its process goes on for the other's sake
one = asked(processor, seed=rank, prompts=PROMPTS[: 1 + rank])
settings = GRPOSettings(group=4, max_new_tokens=6, stop=() if rank else (*map(chr, range(128)), "\\ufffd"))
noise = np.random.default_rng(rank).random((4 * len(one.prompts), settings.max_new_tokens))


def alive(here):
    anyone = torch.tensor(int(here))
    dist.all_reduce(anyone, op=dist.ReduceOp.MAX)
    return bool(anyone)


written = complete(model, processor, one, settings, noise, alive)
expected = complete(plain, processor, one, settings, noise)
assert [c.ids for c in written] == [c.ids for c in expected]
longest = max(len(c.ids) for c in written)
assert longest < 6 if rank == 0 else longest == 6

batch = collate([pack_completions(processor, one.seen, one.prompts, [c.ids for c in expected])], 0)
banned = placeholders(plain)
for network in (model, plain):
    log_probs = score(network, network.model, batch, 1.0, banned)
    (log_probs * torch.linspace(-1, 1, len(log_probs))).mean().backward()
    if network is model:
        found = log_probs.detach()
assert (found - log_probs.detach()).abs().max() < 1e-5
for (name, sharded), whole in zip(model.named_parameters(), plain.parameters(), strict=True):
    if whole.grad is None:
        assert sharded.grad is None, name
        continue
    dist.all_reduce(whole.grad)  # shards hold the mean over processes
    assert torch.allclose(sharded.grad.full_tensor(), whole.grad / 2, atol=1e-6), name
os._exit(0)  # a mesh keeps its group to the end, whose threads may then abort (see end_processes)
"""


@pytest.mark.slow
def test_sharded_weights_sample_score_and_learn_as_whole_ones(tmp_path):
    """With the units of recipes/accelerate/fsdp2.yaml, sharded by torch itself: accelerate shards on accelerators only."""
    fsdp = yaml.safe_load((Path(__file__).parents[1] / "recipes/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
    (tmp_path / "sharded.py").write_text(SHARDED)
    launch(tmp_path / "sharded.py", fsdp["fsdp_transformer_layer_cls_to_wrap"], processes=2)
