"""Fusion by cross-attention (Spa3-VLM): visual tokens ask a scene latent, and what they hear is gated and added to them.

    x' = x + A2 GELU(A1 a) * sigmoid(G a),   a = LayerNorm(attention(x, z', z')),   z' = W2 GELU(W1 z)

A2 starts at zero: the language model first sees exactly the tokens it knows.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allocentric.encoders.layers import ZeroLinear, attend


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a latent, with a layer norm per head on queries and keys and no positions."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"cross-attention: found {num_heads} heads on width {dim}, expected a divisor of the width")
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.q_norm, self.k_norm = nn.LayerNorm(dim // num_heads), nn.LayerNorm(dim // num_heads)

    def forward(self, x: Float[Tensor, "b n d"], latent: Float[Tensor, "b q d"]) -> Float[Tensor, "b n d"]:
        split = lambda y: y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.q_proj(x)), split(self.k_proj(latent)), split(self.v_proj(latent))
        out = attend(self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttentionConnector(nn.Module):
    """What the latent adds to each visual token; zero until it has been trained (Spa3-VLM, section 3.3).

    latent_size   width of the latent.
    size          width of the visual tokens, the language model's.
    hidden_size   bottleneck of the adaptor; a quarter of `size` as published.
    """

    def __init__(self, latent_size: int, size: int, num_heads: int, hidden_size: int):
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(latent_size, size), nn.GELU(), nn.Linear(size, size))
        self.attention = CrossAttention(size, num_heads)
        self.norm = nn.LayerNorm(size)
        self.adaptor = nn.Sequential(nn.Linear(size, hidden_size), nn.GELU(), ZeroLinear(hidden_size, size))
        self.gate = nn.Linear(size, size)

    def adds_nothing(self) -> bool:
        return not (self.adaptor[-1].weight.any() or self.adaptor[-1].bias.any())

    def forward(self, x: Float[Tensor, "b n size"], latent: Float[Tensor, "b q latent"]) -> Float[Tensor, "b n size"]:
        """The summand for tokens `x`; rows of `x` are independent, so padding in them disturbs nothing."""
        heard = self.norm(self.attention(x, self.projector(latent)))
        return self.adaptor(heard) * torch.sigmoid(self.gate(heard))
