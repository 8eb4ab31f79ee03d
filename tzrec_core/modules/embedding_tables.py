"""Which embedding tables a set of features needs, and which features share one."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import torch
from torch import nn
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS, BaseEmbeddingConfig

from tzrec_core.errors import ConfigError
from tzrec_core.features import BaseFeature

_NO_MEMORY = re.compile(r"memory|overflow", re.IGNORECASE)


class TableSet:
    """The tables of one kind (pooled or per step) and one data group; features that name one table share it.

    A table stands where the first feature that uses it was added.
    """

    def __init__(self) -> None:
        self._configs: dict[str, BaseEmbeddingConfig] = {}
        self._owners: dict[str, BaseFeature] = {}
        self._init_fns: dict[str, str] = {}

    def add(self, feature: BaseFeature, config: BaseEmbeddingConfig, *, init_fn: str = "") -> str:
        """Add a feature's table, or the feature to the table that it shares.

        Args:
            feature: the feature that looks up in the table.
            config: the table as this feature needs it.
            init_fn: the text of the initialiser behind `config.init_fn`; empty = torchrec's default.

        Returns:
            The table's name.

        Raises:
            ConfigError: another feature describes a table of this name differently, or the name has a dot.
        """
        name = config.name
        if "." in name:
            raise ConfigError(
                f"feature {feature.name!r}: its embedding table {name!r} has a dot in its name, which "
                "parameter names cannot carry. Set another embedding_name."
            )
        if name not in self._configs:
            self._configs[name] = replace(config, feature_names=[feature.name])
            self._owners[name] = feature
            self._init_fns[name] = init_fn
            return name
        shared = self._configs[name]
        self._check_equal(feature, config, init_fn)
        if init_fn and not self._init_fns[name]:
            self._init_fns[name] = init_fn
            shared.init_fn = config.init_fn
        if feature.name not in shared.feature_names:
            shared.feature_names.append(feature.name)
        return name

    def _check_equal(self, feature: BaseFeature, config: BaseEmbeddingConfig, init_fn: str) -> None:
        owner, shared = self._owners[config.name], self._configs[config.name]
        pairs = {
            "num_embeddings": (shared.num_embeddings, config.num_embeddings),
            "embedding_dim": (shared.embedding_dim, config.embedding_dim),
            "data_type": (shared.data_type.value, config.data_type.value),
            "pooling": tuple(getattr(c, "pooling", None) and c.pooling.value.lower() for c in (shared, config)),
            "trainable": (owner.trainable, feature.trainable),
        }
        if init_fn and self._init_fns[config.name]:
            pairs["init_fn"] = (self._init_fns[config.name], init_fn)
        different = [f"{field} {old!r} against {new!r}" for field, (old, new) in pairs.items() if old != new]
        if different:
            raise ConfigError(
                f"features {owner.name!r} and {feature.name!r} share the embedding table {config.name!r} "
                f"but differ in {', '.join(different)}. Make them equal, or give one another embedding_name."
            )

    def configs(self) -> list[BaseEmbeddingConfig]:
        """The tables, in the order in which they were first needed."""
        return list(self._configs.values())

    def freeze(self, tables: nn.ModuleDict) -> None:
        """Stop the gradient of the tables whose features say `trainable: false`.

        Args:
            tables: the modules of (some of) these tables, by table name.
        """
        for name, module in tables.items():
            if not self._owners[name].trainable:
                module.weight.requires_grad_(False)


_on_meta: ContextVar[bool] = ContextVar("_on_meta", default=False)


@contextmanager
def tables_on_meta() -> Iterator[None]:
    """Make the tables of models that are built in the block without storage, for sharding; nothing else."""
    token = _on_meta.set(True)
    try:
        yield
    finally:
        _on_meta.reset(token)


def table_device(device: torch.device) -> torch.device:
    """Where to make the tables of a module that lives on `device`."""
    return torch.device("meta") if _on_meta.get() else device


@contextmanager
def allocating(configs: Iterable[BaseEmbeddingConfig]) -> Iterator[None]:
    """Build these tables in the block.

    Raises:
        ConfigError: memory does not hold them; names the largest.
    """
    try:
        yield
    except (RuntimeError, TypeError, MemoryError) as error:
        configs = list(configs)
        if not configs or not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        largest = max(configs, key=_gib)
        raise ConfigError(
            f"the embedding tables do not fit into memory. The largest is {largest.name!r} of feature "
            f"{largest.feature_names[0]!r}: {largest.num_embeddings} rows x {largest.embedding_dim} = "
            f"{_gib(largest):,.1f} GiB, of {sum(map(_gib, configs)):,.1f} GiB together. Lower its "
            f"hash_bucket_size or num_buckets, or its embedding_dim"
        ) from None


def _gib(config: BaseEmbeddingConfig) -> float:
    return config.num_embeddings * config.embedding_dim * DATA_TYPE_NUM_BITS[config.data_type] / 8 / 2**30


def embedding_names(configs: Iterable[BaseEmbeddingConfig]) -> dict[tuple[str, str], str]:
    """How a torchrec collection of these tables names its outputs, by (feature, table)."""
    configs = list(configs)
    num_tables: dict[str, int] = {}
    for config in configs:
        for feature_name in config.feature_names:
            num_tables[feature_name] = num_tables.get(feature_name, 0) + 1
    return {
        (feature_name, config.name): feature_name if num_tables[feature_name] == 1 else f"{feature_name}@{config.name}"
        for config in configs
        for feature_name in config.feature_names
    }
