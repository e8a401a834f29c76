"""Muon for matrices of blocks and AdamW for the rest behave as one optimizer."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from allocentric.train.optimizer import MuonAdamW, is_block_matrix


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(h).tanh()
        return self.head(h).square().mean()


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def optimizer_of(model: Small, ratio: float = 2.0) -> MuonAdamW:
    matrices = [p for name, p in model.named_parameters() if is_block_matrix(name, p)]
    return MuonAdamW([{"params": list(model.parameters()), "lr": 0.01, "weight_decay": 0.1}], matrices, ratio)


def train(model: Small, optimizer, steps: int, schedule=None) -> None:
    for i in range(steps):
        model(torch.tensor([i % 5, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()


def test_which_parameters_are_matrices_of_blocks():
    chosen = [name for name, p in small().named_parameters() if is_block_matrix(name, p)]
    assert chosen == ["blocks.0.weight", "blocks.1.weight"]
    weight = nn.Parameter(torch.zeros(2, 2))
    assert is_block_matrix("aggregator.frame_blocks.3.attn.qkv.weight", weight)
    assert is_block_matrix("model.language_model.layers.0.mlp.up_proj.weight", weight)
    assert not is_block_matrix("visual.merger.mlp.0.weight", weight)
    assert not is_block_matrix("layers.0.norm.weight", nn.Parameter(torch.zeros(2)))


def test_steps_are_those_of_the_two_optimizers():
    ours, theirs = small(), small()
    train(ours, optimizer_of(ours), 4)
    named = dict(theirs.named_parameters())
    matrices = [named.pop(name) for name in ("blocks.0.weight", "blocks.1.weight")]
    muon = Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW(named.values(), lr=0.01, weight_decay=0.1)
    for i in range(4):
        theirs(torch.tensor([i % 5, 1])).backward()
        for part in (muon, adamw):
            part.step()
            part.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_schedule_reaches_both_parts():
    model = small()
    optimizer = optimizer_of(model)
    schedule = LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    train(model, optimizer, 1, schedule)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 2, schedule)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.0, 0.0]


def test_saved_and_loaded_it_goes_on_as_if_never_stopped():
    whole, halves = small(), small()
    train(whole, optimizer_of(whole), 6)
    first = optimizer_of(halves)
    train(halves, first, 5)
    second = optimizer_of(halves)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(a is b for a, b in zip(second.param_groups, (g for p in second.parts for g in p.param_groups), strict=True))
    halves(torch.tensor([0, 1])).backward()
    second.step()
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_for_one_of_the_two_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="0 groups for Muon and 1 for AdamW"):
        MuonAdamW([{"params": list(model.parameters()), "lr": 0.01, "weight_decay": 0.0}], [], 2.0)
