"""Muon for matrices of transformer blocks, AdamW for the rest, as one optimizer that a Trainer can step, schedule and save."""

import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import Trainer

BLOCK = re.compile(r"(^|\.)\w*(blocks|layers)\.\d+\.")


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon is meant for it: a matrix inside a numbered block; not embeddings, heads, gains or biases."""
    return parameter.ndim == 2 and BLOCK.search(name) is not None


class MuonAdamW(Optimizer):
    """Two optimizers behind one face.

    Muon (https://kellerjordan.github.io/posts/muon) makes all directions of a matrix's step equally long. `groups` are AdamW's,
    each with its `lr` and `weight_decay`; parameters in `matrices` leave them for Muon at `ratio` times that rate, scaled so that
    steps are about as long as AdamW's (arXiv 2502.16982, section 2.2).
    """

    def __init__(
        self,
        groups: Iterable[dict],
        matrices: Iterable[nn.Parameter],
        ratio: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        wanted = {id(parameter) for parameter in matrices}
        mine: list[dict] = []
        rest: list[dict] = []
        for group in groups:
            for into, inside, times in ((mine, True, ratio), (rest, False, 1.0)):
                if params := [p for p in group["params"] if (id(p) in wanted) == inside]:
                    into.append({**group, "params": params, "lr": times * group["lr"]})
        if not mine or not rest:
            raise ValueError(f"optimizer: found {len(mine)} groups for Muon and {len(rest)} for AdamW, expected some for each")
        muon, adamw = Muon(mine, adjust_lr_fn="match_rms_adamw"), AdamW(rest, betas=betas, eps=eps, fused=True)
        self.parts: Sequence[Optimizer] = (muon, adamw)
        # the very groups of the parts, so that a schedule that sets their rates reaches the parts
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def groups_by_rate(
    parameters: Iterable[tuple[str, nn.Parameter]], rate_of: Callable[[str], float | None], weight_decay: float
) -> list[dict]:
    """Groups of what trains by learning rate; only matrices are decayed, and not embeddings."""
    groups: dict[tuple[float | None, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim >= 2 and "embed" not in name else 0.0
            groups.setdefault((rate_of(name), decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


class GroupedTrainer(Trainer):
    """Hugging Face's Trainer with this optimizer; `muon` is its ratio, 0 for AdamW alone. Only matrices are decayed."""

    def __init__(self, *args, muon: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.muon = muon

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        trained = [p for p in model.parameters() if p.requires_grad]
        rate, decay = self.args.learning_rate, self.args.weight_decay
        return [
            {"params": [p for p in trained if p.ndim >= 2], "lr": rate, "weight_decay": decay},
            {"params": [p for p in trained if p.ndim < 2], "lr": rate, "weight_decay": 0.0},
        ]

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        if self.optimizer is None:
            network = self.accelerator.unwrap_model(self.model if model is None else model)
            groups = self.parameter_groups(network)
            betas, eps = (self.args.adam_beta1, self.args.adam_beta2), self.args.adam_epsilon
            if self.muon:
                matrices = [p for name, p in network.named_parameters() if is_block_matrix(name, p)]
                self.optimizer = MuonAdamW(groups, matrices, self.muon, betas, eps)
            else:
                self.optimizer = AdamW(groups, betas=betas, eps=eps)
        return self.optimizer
