"""Settings that parse, so that every TorchEasyRec config loads, but that nothing here acts on yet: refused."""

from collections.abc import Collection, Iterator
from typing import Any

from google.protobuf.message import Message

from tzrec_core.config.walk import messages_in
from tzrec_core.errors import ConfigError
from tzrec_core.protos.data_pb2 import DataConfig, DatasetType

_SCHEDULES = (
    "exponential_decay_learning_rate", "manual_step_learning_rate", "cosine_annealing_learning_rate",
    "cosine_annealing_warm_restarts_learning_rate",
)  # fmt: skip
_FEATURES = (
    "IdFeature", "RawFeature", "ComboFeature", "CombineFeature", "LookupFeature", "MatchFeature", "ExprFeature",
    "OverlapFeature", "TokenizeFeature", "KvDotProduct", "CustomFeature", "BoolMaskFeature",
)  # fmt: skip

# Message.field, or Message.field=VALUE -> what it would be, and what to do.
REFUSED: dict[str, str] = {
    "TrainConfig.fine_tune_checkpoint": "starting from another run's checkpoint is not supported yet; remove it",
    "TrainConfig.fine_tune_ckpt_param_map": "starting from another run's checkpoint is not supported yet; remove it",
    "TrainConfig.is_profiling": "profiling a run is not supported yet; remove it",
    "TrainConfig.tensorboard_summaries": "choosing summaries is not supported yet; loss and metrics are "
    "written; remove it",
    "TrainConfig.global_embedding_constraints": "training runs on one process, so nothing is sharded yet; remove it",
    "TrainConfig.mixed_precision=FP16": "FP16 needs gradient scaling, which is not supported yet; use BF16 or "
    "remove it",
    "TrainConfig.grad_scaler": "gradient scaling is not supported yet; remove it",
    "TrainConfig.gradient_accumulation_steps": "gradient accumulation is not supported yet; raise batch_size instead",
    "TrainConfig.grad_clipping": "gradient clipping is not supported yet; remove it",
    "TrainConfig.save_checkpoints_timestamp_interval": "checkpoints by data timestamp are not supported yet; use "
    "save_checkpoints_steps",
    "TrainConfig.save_checkpoints_timestamps": "checkpoints by data timestamp are not supported yet; use "
    "save_checkpoints_steps",
    "TrainConfig.save_checkpoints_timestamp_quorum": "checkpoints by data timestamp are not supported yet; remove it",
    "TrainConfig.delta_embedding_dump_config": "dumping changed embeddings is not supported yet; FeatureStore needs a "
    "plugin that offers it; remove it",
    "TrainConfig.callbacks": "callbacks of plugins are not supported yet; remove them",
    "DenseOptimizer.part_optimizers": "optimizers for parts of the model are not supported yet; remove them",
    "DenseOptimizer.ema": "averaging of the dense parameters is not supported yet; remove it",
    "EvalConfig.use_dense_ema": "averaging of the dense parameters is not supported yet; remove it",
    "ModelConfig.use_pareto_loss_weight": "weighing losses by Pareto efficiency is not supported yet; remove it",
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
        f"SparseOptimizer.{name}": "not supported yet; use adam_optimizer, adagrad_optimizer, "
        "rowwise_adagrad_optimizer, partial_rowwise_adam_optimizer or sgd_optimizer"
        for name in ("lars_sgd_optimizer", "lamb_optimizer", "partial_rowwise_lamb_optimizer", "adadelta_optimizer",
                     "rmsprop_optimizer")
    },
    **{
        f"{part}.{name}": "learning-rate schedules are not supported yet; use constant_learning_rate {}"
        for part in ("SparseOptimizer", "DenseOptimizer")
        for name in _SCHEDULES
    },
    **{
        f"{feature}.embedding_constraints": "training runs on one process, so nothing is sharded yet; remove it"
        for feature in _FEATURES
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
