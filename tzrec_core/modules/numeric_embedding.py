"""Embeddings of numbers: learned soft bins (AutoDis) or a linear map per feature."""

# B batch, N features, C channels (bins), D embedding dim, V values of one feature

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzrec_core.errors import ConfigError
from tzrec_core.modules.base import BaseModule


@dataclass(frozen=True)
class AutoDisSettings:
    """How soft bins are made.

    Args:
        num_channels: number of bins; >= 1.
        temperature: divides the bins' scores before the softmax; > 0.
        keep_prob: weight of the skip connection.
    """

    num_channels: int
    temperature: float = 0.1
    keep_prob: float = 0.8


@dataclass(frozen=True)
class NumericEmbeddingConfig:
    """One numeric feature and the embedding it gets.

    Args:
        name: the feature.
        value_dim: V, numbers per row.
        embedding_dim: D.
        autodis: settings of its soft bins; None = a linear map.
    """

    name: str
    value_dim: int
    embedding_dim: int
    autodis: AutoDisSettings | None = None


class AutoDisEmbedding(BaseModule):
    """Embed each number as a mix of its feature's meta embeddings.

    Guo et al., KDD 2021 (arXiv:2012.08986), eqs. 4-7: the number's scores over the bins are
    `h = leaky_relu(w * x)`, then `M h + keep_prob * h`, then a softmax with a temperature.

    Args:
        num_dense_feature: N.
        embedding_dim: D.
        num_channels: C, the number of bins.
        temperature: see `AutoDisSettings`.
        keep_prob: see `AutoDisSettings`.

    Raises:
        ConfigError: num_channels or temperature is not positive.
    """

    def __init__(
        self,
        num_dense_feature: int,
        embedding_dim: int,
        num_channels: int,
        temperature: float = 0.1,
        keep_prob: float = 0.8,
    ) -> None:
        super().__init__()
        if num_channels < 1:
            raise ConfigError(f"autodis.num_channels = {num_channels}: write 1 or more.")
        if temperature <= 0:
            raise ConfigError(f"autodis.temperature = {temperature:g}: write a number above 0.")
        self._temperature = temperature
        self._keep_prob = keep_prob
        self.meta_emb = nn.Parameter(torch.empty(num_dense_feature, num_channels, embedding_dim))
        self.proj_w = nn.Parameter(torch.empty(num_dense_feature, num_channels))
        self.proj_m = nn.Parameter(torch.empty(num_dense_feature, num_channels, num_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters from a standard normal."""
        for parameter in (self.meta_emb, self.proj_w, self.proj_m):
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, N) as (B, N, D)."""
        h_NBC = F.leaky_relu(x.t().unsqueeze(2) * self.proj_w.unsqueeze(1))
        scores_NBC = torch.bmm(h_NBC, self.proj_m.transpose(1, 2)) + self._keep_prob * h_NBC
        mix_NBC = torch.softmax(scores_NBC / self._temperature, dim=2)
        return torch.bmm(mix_NBC, self.meta_emb).transpose(0, 1)


class MLPEmbedding(BaseModule):
    """Embed numbers by a linear map without bias: one vector per number of a feature.

    Args:
        num_dense_feature: N.
        embedding_dim: D.
        value_dim: V; above 1 only for a single feature.
    """

    def __init__(self, num_dense_feature: int, embedding_dim: int, value_dim: int = 1) -> None:
        super().__init__()
        assert value_dim == 1 or num_dense_feature == 1, (num_dense_feature, value_dim)
        self._value_dim = value_dim
        self.proj_w = nn.Parameter(torch.empty(max(num_dense_feature, value_dim), embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as torch.nn.Linear does: uniform within +-1/sqrt(V)."""
        bound = 1 / math.sqrt(self._value_dim)
        nn.init.uniform_(self.proj_w, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, N), or (B, V) of a single feature, as (B, N, D)."""
        if self._value_dim == 1:
            return x.unsqueeze(2) * self.proj_w
        return torch.matmul(x, self.proj_w).unsqueeze(1)


class NumericEmbeddingCollection(BaseModule):
    """The embeddings of all numeric features; features with equal settings are computed by one module.

    AutoDis features merge when their settings and embedding_dim are equal, linear ones when they have one
    value and equal embedding_dim; a linear feature with several values stands alone. The features of a merged
    module keep their order.

    Args:
        features: the features, with distinct names.

    Raises:
        ConfigError: an AutoDis feature has more than one value, or its settings are out of range.
    """

    def __init__(self, features: Sequence[NumericEmbeddingConfig]) -> None:
        super().__init__()
        self._names = [feature.name for feature in features]
        assert len(set(self._names)) == len(self._names), self._names
        merged: dict[object, list[NumericEmbeddingConfig]] = {}
        for feature in features:
            merged.setdefault(_merge_key(feature), []).append(feature)
        self._merged_names = [[feature.name for feature in group] for group in merged.values()]
        self.embeddings = nn.ModuleList(_create_embedding(group) for group in merged.values())

    def forward(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embed each feature, (B, value_dim), as (B, embedding_dim); leave out other entries of `dense`."""
        embedded = {}
        for names, embedding in zip(self._merged_names, self.embeddings):
            out_BND = embedding(torch.cat([dense[name] for name in names], dim=1))
            for i, name in enumerate(names):
                embedded[name] = out_BND[:, i]
        return {name: embedded[name] for name in self._names}


def _merge_key(feature: NumericEmbeddingConfig) -> object:
    """Equal for the features that share a module."""
    if feature.autodis is not None:
        if feature.value_dim != 1:
            raise ConfigError(
                f"feature {feature.name!r} has value_dim = {feature.value_dim} and autodis, which embeds one "
                "number: set value_dim to 1, or use mlp {} instead of autodis."
            )
        return (feature.embedding_dim, feature.autodis)
    return (feature.embedding_dim,) if feature.value_dim == 1 else feature


def _create_embedding(features: Sequence[NumericEmbeddingConfig]) -> nn.Module:
    """The module of features that share one."""
    first = features[0]
    if first.autodis is None:
        return MLPEmbedding(len(features), first.embedding_dim, first.value_dim)
    settings = first.autodis
    return AutoDisEmbedding(
        len(features), first.embedding_dim, settings.num_channels, settings.temperature, settings.keep_prob
    )
