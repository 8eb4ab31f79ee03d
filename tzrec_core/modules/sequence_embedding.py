"""Embeddings of sequence groups: one vector per step, beside the vectors of the query."""

# B rows, N steps of all rows together, T steps of the longest row, D width

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, JaggedTensor
from torchrec.modules.embedding_configs import PoolingType

from tzrec_core.data.batch import Batch
from tzrec_core.features import BaseFeature
from tzrec_core.modules import jagged
from tzrec_core.modules.base import BaseModule
from tzrec_core.modules.embedding_tables import TableSet, embedding_names, table_device


@dataclass(frozen=True)
class SequenceGroup:
    """A SEQUENCE or JAGGED_SEQUENCE group, or one of a DEEP group's `sequence_groups`.

    Args:
        name: prefix of its outputs; unique in the model.
        features: in config order; those without steps are the query.
        suffix: what `embedding_name_suffix` appends to its tables' names; empty = nothing.
        is_jagged: the steps stay unpadded.
    """

    name: str
    features: tuple[BaseFeature, ...]
    suffix: str = ""
    is_jagged: bool = False

    @cached_property
    def query(self) -> list[BaseFeature]:
        """The features without steps."""
        return [feature for feature in self.features if not feature.is_sequence]

    @cached_property
    def sequence(self) -> list[BaseFeature]:
        """The features with steps."""
        return [feature for feature in self.features if feature.is_sequence]


class SequenceEmbedding(BaseModule):
    """Look up the sequence groups of one data group.

    Tables are shared by name over all the groups, and held in one collection per width (`ec_dict.<width>`).

    Args:
        groups: the groups; all features are of `data_group`.
        data_group: the part of the batch that they read.
        device: where the parameters are made.

    Raises:
        ConfigError: features describe a table that they share differently.
    """

    def __init__(self, groups: Sequence[SequenceGroup], data_group: str, device: torch.device) -> None:
        super().__init__()
        self._groups = list(groups)
        self._data_group = data_group
        self._tables: dict[tuple[str, str], str] = {}
        table_set = TableSet()
        for group in groups:
            for feature in group.features:
                if feature.is_sparse:
                    config = _table(feature, group.suffix)
                    init_fn = getattr(feature.config, "init_fn", "")
                    self._tables[group.name, feature.name] = table_set.add(feature, config, init_fn=init_fn)
        by_dim: dict[int, list[EmbeddingConfig]] = {}
        for config in table_set.configs():
            by_dim.setdefault(config.embedding_dim, []).append(config)
        self.ec_dict = nn.ModuleDict()
        self._output_names: dict[tuple[str, str], tuple[str, str]] = {}
        for dim, configs in by_dim.items():
            collection = EmbeddingCollection(tables=configs, device=table_device(device))
            table_set.freeze(collection.embeddings)
            self.ec_dict[str(dim)] = collection
            for key, name in embedding_names(configs).items():
                self._output_names[key] = (str(dim), name)
        features = [feature for group in groups for feature in group.features]
        self._has_dense_query = any(not f.is_sparse and not f.is_sequence for f in features)
        self._has_multi_value = any(f.is_multi_value_sequence for f in features)
        self._has_weighted_query = any(f.is_weighted for f in features)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Embed the groups.

        Returns:
            For each group g: "g.query" (B, sum of widths) if it has a query; "g.sequence" (B, T, sum of
            widths), zeros after a row's last step, T = longest row of the first sequence feature, or (N, sum
            of widths) for a jagged group; "g.sequence_length" (B,) int64.
        """
        looked_up: dict[str, dict[str, JaggedTensor]] = {}
        for dim, collection in self.ec_dict.items():
            looked_up[dim] = collection(batch.sparse_features[self._data_group])
        dense = jagged.split_columns(batch.dense_features[self._data_group]) if self._has_dense_query else {}
        multi_value = {}
        if self._has_multi_value:
            multi_value = batch.sequence_mulval_lengths[self._data_group].to_dict()
        ids = batch.sparse_features[self._data_group].to_dict() if self._has_weighted_query else {}

        outputs: dict[str, Tensor] = {}
        for group in self._groups:
            embedded = {}
            for feature in group.features:
                if feature.is_sparse:
                    dim, name = self._output_names[feature.name, self._tables[group.name, feature.name]]
                    embedded[feature.name] = looked_up[dim][name]
            if group.query:
                parts = [_query_vector(f, embedded[f.name], ids) if f.is_sparse else dense[f.name] for f in group.query]
                outputs[f"{group.name}.query"] = jagged.join_columns(parts)
            steps = [
                _embedded_steps(f, embedded[f.name], multi_value)
                if f.is_sparse
                else _dense_steps(batch.sequence_dense_features[f.name])
                for f in group.sequence
            ]
            outputs[f"{group.name}.sequence"] = _join_steps(group, steps)
            outputs[f"{group.name}.sequence_length"] = steps[0][1].long()
        return outputs


def _table(feature: BaseFeature, suffix: str) -> EmbeddingConfig:
    config = feature.emb_config
    assert config is not None, feature.name
    return replace(config, name=f"{config.name}_{suffix}") if suffix else config


def _query_vector(feature: BaseFeature, embedded: JaggedTensor, ids: dict[str, JaggedTensor]) -> Tensor:
    """(B, D): the first id of a single-value feature, else the ids pooled."""
    values = embedded.values()
    if feature.is_weighted:
        values = values * ids[feature.name].weights().unsqueeze(1)
    if feature.value_dim == 1:
        return jagged.first_of_rows(values, embedded.lengths())
    return jagged.pool_rows(values, embedded.lengths(), feature.pooling_type == PoolingType.MEAN)


def _embedded_steps(
    feature: BaseFeature, embedded: JaggedTensor, multi_value: dict[str, JaggedTensor]
) -> tuple[Tensor, Tensor]:
    """Values (N, D) and lengths (B,); the ids of a multi-value step are pooled."""
    if not feature.is_multi_value_sequence:
        return embedded.values(), embedded.lengths()
    steps = multi_value[feature.name]
    is_mean = feature.pooling_type == PoolingType.MEAN
    return jagged.pool_rows(embedded.values(), steps.values(), is_mean), steps.lengths()


def _dense_steps(steps: JaggedTensor) -> tuple[Tensor, Tensor]:
    return steps.values(), steps.lengths()


def _join_steps(group: SequenceGroup, steps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The group's features side by side; members of one sequence_feature are padded in one go."""
    features = group.sequence
    names = [feature.name for feature in features]
    first_lengths = steps[0][1]
    if group.is_jagged:
        return jagged.concat_steps([values for values, _ in steps], names)
    num_steps = jagged.longest(first_lengths)
    if all(f.is_grouped_sequence and f.sequence_name == features[0].sequence_name for f in features):
        return jagged.pad_rows(jagged.concat_steps([values for values, _ in steps], names), first_lengths, num_steps)
    return torch.cat([jagged.pad_rows(values, lengths, num_steps) for values, lengths in steps], dim=2)
