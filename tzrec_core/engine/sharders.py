"""How torchrec splits the embedding tables of a model over processes, and where their first values come from."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ModuleSharder
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, PoolingType

from tzrec_core.config.validate import SHARDING_TYPES
from tzrec_core.engine.shards import local_shards

# Not data_parallel and its kernel `dense`: torchrec leaves the copies of such a table to a dense optimizer.
_POOLED_TYPES = SHARDING_TYPES[:-1]
# Split by rows, a mean is a sum that torchrec divides afterwards: in grid_shard not at all, and in the others it also
# divides sums of the collection's other tables.
_MEAN_TYPES = ("table_wise", "column_wise", "table_column_wise")
_SEQUENCE_TYPES = ("table_wise", "row_wise", "column_wise")
_KERNELS = {"cpu": ("fused",), "cuda": ("fused", "fused_uvm_caching", "fused_uvm")}

_META = torch.device("meta")
_OPTIMIZER_ATTRIBUTES = ("_optimizer_classes", "_optimizer_kwargs")  # what torchrec reads off a table
_BLOCK = 2**26  # elements of a table drawn at once, when the whole does not fit into memory


def possible_sharding_types(collection: nn.Module, table: BaseEmbeddingConfig) -> tuple[str, ...]:
    """The ways to split a table of a collection."""
    if isinstance(collection, EmbeddingCollection):
        return _SEQUENCE_TYPES
    return _MEAN_TYPES if getattr(table, "pooling", None) == PoolingType.MEAN else _POOLED_TYPES


def possible_compute_kernels(device_type: str) -> tuple[str, ...]:
    """The kernels of a table on `cpu` or `cuda`."""
    return _KERNELS[device_type]


def collections_of(model: nn.Module) -> dict[str, EmbeddingBagCollection | EmbeddingCollection]:
    """The unsharded collections of tables of a model, by path."""
    kinds = (EmbeddingBagCollection, EmbeddingCollection)
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds)}


def tables_of(
    collection: EmbeddingBagCollection | EmbeddingCollection,
) -> Iterator[tuple[BaseEmbeddingConfig, nn.Parameter]]:
    """The tables of a collection with their parameters."""
    if isinstance(collection, EmbeddingBagCollection):
        for config in collection.embedding_bag_configs():
            yield config, collection.embedding_bags[config.name].weight
    else:
        for config in collection.embedding_configs():
            yield config, collection.embeddings[config.name].weight


def all_tables(model: nn.Module) -> Iterator[tuple[BaseEmbeddingConfig, nn.Parameter]]:
    """The tables of all unsharded collections of a model."""
    for collection in collections_of(model).values():
        yield from tables_of(collection)


class _OurSharder:
    """What both sharders below add to torchrec's: our choices, and first values that do not depend on the plan.

    Tables get the values of the unsharded ones, which are then given up; meanwhile a collection is there twice. Tables
    on the meta device are there once: they are drawn block by block, the same values for any number of processes, a
    function of torch's seed and the table's place in the model.
    """

    sharding_type_names: tuple[str, ...]

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """The ways to split a table, before `possible_sharding_types` looks at the table."""
        return list(self.sharding_type_names)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """The kernels of a device."""
        return list(possible_compute_kernels(compute_device_type))

    def shard(
        self,
        module: Any,  # the collection; the two kinds have no common base
        params: Any,  # ParameterSharding by table
        env: Any,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> nn.Module:
        """Shard a collection, which loses its tables' memory."""
        with torch.random.fork_rng(devices=[]):  # FBGEMM draws values, more or fewer on each rank
            sharded: nn.Module = super().shard(  # type: ignore[misc]
                _without_values(module), params, env, device, module_fqn
            )
        targets = {name.split(".")[1]: (name, tensor) for name, tensor in sharded.state_dict().items()}
        with torch.no_grad():
            for config, source in tables_of(module):
                name, target = targets[config.name]
                for offsets, shard in local_shards(target):
                    if shard.numel():
                        _fill(shard, offsets, source, config, f"{module_fqn}.{name}")
                source.data = source.new_empty(0)
        return sharded


class PooledSharder(_OurSharder, EmbeddingBagCollectionSharder):
    """Shards the tables of DEEP and WIDE groups, on CPUs in every way that CUDA devices can."""

    sharding_type_names = _POOLED_TYPES


class SequenceSharder(_OurSharder, EmbeddingCollectionSharder):
    """Shards the tables of sequence groups."""

    sharding_type_names = _SEQUENCE_TYPES


def create_sharders() -> list[ModuleSharder[nn.Module]]:
    """The sharders of a run; tables without an optimizer of their own stand still."""
    still = {"learning_rate": 0.0}
    sharders: list[Any] = [PooledSharder(fused_params=still), SequenceSharder(fused_params=dict(still))]
    return sharders


def materialise_tables(model: nn.Module) -> None:
    """Give tables that are on the meta device, and are not to be sharded, the values that they would have in shards."""
    for path, collection in collections_of(model).items():
        lookups = collection.embedding_bags if isinstance(collection, EmbeddingBagCollection) else collection.embeddings
        for config, source in tables_of(collection):
            if source.device.type == "meta":
                values = torch.empty(source.shape, dtype=source.dtype, device="cpu")
                name = next(name for name, parameter in collection.named_parameters() if parameter is source)
                _fill(values, (0, 0), source, config, f"{path}.{name}")
                lookups[config.name].weight = nn.Parameter(values, requires_grad=source.requires_grad)


def _without_values(collection: Any) -> EmbeddingBagCollection | EmbeddingCollection:
    """The same collection on the meta device.

    From the real one torchrec would load the tables all at once, or (pooled, on CPUs) not at all, and for every shard
    it would call an `init_fn`, of which those that ask for two dimensions fail on an empty shard.
    """
    tables = [replace(config, init_fn=_leave) for config, _ in tables_of(collection)]
    twin: EmbeddingBagCollection | EmbeddingCollection
    if isinstance(collection, EmbeddingBagCollection):
        twin = EmbeddingBagCollection(tables=tables, is_weighted=collection.is_weighted(), device=_META)
    else:
        twin = EmbeddingCollection(tables=tables, device=_META)
    for (_, parameter), (_, source) in zip(tables_of(twin), tables_of(collection)):
        parameter.requires_grad_(source.requires_grad)
        for name in _OPTIMIZER_ATTRIBUTES:
            if hasattr(source, name):
                setattr(parameter, name, getattr(source, name))
    return twin


def _leave(parameter: Tensor) -> Tensor:
    return parameter


def _fill(
    shard: Tensor, offsets: tuple[int, ...], source: nn.Parameter, config: BaseEmbeddingConfig, place: str
) -> None:
    """Write a table's first values into a shard of it."""
    row, column = offsets
    columns = slice(column, column + shard.size(1))
    if source.device.type != "meta":
        shard.copy_(source[row : row + shard.size(0), columns])
        return
    rows_per_block = max(1, _BLOCK // config.embedding_dim)
    for block in range(row // rows_per_block, (row + shard.size(0) - 1) // rows_per_block + 1):
        start = block * rows_per_block
        values = _draw(min(rows_per_block, config.num_embeddings - start), source.dtype, config, f"{place}.{block}")
        first, last = max(row, start), min(row + shard.size(0), start + values.size(0))
        shard[first - row : last - row].copy_(values[first - start : last - start, columns])


def _draw(num_rows: int, dtype: torch.dtype, config: BaseEmbeddingConfig, place: str) -> Tensor:
    values = torch.empty(num_rows, config.embedding_dim, dtype=dtype, device="cpu")
    with torch.random.fork_rng(devices=[]):
        # of a seed torch's CPU generator looks at 32 bits
        torch.manual_seed(zlib.crc32(f"{torch.initial_seed()} {place}".encode()))
        assert config.init_fn is not None
        config.init_fn(values)
    return values
