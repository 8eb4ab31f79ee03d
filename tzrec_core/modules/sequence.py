"""Sequence encoders: a padded sequence, and the query it is read for, become one vector per row.

Each reads three entries of an EmbeddingGroup's output: `<input>.query` (B, Q), `<input>.sequence` (B, T, D),
zero beyond a row's length, and `<input>.sequence_length` (B,). T may be 0.
"""

# B batch, T steps, D sequence width, Q query width, N heads of width X, H = N * X,
# P width of a compared pair, W sum of windows

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzrec_core.errors import ConfigError, did_you_mean
from tzrec_core.modules.base import BaseModule
from tzrec_core.modules.mlp import MLP

_POOLING_TYPES = ("mean", "sum")


class SequenceEncoder(BaseModule):
    """What sequence encoders share: where they read, how many steps, how wide they write.

    Args:
        sequence_dim: D.
        query_dim: Q; 0 when the group has no query features.
        input: the sequence group it reads.
        name: what messages call the encoder.
        max_seq_length: read only the first that many steps; 0 = all.

    Raises:
        ConfigError: max_seq_length is negative.
    """

    def __init__(self, sequence_dim: int, query_dim: int, input: str, name: str = "", max_seq_length: int = 0) -> None:
        super().__init__()
        self._sequence_dim = sequence_dim
        self._query_dim = query_dim
        self._input = input
        self._max_seq_length = max_seq_length
        self._title = type(self).__name__ + (f" {name!r}" if name else "") + f" on group {input!r}"
        if max_seq_length < 0:
            raise ConfigError(f"{self._title}: max_seq_length = {max_seq_length}: write 0 for all steps, or more.")

    def input(self) -> str:
        """The sequence group it reads."""
        return self._input

    def output_dim(self) -> int:
        """Width of the vector it writes."""
        return self._sequence_dim

    def forward(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        """Encode `<input>.query`, `<input>.sequence` and `<input>.sequence_length` as (B, output_dim())."""
        raise NotImplementedError

    def _read_query(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        """The query, filled up with zeros to (B, D)."""
        query = sequence_embedded[f"{self._input}.query"]
        missing = self._sequence_dim - self._query_dim
        return F.pad(query, (0, missing)) if missing else query

    def _read_sequence(self, sequence_embedded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The first `max_seq_length` steps (B, T, D), and how many of them count (B,)."""
        sequence = sequence_embedded[f"{self._input}.sequence"]
        length = sequence_embedded[f"{self._input}.sequence_length"]
        if self._max_seq_length > 0:
            if torch.compiler.is_exporting():
                # An exported graph cannot have T on both sides of the limit: there, fill up to it.
                sequence = _fit_steps(sequence, self._max_seq_length)
            else:
                sequence = sequence[:, : self._max_seq_length]
            length = length.clamp(max=self._max_seq_length)
        return sequence, length

    def _require_query_that_fits(self) -> None:
        """Refuse a group without query features, and a query that is wider than a step."""
        if self._query_dim < 1:
            raise ConfigError(
                f"{self._title} compares a query with the sequence, but the group has no query: add a "
                "feature that is not a sequence to it, such as the candidate item's id."
            )
        if self._query_dim > self._sequence_dim:
            raise ConfigError(
                f"{self._title}: the query is {self._query_dim} wide and wider than the sequence, "
                f"{self._sequence_dim}: take features out of the query, or add sequence features."
            )


class DINEncoder(SequenceEncoder):
    """Weight each step by how an MLP compares it with the query.

    Zhou et al., KDD 2018 (arXiv:1706.06978), sec. 4.3. Departs from the paper: the MLP sees
    `[q, s, q - s, q * s]`, and the weights go through a softmax over the steps. A query narrower than a step
    is filled up with zeros. Rows without any step give 0.

    Args:
        sequence_dim: see `SequenceEncoder`; also the width of the output.
        query_dim: see `SequenceEncoder`; 1 to `sequence_dim`.
        input: see `SequenceEncoder`.
        attn_mlp: arguments of the `MLP`.
        name: see `SequenceEncoder`.
        max_seq_length: see `SequenceEncoder`.

    Raises:
        ConfigError: there is no query, or it is wider than a step; and what `MLP` raises.
    """

    # Any: keyword arguments of several types.
    def __init__(
        self,
        sequence_dim: int,
        query_dim: int,
        input: str,
        attn_mlp: Mapping[str, Any],
        name: str = "",
        max_seq_length: int = 0,
    ) -> None:
        super().__init__(sequence_dim, query_dim, input, name, max_seq_length)
        self._require_query_that_fits()
        self.mlp = MLP(in_features=4 * sequence_dim, dim=3, **attn_mlp)
        self.linear = nn.Linear(self.mlp.output_dim(), 1)

    def forward(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        """Attend from the query to the steps: (B, D)."""
        sequence_BTD, length_B = self._read_sequence(sequence_embedded)
        query_BTD = self._read_query(sequence_embedded).unsqueeze(1).expand_as(sequence_BTD)
        pair_BTP = torch.cat([query_BTD, sequence_BTD, query_BTD - sequence_BTD, query_BTD * sequence_BTD], dim=2)
        score_BT = self.linear(self.mlp(pair_BTP)).squeeze(2)
        return _attend(score_BT, sequence_BTD, length_B)


class SimpleAttention(SequenceEncoder):
    """Weight each step by the softmax of its dot product with the query; rows without any step give 0.

    Args:
        sequence_dim: see `SequenceEncoder`; also the width of the output.
        query_dim: see `SequenceEncoder`; must equal `sequence_dim`.
        input: see `SequenceEncoder`.
        name: see `SequenceEncoder`.
        max_seq_length: see `SequenceEncoder`.

    Raises:
        ConfigError: the widths differ.
    """

    def __init__(self, sequence_dim: int, query_dim: int, input: str, name: str = "", max_seq_length: int = 0) -> None:
        super().__init__(sequence_dim, query_dim, input, name, max_seq_length)
        self._require_query_that_fits()
        if query_dim != sequence_dim:
            raise ConfigError(
                f"{self._title} multiplies query and sequence, so they must be equally wide: the query is "
                f"{query_dim} wide, the sequence {sequence_dim}. Give both the same features and widths."
            )

    def forward(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        """Attend from the query to the steps: (B, D)."""
        sequence_BTD, length_B = self._read_sequence(sequence_embedded)
        query_BD = self._read_query(sequence_embedded)
        score_BT = torch.matmul(sequence_BTD, query_BD.unsqueeze(2)).squeeze(2)
        return _attend(score_BT, sequence_BTD, length_B)


class PoolingEncoder(SequenceEncoder):
    """Sum or mean of the steps; rows without any step give 0. Needs no query.

    Args:
        sequence_dim: see `SequenceEncoder`; also the width of the output.
        query_dim: not used.
        input: see `SequenceEncoder`.
        pooling_type: "mean" or "sum".
        name: see `SequenceEncoder`.
        max_seq_length: see `SequenceEncoder`; the mean is over the steps that are read.

    Raises:
        ConfigError: pooling_type is neither.
    """

    def __init__(
        self,
        sequence_dim: int,
        query_dim: int,
        input: str,
        pooling_type: str = "mean",
        name: str = "",
        max_seq_length: int = 0,
    ) -> None:
        super().__init__(sequence_dim, query_dim, input, name, max_seq_length)
        if pooling_type not in _POOLING_TYPES:
            raise ConfigError(
                f"{self._title}: pooling_type = {pooling_type!r} is not one of {', '.join(_POOLING_TYPES)}."
                f"{did_you_mean(pooling_type, _POOLING_TYPES)}"
            )
        self._pooling_type = pooling_type

    def forward(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        """Pool the steps: (B, D)."""
        sequence_BTD, length_B = self._read_sequence(sequence_embedded)
        sum_BD = sequence_BTD.sum(dim=1)
        if self._pooling_type == "sum":
            return sum_BD
        return sum_BD / length_B.clamp(min=1).unsqueeze(1)


class SelfAttentionEncoder(SequenceEncoder):
    """Let the steps attend to each other, then average them. Needs no query; rows without any step give 0.

    Vaswani et al., NeurIPS 2017, sec. 3.2.2, with one more projection of query, key and value before the one
    of `nn.MultiheadAttention`.

    Args:
        sequence_dim: see `SequenceEncoder`.
        query_dim: not used.
        input: see `SequenceEncoder`.
        multihead_attn_dim: H, also the width of the output; a multiple of `num_heads`.
        num_heads: number of heads.
        dropout: share of attention weights set to 0 in training, in [0, 1].
        name: see `SequenceEncoder`.
        max_seq_length: see `SequenceEncoder`. The sum over the steps that are read is divided by the row's
            whole length, as TorchEasyRec does.

    Raises:
        ConfigError: the heads do not divide multihead_attn_dim, or dropout is out of range.
    """

    def __init__(
        self,
        sequence_dim: int,
        query_dim: int,
        input: str,
        multihead_attn_dim: int = 512,
        num_heads: int = 8,
        dropout: float = 0.0,
        name: str = "",
        max_seq_length: int = 0,
    ) -> None:
        super().__init__(sequence_dim, query_dim, input, name, max_seq_length)
        if num_heads < 1 or multihead_attn_dim < 1 or multihead_attn_dim % num_heads:
            raise ConfigError(
                f"{self._title}: multihead_attn_dim = {multihead_attn_dim} is not a multiple of "
                f"num_heads = {num_heads}."
            )
        if not 0.0 <= dropout <= 1.0:
            raise ConfigError(f"{self._title}: dropout = {dropout:g}: it is a share, write 0 to 1.")
        self._multihead_attn_dim = multihead_attn_dim
        self.query = nn.Linear(sequence_dim, multihead_attn_dim)
        self.key = nn.Linear(sequence_dim, multihead_attn_dim)
        self.value = nn.Linear(sequence_dim, multihead_attn_dim)
        self.multihead_attn = nn.MultiheadAttention(multihead_attn_dim, num_heads, dropout=dropout, batch_first=True)

    def output_dim(self) -> int:
        """Width of the vector it writes."""
        return self._multihead_attn_dim

    def forward(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        """Attend within the sequence and average: (B, H)."""
        sequence_BTD, length_B = self._read_sequence(sequence_embedded)
        whole_length_B = sequence_embedded[f"{self._input}.sequence_length"]
        # nn.MultiheadAttention.forward spelled out: that refuses T = 0 and gives NaN for rows without steps.
        attention = self.multihead_attn
        weights = attention.in_proj_weight.chunk(3)
        biases = attention.in_proj_bias.chunk(3)
        query_BNTX = self._split_heads(F.linear(self.query(sequence_BTD), weights[0], biases[0]))
        key_BNTX = self._split_heads(F.linear(self.key(sequence_BTD), weights[1], biases[1]))
        value_BNTX = self._split_heads(F.linear(self.value(sequence_BTD), weights[2], biases[2]))
        attended_BNTX = F.scaled_dot_product_attention(
            query_BNTX,
            key_BNTX,
            value_BNTX,
            # A row without steps reads its first, padded one; its output is dropped below.
            attn_mask=_is_step(sequence_BTD, length_B.clamp(min=1)).unsqueeze(1).unsqueeze(1),
            dropout_p=attention.dropout if self.training else 0.0,
        )
        attended_BTH = attended_BNTX.transpose(1, 2).flatten(2)
        attended_BTH = attention.out_proj(attended_BTH) * _is_step(sequence_BTD, length_B).unsqueeze(2)
        return attended_BTH.sum(dim=1) / whole_length_B.clamp(min=1).unsqueeze(1)

    def _split_heads(self, x_BTH: Tensor) -> Tensor:
        """(B, T, H) to (B, N, T, X)."""
        attention = self.multihead_attn
        return x_BTH.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)


class MultiWindowDINEncoder(SequenceEncoder):
    """DIN weights without a softmax, averaged within consecutive windows of the sequence, then the query.

    Zhu et al., "Learning tree-based deep model for recommender systems", KDD 2018, arXiv:1801.02294. The MLP
    sees `[s, q * s, q]`; its one output goes through a PReLU and weights the step. A window's weighted sum is
    divided by the number of its steps. Steps beyond the last window do not count; a query narrower than a
    step is filled up with zeros.

    Args:
        sequence_dim: see `SequenceEncoder`.
        query_dim: see `SequenceEncoder`; 1 to `sequence_dim`.
        input: see `SequenceEncoder`.
        attn_mlp: arguments of the `MLP`.
        windows_len: number of steps of each window, from the first step on.
        name: see `SequenceEncoder`.

    Raises:
        ConfigError: there is no query, or it is wider than a step; there is no window, or an empty one; and
            what `MLP` raises.
    """

    # Any: keyword arguments of several types.
    def __init__(
        self,
        sequence_dim: int,
        query_dim: int,
        input: str,
        attn_mlp: Mapping[str, Any],
        windows_len: Sequence[int],
        name: str = "",
    ) -> None:
        super().__init__(sequence_dim, query_dim, input, name)
        self._require_query_that_fits()
        self._windows_len = list(windows_len)
        if not self._windows_len or min(self._windows_len) < 1:
            raise ConfigError(
                f"{self._title}: windows_len = {self._windows_len}: write the number of steps of each "
                "window, 1 or more, such as windows_len: [1, 2, 4]."
            )
        self.mlp = MLP(in_features=3 * sequence_dim, dim=3, **attn_mlp)
        self.linear = nn.Linear(self.mlp.output_dim(), 1)
        self.active = nn.PReLU()

    def output_dim(self) -> int:
        """Width of the vector it writes: one D per window, and one for the query."""
        return self._sequence_dim * (len(self._windows_len) + 1)

    def forward(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        """Average the weighted steps of each window: (B, (number of windows + 1) * D)."""
        sequence_BTD, length_B = self._read_sequence(sequence_embedded)
        query_BD = self._read_query(sequence_embedded)
        query_BTD = query_BD.unsqueeze(1).expand_as(sequence_BTD)
        pair_BTP = torch.cat([sequence_BTD, query_BTD * sequence_BTD, query_BTD], dim=2)
        weight_BT = self.active(self.linear(self.mlp(pair_BTP))).squeeze(2)
        weight_BT = weight_BT * _is_step(sequence_BTD, length_B)
        weighted_BWD = _fit_steps(weight_BT.unsqueeze(2) * sequence_BTD, sum(self._windows_len))
        outputs = []
        start = 0
        for window_len in self._windows_len:
            num_steps_B = (length_B - start).clamp(1, window_len)
            sum_BD = weighted_BWD[:, start : start + window_len].sum(dim=1)
            outputs.append(sum_BD / num_steps_B.unsqueeze(1))
            start += window_len
        return torch.cat([*outputs, query_BD], dim=1)


# The helpers below are leaves of a traced graph: they look at sizes that are known only when it runs.


@torch.fx.wrap
def _is_step(sequence_BTD: Tensor, length_B: Tensor) -> Tensor:
    """True (B, T) where a step is one of its row's `length_B`."""
    return torch.arange(sequence_BTD.size(1), device=length_B.device).unsqueeze(0) < length_B.unsqueeze(1)


@torch.fx.wrap
def _attend(score_BT: Tensor, sequence_BTD: Tensor, length_B: Tensor) -> Tensor:
    """Average the steps by the softmax of their scores; rows without any step give 0, as padding is 0."""
    # -(2^31) + 1 is TorchEasyRec's mark of a padded step; float16 does not reach that far.
    mark = -65504.0 if score_BT.dtype == torch.float16 else -2147483647.0
    score_BT = score_BT.masked_fill(torch.logical_not(_is_step(sequence_BTD, length_B)), mark)
    weight_BT = torch.softmax(score_BT, dim=1)
    return torch.matmul(weight_BT.unsqueeze(1), sequence_BTD).squeeze(1)


@torch.fx.wrap
def _fit_steps(x_BTD: Tensor, num_steps: int) -> Tensor:
    """Cut (B, T, D) to `num_steps`, or fill it up with zeros."""
    return F.pad(x_BTD, [0, 0, 0, num_steps - x_BTD.size(1)])
