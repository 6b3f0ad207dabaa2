"""A small GPT with the interface of the one in nanochat: made on the meta device, filled by `init_weights`.

    python examples/gpt.py

The other examples train it. Its tables for rotary embeddings are buffers that are not saved, so a model that is
built from a checkpoint has to call `init_weights` before it takes the loaded weights.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (what torch's documentation calls it)
from torch import Tensor, nn

ROTARY_BASE = 10000.0


@dataclass
class GPTConfig:
    """Shape of the model. `window_pattern` is a key of nanochat; this model only has full windows, "L"."""

    sequence_len: int = 128
    vocab_size: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4
    n_embd: int = 128
    window_pattern: str = "L"
    dropout: float = 0.0


def norm(x: Tensor) -> Tensor:
    """Scale the last dimension to a root mean square of one."""
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of channels by its position's angle; `x` is (batch, head, position, channel)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary embeddings and normalised queries and keys."""

    def __init__(self, config: GPTConfig) -> None:
        """Make the projections; nothing is initialised here."""
        super().__init__()
        self.head_dim = config.n_embd // config.n_head
        self.dropout = config.dropout
        kv_dim = config.n_kv_head * self.head_dim
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_v = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return what each position of `x`, (batch, position, n_embd), gathers from those before it."""

        def split_heads(projected: Tensor) -> Tensor:
            return projected.view(*projected.shape[:2], -1, self.head_dim).transpose(1, 2)

        q, k, v = (split_heads(project(x)) for project in (self.c_q, self.c_k, self.c_v))
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y = self.c_proj(y.transpose(1, 2).flatten(2))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers with a squared ReLU between them."""

    def __init__(self, config: GPTConfig) -> None:
        """Make the layers; nothing is initialised here."""
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map each position of `x`, (batch, position, n_embd), by itself."""
        return F.dropout(self.c_proj(F.relu(self.c_fc(x)).square()), self.dropout, self.training)


class Block(nn.Module):
    """One layer of the transformer."""

    def __init__(self, config: GPTConfig) -> None:
        """Make the layer's parts."""
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Add attention and MLP to the residual stream `x`."""
        x = x + self.attn(norm(x), cos, sin)
        residual: Tensor = self.mlp(norm(x))
        return x + residual


class GPT(nn.Module):
    """The model. Build it under `torch.device("meta")`, then `to_empty` and `init_weights`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        """Make parameters and buffers, shapes only."""
        super().__init__()
        if set(config.window_pattern) != {"L"}:
            raise ValueError(
                f"window_pattern {config.window_pattern!r}: this model has only full windows, 'L'"
            )
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # How much of the stream, and of the embedding, goes into each layer.
        self.resid_lambdas = nn.Parameter(torch.empty(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.empty(config.n_layer))
        table = (config.sequence_len, config.n_embd // config.n_head // 2)
        self.register_buffer("cos", torch.empty(table), persistent=False)
        self.register_buffer("sin", torch.empty(table), persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill every parameter and buffer; draws from the global RNG."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.normal_(self.get_parameter("transformer.wte.weight"))
        nn.init.normal_(self.lm_head.weight, std=0.001)
        self.resid_lambdas.fill_(1.0)
        self.x0_lambdas.fill_(0.1)
        positions, pairs = self.cos.shape
        device = self.cos.device
        frequencies = ROTARY_BASE ** (
            -torch.arange(pairs, dtype=torch.float32, device=device) / pairs
        )
        angles = torch.outer(
            torch.arange(positions, dtype=torch.float32, device=device), frequencies
        )
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the mean loss against `targets`, or the logits if there are no targets.

        Both are (batch, position), of int64; the logits are (batch, position, vocab_size).
        """
        cos, sin = self.cos[: tokens.size(1)], self.sin[: tokens.size(1)]
        x = x0 = norm(self.transformer["wte"](tokens))
        for i, block in enumerate(self.transformer["h"].children()):
            x = block(self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0, cos, sin)
        logits: Tensor = self.lm_head(norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    """Make the model; before any training its loss is that of guessing."""
    torch.manual_seed(0)
    config = GPTConfig()
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    tokens = torch.randint(config.vocab_size, (4, config.sequence_len + 1))
    loss = model(tokens[:, :-1], tokens[:, 1:]).item()
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    print(f"loss {loss:.3f}; guessing among {config.vocab_size} bytes: {math.log(256):.3f}")


if __name__ == "__main__":
    main()
