"""Models of the kind that people train with trainers: attention, recurrence, convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Causal self-attention and a perceptron, each after a norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for each in self.qkv(self.norms[0](x)).chunk(3, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.back(F.gelu(self.wide(self.norms[1](x))))


class Transformer(nn.Module):
    """Four layers of width 256 on tokens from a vocabulary of 1,000, with a class for each text."""

    def __init__(self, layers: int = 4, width: int = 256, vocabulary: int = 1000, length: int = 64):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, 4) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        x = self.blocks(self.tokens(x) + self.places(places))
        return self.head(self.norm(x)).mean(1)


class LSTM(nn.Module):
    """Two layers of width 256."""

    def __init__(self, lstm: type[nn.Module] = nn.LSTM, width: int = 256, vocabulary: int = 1000):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.lstm = lstm(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.tokens(x))
        return self.head(states[:, -1])


def group_norm_cnn() -> nn.Sequential:
    """Three convolutions on images of 28 x 28, each with a group norm."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 3),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2),
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2),
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1600, 10),
    )
