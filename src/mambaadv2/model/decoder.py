"""The decoder of MambaADv2, in the order in which the paper tells it.

Glossary (code name: symbol, meaning, source):

    DSS     duality-enhanced state-space module: HSS blocks beside frequency-enhanced convolutions
    HSS     hybrid state-space block: two paths over one set of projections
    path R  linear recurrence along K scan orders (local continuity), Mamba-3's rule
    path M  parallel matrix form (global comparison), order-free, linear cost
    SAPS    semantics-adaptive progressive scanning: K shrinks with depth, weights follow the image
    x       v_t, the values          B, C    k_t and q_t, the keys and queries (SSD names)
    dt      step size per direction  A       decay rate, negative
    trap    logit of lambda_t        angle   raw rotation rate, theta = pi tanh(angle)
    z       gate of the block        g       gate of path M

Origins: DSS, HSS, the two paths and SAPS are the paper's (arXiv 2606.23126), whose code is not
public. Block internals follow Mamba-3 (arXiv 2603.15569), MambaAD (arXiv 2404.06564) and
MobileMamba (CVPR 2025); how they are put together is our choice and marked as such.

Layout: maps are (B, C, h, w), tokens (B, L, C) with L = h w in raster order.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaadv2.model.config import ModelConfig
from mambaadv2.model.local import DropPath, LocalBranch
from mambaadv2.scan import selective_scan
from mambaadv2.scan.orders import directions

A_FLOOR = 1e-4  # slowest decay rate: keeps long sums finite (Mamba-3)
DT_MIN, DT_MAX = 1e-3, 1e-1


def decay_rate(a: Tensor) -> Tensor:
    """A = -f(a), f(u) = 1 + u for u >= 0 and 1 / (1 - u) below; at most -1e-4 (Mamba-3)."""
    return (-torch.where(a >= 0, 1 + a, 1 / (1 - a.clamp(max=0)))).clamp(max=-A_FLOOR)


def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer without bias on (B, h, w, C), run as a 1x1 convolution.

    The same product; torch's CPU convolutions are up to twice as fast as its matrix products there.
    """
    return F.conv2d(x.permute(0, 3, 1, 2), linear.weight[:, :, None, None]).permute(0, 2, 3, 1)


class HSS(nn.Module):
    """Hybrid state-space block: out = x + DropPath(Linear(LN(y) * SiLU(z))), y = y_R + g y_M.

    Maps (B, h, w, C) to (B, h, w, C). Projections are shared by the K directions; only the biases
    of dt, B and C and the skip D are per direction (an order can change nothing else).
    Structure: our choice. Path R: Mamba-3. Path M: our reading of the paper's matrix path.
    """

    def __init__(self, config: ModelConfig, dim: int, directions: int, drop_path: float) -> None:
        super().__init__()
        self.config = config
        self.inner = dim * config.expand
        self.heads = self.inner // config.head_dim
        self.directions = directions
        n, heads = config.state_dim, self.heads
        recurrent, both = config.paths != "matrix", config.paths == "both"
        self.splits = {
            "z": self.inner,
            "x": self.inner,
            "B": n,
            "C": n,
            "dt": heads,
            "a": heads if recurrent else 0,
            "trap": heads if recurrent and config.trapezoid else 0,
            "angle": int(n * config.rotary_fraction) // 2 if recurrent and config.rotary else 0,
            "g": heads if both else 0,
        }
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, sum(self.splits.values()), bias=False)
        self.conv = nn.Conv2d(self.inner, self.inner, 3, padding=1, groups=self.inner)
        self.norm_b = nn.RMSNorm(n, eps=1e-5)
        self.norm_c = nn.RMSNorm(n, eps=1e-5)
        self.dt_bias = nn.Parameter(torch.zeros(directions, heads))
        if recurrent:
            self.b_bias = nn.Parameter(torch.ones(directions, heads, n))
            self.c_bias = nn.Parameter(torch.ones(directions, heads, n))
            self.skip = nn.Parameter(torch.ones(directions, heads))
        if both:
            self.gate_bias = nn.Parameter(torch.zeros(heads))
        weighted = recurrent and config.direction_weights and directions > 1
        self.direction_head = nn.Linear(dim, directions) if weighted else None
        self.out_norm = nn.LayerNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, h, w, C) to one of the same shape."""
        return x + self.increment(x)

    def increment(self, x: Tensor) -> Tensor:
        """What the block adds to its input; (B, h, w, C) in and out."""
        b, h, w, _ = x.shape
        u = self.norm(x)
        pieces = pointwise(self.in_proj, u).split(list(self.splits.values()), dim=-1)
        p = dict(zip(self.splits, pieces, strict=True))
        v = F.silu(self.conv(p["x"].permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        v = v.reshape(b, h * w, self.heads, self.config.head_dim)
        keys = self.norm_b(p["B"].float()).flatten(1, 2)
        queries = self.norm_c(p["C"].float()).flatten(1, 2)
        # Step sizes and rates stay in float32 under autocast: their sums span the whole image.
        dt = p["dt"].flatten(1, 2).float()
        parts: list[Tensor] = []
        if self.config.paths != "matrix":
            parts.append(self._recurrence(v, keys, queries, dt, p, self._direction_weights(u)))
        if self.config.paths != "recurrence":
            y = self._matrix(v, keys, queries, dt, (h, w))
            if self.config.paths == "both":
                y = torch.sigmoid(p["g"].flatten(1, 2) + self.gate_bias).unsqueeze(-1) * y
            parts.append(y)
        y = sum(parts[1:], parts[0]).reshape(b, h, w, self.inner)
        added: Tensor = self.drop_path(pointwise(self.out_proj, self.out_norm(y) * F.silu(p["z"])))
        return added

    def _direction_weights(self, u: Tensor) -> Tensor:
        """Weights (B, K) of the directions, summing to 1: the semantics-adaptive part of SAPS."""
        if self.direction_head is None:
            return u.new_full((u.shape[0], self.directions), 1.0 / self.directions)
        return torch.softmax(self.direction_head(u.mean(dim=(1, 2))), dim=-1)

    def _recurrence(
        self,
        v: Tensor,
        keys: Tensor,
        queries: Tensor,
        dt: Tensor,
        p: dict[str, Tensor],
        weights: Tensor,
    ) -> Tensor:
        """Path R: weighted mean over K scan orders of the recurrence; (B, L, H, P)."""
        _, h, w, _ = p["a"].shape
        steps = F.softplus(dt.unsqueeze(1) + self.dt_bias.unsqueeze(1))  # (B, K, L, H)
        rates = decay_rate(p["a"].flatten(1, 2).float())
        # Without the trapezoid lambda = 1 to float32: Mamba-2's rule.
        trap = p["trap"].flatten(1, 2) if self.config.trapezoid else torch.full_like(rates, 30.0)
        return selective_scan(
            v,
            keys.unsqueeze(2),
            queries.unsqueeze(2),
            steps,
            rates,
            trap,
            p["angle"].flatten(1, 2),
            self.b_bias,
            self.c_bias,
            self.skip,
            order=scan_table(self.config.order, h, w, self.directions, v.device),
            weights=weights,
        )

    def _matrix(
        self, v: Tensor, keys: Tensor, queries: Tensor, dt: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Path M: y_t = C_t sum_s w_s B_s x_s^T, every position compared with every other.

        w_s = dt_s / sum(dt); B and C carry a 2-D axial rotary phase of (row, column), so that the
        product depends on relative position. (B, L, H, P); linear in L.
        """
        step = F.softplus(dt + self.dt_bias.mean(dim=0))
        share = (step / step.sum(dim=1, keepdim=True)).to(v.dtype)  # (B, L, H)
        cos, sin = axial_phases(*size, keys.shape[-1], v.device)
        keys, queries = _rotate(keys, cos, sin), _rotate(queries, cos, sin)
        memory = torch.einsum("bln,blhp->bhnp", keys, v * share.unsqueeze(-1))
        return torch.einsum("bln,bhnp->blhp", queries, memory)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the last axis against each other; x (B, L, N), cos (L, N/2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


@functools.lru_cache(maxsize=32)
def scan_table(order: str, height: int, width: int, count: int, device: torch.device) -> Tensor:
    """Row table (K, L) of the scan directions, kept per size and device."""
    # A tensor made in inference mode could not serve a later training in the same process.
    with torch.inference_mode(False):
        return directions(order, height, width, count).to(device)


@functools.lru_cache(maxsize=32)
def axial_phases(height: int, width: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (L, N/2): half of the pairs turn with the row, half with the column.

    Rates are geometric from 1 to 1/32 radian per position (our choice): the finest pair tells
    neighbours apart, the slowest spans a 64 x 64 map once.
    """
    with torch.inference_mode(False):
        pairs = n // 4
        rates = torch.logspace(0.0, -math.log2(32.0), pairs, base=2.0, dtype=torch.float64)
        rows = torch.arange(height, dtype=torch.float64)[:, None, None] * rates
        columns = torch.arange(width, dtype=torch.float64)[None, :, None] * rates
        shape = (height, width, pairs)
        phase = torch.cat((rows.expand(shape), columns.expand(shape)), dim=-1).flatten(0, 1)
        return phase.cos().float().to(device), phase.sin().float().to(device)


class DSS(nn.Module):
    """A chain of HSS blocks beside local branches F_k, joined by a 1x1 convolution.

    fusion "concat": out = x + Conv1x1(cat[HSS(x), F5(x), F7(x)]), the ancestor's form.
    fusion "beside": out = HSS(x) + Conv1x1(cat[F5(x), F7(x)]): the blocks keep their own residual
    path, so the convolution's fan-in holds no raw copy of x, which slowed learning at equal steps
    (our choice, measured in LOG.md).
    """

    def __init__(
        self, config: ModelConfig, dim: int, directions: int, drop_paths: list[float]
    ) -> None:
        super().__init__()
        self.concat = config.fusion == "concat" and config.paths != "none"
        self.blocks = nn.ModuleList(
            HSS(config, dim, directions, rate) for rate in drop_paths if config.paths != "none"
        )
        self.branches = nn.ModuleList(
            LocalBranch(dim, kernel, config.frequency, config.band_kernel)
            for kernel in config.local_kernels
        )
        inputs = len(self.branches) + (1 if self.concat else 0)
        self.fuse = nn.Conv2d(dim * inputs, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to one of the same shape."""
        tokens = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            tokens = block(tokens)
        states = tokens.permute(0, 3, 1, 2)
        parts = [branch(x) for branch in self.branches]
        if self.concat:
            return x + self._fused([states, *parts])
        return states + self._fused(parts)

    def _fused(self, parts: list[Tensor]) -> Tensor:
        fused: Tensor = self.fuse(torch.cat(parts, dim=1))
        return fused


class PatchExpand(nn.Module):
    """Double height and width, change the channels: Linear C -> 4C', pixel shuffle, LayerNorm."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim_in, 4 * dim_out, bias=False)
        self.norm = nn.LayerNorm(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', 2h, 2w)."""
        b, _, h, w = x.shape
        y = pointwise(self.expand, x.permute(0, 2, 3, 1)).view(b, h, w, 2, 2, -1)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)
        normed: Tensor = self.norm(y)
        return normed.permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """Stages from stride 32 to the finest; returns a reconstruction per encoder scale.

    Input (B, dims[0], H/32, W/32); output one (B, channels[i], H/s, W/s) per stage after the first,
    deep to shallow. `channels` are the encoder's, deep to shallow.
    """

    def __init__(self, config: ModelConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        total = sum(sum(stage) for stage in config.modules)
        rates = iter([config.drop_path * i / max(1, total - 1) for i in range(total)])
        self.expands, self.stages, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, dim in enumerate(config.dims):
            if i > 0:
                self.expands.append(PatchExpand(config.dims[i - 1], dim))
                self.heads.append(nn.Conv2d(dim, channels[i - 1], 1))
            self.stages.append(
                nn.Sequential(
                    *(
                        DSS(config, dim, config.directions[i], [next(rates) for _ in range(blocks)])
                        for blocks in config.modules[i]
                    )
                )
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Neck output to reconstructions, deep to shallow."""
        return [head(hidden) for head, hidden in zip(self.heads, self.hidden(x), strict=True)]

    def hidden(self, x: Tensor) -> list[Tensor]:
        """The stages' outputs before the output projections."""
        x = self.stages[0](x)
        outputs: list[Tensor] = []
        for expand, stage in zip(self.expands, list(self.stages)[1:], strict=True):
            x = stage(expand(x))
            outputs.append(x)
        return outputs
