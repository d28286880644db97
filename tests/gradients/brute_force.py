"""The covariance by definition: one backward pass a sample, in float64, and models to try it on."""

import torch
import torch.nn.functional as F
from torch import nn


def shares(model, loss_of, batch, S, parameters=None):
    """s_1, ..., s_S of each parameter, (S, *shape): what flows through the rows of a sample.

    ``loss_of(rows)`` is the loss as a function of the output of the model; its gradient there is
    sent back for one sample at a time, in a graph of that sample alone where ``batch(i)`` gives it.
    """
    parameters = dict(model.named_parameters()) if parameters is None else parameters
    output = model(*batch(None)).detach().requires_grad_()
    (d,) = torch.autograd.grad(loss_of(output), output)
    rows = {name: [] for name in parameters}
    for i in range(S):
        found = torch.autograd.grad(
            model(*batch(i)), list(parameters.values()), d[i : i + 1], allow_unused=True
        )
        for (name, w), g in zip(parameters.items(), found, strict=True):
            rows[name].append(torch.zeros_like(w) if g is None else g.to_dense())
    return {name: torch.stack(each) for name, each in rows.items()}


def contribution(rows, samples, first=0):
    """V_t of (2.6), its diagonal, with g_i = N s_i."""
    V = {}
    for name, s in rows.items():
        g = len(s) * s
        r = g - g.mean(0)
        V[name] = r[first].square() if samples == "first" else r.square().mean(0)
    return V


class Picked(nn.Module):
    """One of several outputs."""

    def __init__(self, module, *args):
        super().__init__()
        self.module, self.args = module, args

    def forward(self, x):
        return self.module(x, *self.args)[0]


class Last(Picked):
    """The last states of both layers."""

    def forward(self, x):
        return self.module(x)[1].transpose(0, 1)


class Attention(nn.Module):
    """Self-attention by nn.MultiheadAttention."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Sdpa(nn.Module):
    """Self-attention by torch's function, as most models of today write it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Conv1D(nn.Module):
    """As in GPT-2: a linear layer with its weight the other way round."""

    def __init__(self, n, m):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n, m)), nn.Parameter(torch.randn(m))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


class ScaleNorm(nn.Module):
    """As the norms of Transformers: a bare scale."""

    def __init__(self, n):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(n) + 0.5)

    def forward(self, x):
        return self.scale * x * x.square().mean(-1, keepdim=True).rsqrt()


class Tied(nn.Module):
    """Embedding and output layer share a weight, with a bare position embedding in between."""

    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(6, 4), nn.Parameter(torch.randn(3, 4))
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        x = self.embedding(x) + self.positions
        return self.head(self.layer(self.layer(x).tanh()))


def sequential(*layers):
    return lambda: nn.Sequential(*[layer() for layer in layers])


def real(*shape):
    return lambda S: torch.randn(S, *shape)


def indices(*shape):
    return lambda S: torch.randint(0, 6, (S, *shape))


MODELS = {
    "perceptron": (
        sequential(lambda: nn.Linear(4, 5), nn.Tanh, lambda: nn.Linear(5, 3)),
        real(4),
    ),
    "linear, sequence": (sequential(lambda: nn.Linear(4, 5)), real(3, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, groups=2), real(2, 7)),
    "conv2d, group norm": (
        sequential(
            lambda: nn.Conv2d(2, 4, 3), lambda: nn.GroupNorm(2, 4), nn.ReLU, nn.Flatten,
            lambda: nn.Linear(16, 3),
        ),
        real(2, 4, 4),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2), real(2, 3, 3, 3)),
    "conv transposed": (lambda: nn.ConvTranspose2d(2, 3, 2), real(2, 3, 3)),
    "layer norm": (sequential(lambda: nn.Linear(4, 4), lambda: nn.LayerNorm(4)), real(3, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), real(3, 4)),
    "embedding": (sequential(lambda: nn.Embedding(6, 4), lambda: nn.Linear(4, 2)), indices(3)),
    "embedding bag": (lambda: nn.EmbeddingBag(6, 4), indices(3)),
    "embedding bag, sum": (lambda: nn.EmbeddingBag(6, 4, mode="sum", padding_idx=1), indices(3)),
    "embedding bag, max": (lambda: nn.EmbeddingBag(6, 4, mode="max"), indices(3)),
    "prelu": (sequential(lambda: nn.Linear(4, 3), lambda: nn.PReLU(3)), real(4)),
    "prelu, images": (sequential(lambda: nn.Conv2d(2, 3, 2), nn.PReLU), real(2, 3, 3)),
    "lstm": (lambda: Picked(nn.LSTM(4, 3, num_layers=2, batch_first=True)), real(5, 4)),
    "lstm, both ways": (
        lambda: Picked(nn.LSTM(4, 3, bidirectional=True, batch_first=True, bias=False)),
        real(5, 4),
    ),
    "gru": (lambda: Picked(nn.GRU(4, 3, num_layers=2, batch_first=True)), real(5, 4)),
    "gru, last states": (lambda: Last(nn.GRU(4, 3, num_layers=2, batch_first=True)), real(5, 4)),
    "rnn": (lambda: Picked(nn.RNN(4, 3, batch_first=True)), real(5, 4)),
    "attention": (Attention, real(3, 4)),
    "attention, with more": (lambda: Attention(add_bias_kv=True, kdim=4, vdim=4), real(3, 4)),
    "sdpa": (Sdpa, real(3, 4)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        real(3, 4),
    ),
    "Conv1D": (sequential(lambda: Conv1D(4, 5), nn.GELU, lambda: Conv1D(5, 2)), real(3, 4)),
    "bare scale": (sequential(lambda: nn.Linear(4, 4), lambda: ScaleNorm(4)), real(3, 4)),
    "tied": (Tied, indices(3)),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        real(4),
    ),
}  # fmt: skip
