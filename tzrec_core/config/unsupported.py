"""Settings that parse, so that every TorchEasyRec config loads, but that nothing here acts on yet: refused."""

from collections.abc import Collection, Iterator
from typing import Any

from google.protobuf.message import Message

from tzrec_core.config.walk import messages_in
from tzrec_core.errors import ConfigError
from tzrec_core.protos.data_pb2 import DataConfig, DatasetType

_FEATURES = (
    "IdFeature", "RawFeature", "ComboFeature", "CombineFeature", "LookupFeature", "MatchFeature", "ExprFeature",
    "OverlapFeature", "TokenizeFeature", "KvDotProduct", "CustomFeature", "BoolMaskFeature",
)  # fmt: skip

# Message.field, or Message.field=VALUE -> what it would be, and what to do.
REFUSED: dict[str, str] = {
    **{
        f"TrainConfig.{name}": "checkpoints by event time need a reader plugin whose rows carry timestamps, which "
        "readers cannot give yet; use save_checkpoints_steps or save_checkpoints_epochs"
        for name in ("save_checkpoints_timestamp_interval", "save_checkpoints_timestamps",
                     "save_checkpoints_timestamp_quorum")
    },
    "TrainConfig.delta_embedding_dump_config": "dumping changed embeddings is not supported yet; FeatureStore needs a "
    "plugin that offers it; remove it",
    **dict.fromkeys(
        ("ModelConfig.use_pareto_loss_weight", "TaskTower.pareto_min_loss_weight",
         "BayesTaskTower.pareto_min_loss_weight", "InterventionTaskTower.pareto_min_loss_weight"),
        "weighing losses by Pareto efficiency is not supported yet; remove it",
    ),
    "ModelConfig.kernel=TRITON": "only PYTORCH kernels are built in so far; remove the line",
    "ModelConfig.kernel=CUTLASS": "only PYTORCH kernels are built in so far; remove the line",
    "LossConfig.recon_loss": "it comes with the models of semantic ids, which are not supported yet; remove it",
    "LossConfig.commitment_loss": "it comes with the models of semantic ids, which are not supported yet; remove it",
    "LossConfig.contrastive_loss": "it comes with the models of semantic ids, which are not supported yet; remove it",
    "DataConfig.force_base_data_group": "it says where sampled items go, but sampling negatives is not "
    "supported yet; remove it",
    "DataConfig.sample_mask_prob": "masking samples is not supported yet; remove it",
    "DataConfig.negative_sample_mask_prob": "masking samples is not supported yet; remove it",
    "DataConfig.sample_cost_field": "batches by cost are not supported yet; remove it and set batch_size",
    "DataConfig.batch_cost_size": "batches by cost are not supported yet; remove it and set batch_size",
    "DataConfig.plugin": "sampling negatives is not supported yet; it comes with the matching models",
    **{
        f"DataConfig.{name}": "sampling negatives is not supported yet; it comes with the matching models"
        for name in ("negative_sampler", "negative_sampler_v2", "hard_negative_sampler", "hard_negative_sampler_v2",
                     "tdm_sampler")
    },
    **{
        f"{feature}.{name}": f"{what} is not supported yet; use hash_bucket_size"
        for feature in _FEATURES
        for name, what in (("zch", "zero-collision hashing"), ("dynamicemb", "a table that grows"))
    },
    **{
        f"{feature}.{name}": f"{what} is not supported yet; remove it"
        for feature in _FEATURES
        for name, what in (("use_mask", "masking a feature"), ("fg_value_type", "choosing a value type"),
                           ("asset_dir", "a folder of assets"), ("tokens_as_sequence", "a sequence of tokens"))
    },
}  # fmt: skip


def refused_settings(config: Message, path: str = "", *, but: Collection[str] = ()) -> Iterator[str]:
    """One line, starting with the field's path, for every refused setting that differs from its default.

    Args:
        config: a config, or a part of one.
        path: where the part stands, such as `model_config`.
        but: names of fields to let pass, because something else answers for them.
    """
    for place, message in messages_in(config, path):
        for field, value in message.ListFields():
            is_default = not field.is_repeated and field.message_type is None and value == field.default_value
            if not is_default and field.name not in but:
                yield from _refused(message, field, value, f"{place}.{field.name}" if place else field.name)


def refuse_unsupported(config: Message, path: str) -> None:
    """Refuse a part of a config that nobody has validated.

    Args:
        config: the part.
        path: where it stands, such as `model_config`.

    Raises:
        ConfigError: all that `refused_settings` finds.
    """
    if problems := list(refused_settings(config, path)):
        raise ConfigError(problems)


def _refused(config: Message, field: Any, value: Any, path: str) -> Iterator[str]:
    key = f"{config.DESCRIPTOR.name}.{field.name}"
    if key in REFUSED:
        yield f"{path}: {REFUSED[key]}"
    name = field.enum_type.values_by_number[value].name if field.enum_type and not field.is_repeated else value
    if f"{key}={name}" in REFUSED:
        yield f"{path} = {name}: {REFUSED[f'{key}={name}']}"


_CLOUD = {
    "OdpsDataset": "MaxCompute tables",
    "OdpsDatasetV1": "MaxCompute tables",
    "KafkaDataset": "Kafka topics",
}


def reader_problem(data_config: DataConfig) -> str:
    """Why nothing can read `data_config.dataset_type`, which only a plugin could; empty when something can."""
    name = DatasetType.Name(data_config.dataset_type)
    if data_config.HasField("reader") or name not in _CLOUD:
        return ""
    return (
        f"data_config.dataset_type = {name}: {_CLOUD[name]} are read by a plugin that offers a ReaderSpec, chosen in "
        "data_config.reader. Built in are ParquetDataset and CsvDataset"
    )
