"""From a batch to what a model computes with: one tensor per feature group."""

# B rows

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, KeyedTensor
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, PoolingType

from tzrec_core.config import config_to_kwargs
from tzrec_core.data.batch import Batch
from tzrec_core.errors import ConfigError, did_you_mean
from tzrec_core.features import BaseFeature
from tzrec_core.features.init_fn import parse_init_fn
from tzrec_core.modules import jagged, regroup
from tzrec_core.modules.base import BaseModule
from tzrec_core.modules.embedding_tables import TableSet, allocating, embedding_names, table_device
from tzrec_core.modules.feature_groups import (
    encoder_input,
    encoder_settings,
    feature_group_problems,
    is_sequence_group,
    sequence_groups,
)
from tzrec_core.modules.numeric_embedding import (
    AutoDisSettings,
    NumericEmbeddingCollection,
    NumericEmbeddingConfig,
)
from tzrec_core.modules.sequence_embedding import SequenceEmbedding, SequenceGroup
from tzrec_core.plugins import registry
from tzrec_core.protos import feature_pb2, model_pb2

_DEFAULT_WIDE_DIM = 4


@dataclass(frozen=True)
class PooledGroup:
    """The plain features of a DEEP or WIDE group.

    Args:
        name: of the group.
        features: in config order.
        suffix: what `embedding_name_suffix` appends to its tables' names; empty = nothing.
        wide_dim: width of a WIDE group's tables; 0 for a DEEP group.
        wide_init_fn: initialiser of a WIDE group's tables, as text; empty = as each feature says.
    """

    name: str
    features: tuple[BaseFeature, ...]
    suffix: str = ""
    wide_dim: int = 0
    wide_init_fn: str = ""


class PooledEmbedding(BaseModule):
    """Look up the DEEP and WIDE groups of one data group.

    All tables stand in one collection, `ebc`; those of WIDE groups are apart and called `<table>_wide`. With
    weighted features the collection sums, and a feature with mean pooling gets weights divided by its number
    of ids.

    Args:
        groups: the groups; all features are of `data_group`.
        data_group: the part of the batch that they read.
        device: where the parameters are made.

    Raises:
        ConfigError: features describe a table that they share differently.
    """

    def __init__(self, groups: Sequence[PooledGroup], data_group: str, device: torch.device) -> None:
        super().__init__()
        self._data_group = data_group
        table_set = TableSet()
        sparse: dict[tuple[str, str], str] = {}
        dense: dict[str, BaseFeature] = {}
        for group in groups:
            for feature in group.features:
                if feature.is_sparse:
                    config, init_fn = _table(feature, group)
                    sparse[group.name, feature.name] = table_set.add(feature, config, init_fn=init_fn)
                else:
                    dense[feature.name] = feature
        configs = table_set.configs()
        features = {feature.name: feature for group in groups for feature in group.features}
        weighted = [name for name, feature in features.items() if feature.is_sparse and feature.is_weighted]
        self._mean_features: list[str] = []
        if weighted:
            self._mean_features = [name for c in configs if c.pooling == PoolingType.MEAN for name in c.feature_names]
            configs = [replace(config, pooling=PoolingType.SUM) for config in configs]
        self._has_sparse = bool(configs)
        if configs:
            self.ebc = EmbeddingBagCollection(tables=configs, is_weighted=bool(weighted), device=table_device(device))
            table_set.freeze(self.ebc.embedding_bags)
        self._has_dense = bool(dense)
        numeric = [feature for feature in dense.values() if feature.dense_emb_config is not None]
        self._numeric_names = [feature.name for feature in numeric]
        if numeric:
            with torch.device(device):
                self.dense_ec = NumericEmbeddingCollection([_numeric_config(feature) for feature in numeric])
        names = embedding_names(configs)
        self._keys = {
            group.name: [names[f.name, sparse[group.name, f.name]] if f.is_sparse else f.name for f in group.features]
            for group in groups
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Embed the groups: (B, sum of widths) each."""
        keyed: list[KeyedTensor] = []
        if self._has_sparse:
            ids = batch.sparse_features[self._data_group]
            if self._mean_features:
                ids = jagged.mean_weights(ids, self._mean_features)
            keyed.append(self.ebc(ids))
        numeric: dict[str, Tensor] = {}
        if self._has_dense:
            dense = batch.dense_features[self._data_group]
            keyed.append(dense)
            if self._numeric_names:
                columns = jagged.split_columns(dense)
                numeric = self.dense_ec({name: columns[name] for name in self._numeric_names})
        grouped = regroup.by_group(keyed, numeric, list(self._keys.values()))
        return {name: grouped[i] for i, name in enumerate(self._keys)}


class EmbeddingGroup(BaseModule):
    """Embed a batch's features, group by group.

    A table belongs to its name: features, also of different groups, that name the same table share it, except
    that DEEP, WIDE and sequence groups, and the data groups, have tables of their own.

    Args:
        features: all features that the groups name, and any others.
        feature_groups: what to emit.
        wide_embedding_dim: width of WIDE groups' tables; unset or 0 = 4.
        wide_init_fn: initialiser of WIDE groups' tables, such as `"nn.init.uniform_,a=-0.01,b=0.01"`; unset =
            as each feature says.
        device: where parameters are made, unset = torch's default device; `meta` leaves them unmaterialised,
            for sharding.

    Returns of `forward`:
        DEEP, WIDE group g: "g" (B, group_total_dim("g")).
        SEQUENCE group g: "g.query" (B, ...) if it has features without steps, "g.sequence" (B, T, ...) with
            zeros after a row's last step, T = longest row of the group's first sequence feature, and
            "g.sequence_length" (B,) int64.
        JAGGED_SEQUENCE group g: the same, with "g.sequence" (sum of steps, ...).

    Raises:
        ConfigError: all mistakes of the groups, see `feature_group_problems`; or features that share a table
            and differ.
    """

    def __init__(
        self,
        features: Sequence[BaseFeature],
        feature_groups: Sequence[model_pb2.FeatureGroupConfig],
        wide_embedding_dim: int | None = None,
        wide_init_fn: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        problems = feature_group_problems(features, feature_groups)
        if problems:
            raise ConfigError(problems)
        device = device if device is not None else torch.get_default_device()
        known = {feature.name: feature for feature in features}
        self._is_sequence = {group.group_name: is_sequence_group(group) for group in feature_groups}
        self._has_plain = {
            group.group_name: bool(group.feature_names) and not is_sequence_group(group) for group in feature_groups
        }
        pooled: dict[str, list[PooledGroup]] = {}
        stepped: dict[str, list[SequenceGroup]] = {}
        self._feature_dims: dict[str, dict[str, int]] = {}
        for group in feature_groups:
            if self._has_plain[group.group_name]:
                plain = _pooled_group(group, known, wide_embedding_dim, wide_init_fn)
                pooled.setdefault(plain.features[0].data_group, []).append(plain)
                self._feature_dims[group.group_name] = {f.name: plain.wide_dim or f.output_dim for f in plain.features}
            for sequence in sequence_groups(group, known):
                stepped.setdefault(sequence.features[0].data_group, []).append(sequence)
                self._feature_dims[f"{sequence.name}.query"] = {f.name: f.output_dim for f in sequence.query}
                self._feature_dims[f"{sequence.name}.sequence"] = {f.name: f.output_dim for f in sequence.sequence}
        with allocating(_tables(pooled, stepped)):
            self.emb_impls = nn.ModuleDict({dg: PooledEmbedding(groups, dg, device) for dg, groups in pooled.items()})
            self.seq_emb_impls = nn.ModuleDict(
                {dg: SequenceEmbedding(groups, dg, device) for dg, groups in stepped.items()}
            )
        self._group_name_to_seq_encoders = nn.ModuleDict()
        for group in feature_groups:
            if group.sequence_encoders:
                self._add_encoders(group, device)
        self._output_keys = {name: self._keys_of(name) for name in self._is_sequence}

    def _add_encoders(self, group: model_pb2.FeatureGroupConfig, device: torch.device) -> None:
        name = group.group_name
        dims = self._feature_dims.setdefault(name, {})
        encoders = nn.ModuleList()
        for index, config in enumerate(group.sequence_encoders):
            offer, settings = encoder_settings(config)
            source = encoder_input(group, settings)
            kwargs = {**config_to_kwargs(settings), "input": source}
            with torch.device(device):
                encoder = registry().load(offer)(
                    sequence_dim=sum(self._feature_dims[f"{name}/{source}.sequence"].values()),
                    query_dim=sum(self._feature_dims[f"{name}/{source}.query"].values()),
                    **kwargs,
                )
            encoders.append(encoder)
            dims[f"{name}_seq_encoder_{index}"] = encoder.output_dim()
        self._group_name_to_seq_encoders[name] = encoders

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Embed a batch; the class says what comes out."""
        pooled: dict[str, Tensor] = {}
        for impl in self.emb_impls.values():
            pooled.update(impl(batch))
        stepped: dict[str, Tensor] = {}
        for impl in self.seq_emb_impls.values():
            stepped.update(impl(batch))
        outputs: dict[str, Tensor] = {}
        for name, keys in self._output_keys.items():
            if self._is_sequence[name]:
                outputs.update({key: stepped[key] for key in keys})
                continue
            parts = [pooled[name]] if self._has_plain[name] else []
            if name in self._group_name_to_seq_encoders:
                parts.extend(self._encode(name, stepped))
            outputs[name] = jagged.join_columns(parts)
        return outputs

    def _encode(self, name: str, stepped: Mapping[str, Tensor]) -> list[Tensor]:
        """Run a DEEP group's encoders, which know the sequence groups without the group's name."""
        prefix = f"{name}/"
        sequences = {key.removeprefix(prefix): value for key, value in stepped.items() if key.startswith(prefix)}
        return [encoder(sequences) for encoder in self._group_name_to_seq_encoders[name]]

    def group_names(self) -> list[str]:
        """The groups, in config order."""
        return list(self._is_sequence)

    def has_group(self, group_name: str) -> bool:
        """Whether there is a group, or an output such as "g.query", of that name."""
        return group_name in self._is_sequence or group_name in self.grouped_features_keys()

    def group_dims(self, group_name: str) -> list[int]:
        """Width of each feature of "g", "g.query" or "g.sequence", in order; encoders last.

        Raises:
            ConfigError: there is no such group, or a sequence group is named without its part.
        """
        return list(self.group_feature_dims(group_name).values())

    def group_feature_dims(self, group_name: str) -> dict[str, int]:
        """As `group_dims`, by feature name; the i-th encoder of group g is called "g_seq_encoder_i"."""
        if "/" not in group_name and group_name in self._feature_dims:
            return dict(self._feature_dims[group_name])
        if self._is_sequence.get(group_name):
            raise ConfigError(
                f"feature group {group_name!r} is a sequence group: ask for '{group_name}.query' or "
                f"'{group_name}.sequence', or make its group_type DEEP."
            )
        names = self.group_names()
        raise ConfigError(
            f"{group_name!r} is not a feature group. Groups are: {', '.join(names)}.{did_you_mean(group_name, names)}"
        )

    def group_total_dim(self, group_name: str) -> int:
        """Width of "g", "g.query" or "g.sequence"; 0 for the query of a group without one."""
        return sum(self.group_dims(group_name))

    def grouped_features_keys(self) -> list[str]:
        """The keys that `forward` emits, in its order."""
        return [key for keys in self._output_keys.values() for key in keys]

    def _keys_of(self, group_name: str) -> list[str]:
        if not self._is_sequence[group_name]:
            return [group_name]
        query = [f"{group_name}.query"] if self._feature_dims[f"{group_name}.query"] else []
        return [*query, f"{group_name}.sequence", f"{group_name}.sequence_length"]

    def sparse_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The embedding tables: those that train, and those that are frozen."""
        tables = [
            parameter
            for module in self.modules()
            if isinstance(module, (EmbeddingBagCollection, EmbeddingCollection))
            for parameter in module.parameters()
        ]
        return [p for p in tables if p.requires_grad], [p for p in tables if not p.requires_grad]


def _pooled_group(
    group: model_pb2.FeatureGroupConfig,
    known: Mapping[str, BaseFeature],
    wide_embedding_dim: int | None,
    wide_init_fn: str | None,
) -> PooledGroup:
    is_wide = group.group_type == model_pb2.WIDE
    return PooledGroup(
        name=group.group_name,
        features=tuple(known[name] for name in group.feature_names),
        suffix=group.embedding_name_suffix,
        wide_dim=(wide_embedding_dim or _DEFAULT_WIDE_DIM) if is_wide else 0,
        wide_init_fn=(wide_init_fn or "") if is_wide else "",
    )


def _tables(
    pooled: Mapping[str, Sequence[PooledGroup]], stepped: Mapping[str, Sequence[SequenceGroup]]
) -> list[BaseEmbeddingConfig]:
    """Every table, once for each part of the model that has its own."""
    tables: dict[tuple[str, str, str], BaseEmbeddingConfig] = {}
    for data_group, groups in pooled.items():
        for group in groups:
            for config in (_table(feature, group)[0] for feature in group.features if feature.is_sparse):
                tables.setdefault(("pooled", data_group, config.name), config)
    for data_group, sequences in stepped.items():
        for feature in (feature for sequence in sequences for feature in sequence.features if feature.is_sparse):
            if feature.emb_config is not None:
                tables.setdefault(("stepped", data_group, feature.emb_config.name), feature.emb_config)
    return list(tables.values())


def _table(feature: BaseFeature, group: PooledGroup) -> tuple[EmbeddingBagConfig, str]:
    """The feature's table as `group` needs it, and the text of its initialiser."""
    config = feature.emb_bag_config
    assert config is not None, feature.name
    init_fn: str = group.wide_init_fn or getattr(feature.config, "init_fn", "")
    if group.wide_dim:
        config = replace(config, name=f"{config.name}_wide", embedding_dim=group.wide_dim)
    if group.wide_init_fn:
        config = replace(config, init_fn=parse_init_fn(group.wide_init_fn))
    if group.suffix:
        config = replace(config, name=f"{config.name}_{group.suffix}")
    return config, init_fn


def _numeric_config(feature: BaseFeature) -> NumericEmbeddingConfig:
    settings = feature.dense_emb_config
    autodis = None
    if isinstance(settings, feature_pb2.AutoDisEmbedding):
        autodis = AutoDisSettings(settings.num_channels, settings.temperature, settings.keep_prob)
    return NumericEmbeddingConfig(feature.name, feature.value_dim, feature.embedding_dim, autodis)
