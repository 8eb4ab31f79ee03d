"""The core's own manifest: what it has built in, offered through the same hook as any plugin's."""

from tzrec_core.plugins.hooks import hookimpl
from tzrec_core.plugins.spec import (
    CallbackSpec,
    FeatureSpec,
    LossSpec,
    MetricSpec,
    Output,
    ReaderSpec,
    SeqEncoderSpec,
    Spec,
    Task,
)

_RANKING = frozenset({Task.RANK, Task.MULTITASK, Task.TREE})
_MATCHING = frozenset({Task.MATCH})


def _losses() -> list[Spec]:
    def loss(name: str, cls: str, message: str, summary: str, output: Output, **kwargs: object) -> LossSpec:
        return LossSpec(
            name=name,
            target=f"tzrec_core.losses:{cls}",
            config=f"tzrec_core.protos.loss_pb2:{message}",
            summary=summary,
            output=output,
            **{"tasks": _RANKING, **kwargs},  # type: ignore[arg-type]
        )

    return [
        loss("binary_cross_entropy", "BinaryCrossEntropy", "BinaryCrossEntropy",
             "Cross entropy of one logit, with label smoothing.", Output.BINARY),
        loss("binary_focal_loss", "BinaryFocalLoss", "BinaryFocalLoss",
             "Cross entropy that weighs hard rows more.", Output.BINARY),
        loss("softmax_cross_entropy", "SoftmaxCrossEntropy", "SoftmaxCrossEntropy",
             "Cross entropy over classes or candidates, with label smoothing.", Output.SOFTMAX,
             num_class=(2, None), tasks=_RANKING | _MATCHING),
        loss("jrc_loss", "JRCLoss", "JRCLoss", "Ranks within a session and calibrates at once.", Output.SOFTMAX,
             num_class=(2, 2), grouping_field="session_name"),
        loss("l2_loss", "L2Loss", "L2Loss", "Squared error of a real number.", Output.VALUE),
    ]  # fmt: skip


def _metrics() -> list[Spec]:
    def metric(name: str, cls: str, message: str, summary: str, *outputs: Output, **kwargs: object) -> MetricSpec:
        return MetricSpec(
            name=name,
            target=f"tzrec_core.metrics:{cls}",
            config=f"tzrec_core.protos.metric_pb2:{message}",
            summary=summary,
            outputs=outputs,
            **{"tasks": _RANKING, **kwargs},  # type: ignore[arg-type]
        )

    binary, softmax, value = Output.BINARY, Output.SOFTMAX, Output.VALUE
    return [
        metric("auc", "AUC", "AUC", "Area under the ROC curve.", binary, train=True),
        metric("multiclass_auc", "MulticlassAUC", "MulticlassAUC", "One-vs-rest AUC over classes.", softmax),
        metric("accuracy", "Accuracy", "Accuracy", "Share of rows with the right class.", binary, softmax, train=True),
        metric("mean_absolute_error", "MeanAbsoluteError", "MeanAbsoluteError", "Mean |y - label|.", value, train=True),
        metric("mean_squared_error", "MeanSquaredError", "MeanSquaredError", "Mean (y - label)^2.", value, train=True),
        metric("grouped_auc", "GroupedAUC", "GroupedAUC", "Mean AUC over groups.", binary,
               grouping_field="grouping_key"),
        metric("xauc", "XAUC", "XAUC", "Share of pairs of values in the right order.", value, train=True),
        metric("grouped_xauc", "GroupedXAUC", "GroupedXAUC", "XAUC within groups, weighted by size.", value,
               grouping_field="grouping_key"),
        metric("normalized_entropy", "NormalizedEntropy", "NormalizedEntropy",
               "Cross entropy over the entropy of the mean label.", binary),
        metric("logloss", "LogLoss", "LogLoss", "Mean cross entropy of the predicted probability.", binary),
        metric("calibration", "Calibration", "Calibration", "Mean prediction over mean label.", binary),
        metric("recall_at_k", "RecallAtK", "RecallAtK", "Share of rows whose positive is in the top K.",
               Output.SIMILARITY, tasks=_MATCHING, train=True),
    ]  # fmt: skip


def _seq_encoders() -> list[Spec]:
    def encoder(name: str, cls: str, message: str, summary: str) -> SeqEncoderSpec:
        return SeqEncoderSpec(
            name=name,
            target=f"tzrec_core.modules.sequence:{cls}",
            config=f"tzrec_core.protos.seq_encoder_pb2:{message}",
            summary=summary,
        )

    return [
        encoder("din_encoder", "DINEncoder", "DINEncoder", "Attention by an MLP on query and step."),
        encoder("simple_attention", "SimpleAttention", "SimpleAttention", "Dot-product attention."),
        encoder("pooling_encoder", "PoolingEncoder", "PoolingEncoder", "Mean or sum over the steps."),
        encoder("self_attention_encoder", "SelfAttentionEncoder", "SelfAttentionEncoder", "Multi-head self attention."),
        encoder("multi_window_din_encoder", "MultiWindowDINEncoder", "MultiWindowDINEncoder",
                "DIN per window of steps."),
    ]  # fmt: skip


def _features() -> list[Spec]:
    def feature(name: str, cls: str, summary: str) -> FeatureSpec:
        return FeatureSpec(name=name, target=f"tzrec_core.features.{name}:{cls}", summary=summary)

    return [
        feature("id_feature", "IdFeature", "Ids: hashed, numbered, or from a vocabulary."),
        feature("raw_feature", "RawFeature", "Numbers, as they are or bucketed."),
        feature("combo_feature", "ComboFeature", "Crosses of several columns."),
        feature("lookup_feature", "LookupFeature", "The value of a key in a map."),
        feature("match_feature", "MatchFeature", "The value of two keys in a nested map."),
        feature("expr_feature", "ExprFeature", "An arithmetic expression over columns."),
        feature("overlap_feature", "OverlapFeature", "How much two texts share."),
        feature("tokenize_feature", "TokenizeFeature", "Token ids of a text."),
        feature("kv_dot_product", "KvDotProduct", "Dot product of two sparse vectors."),
        feature("bool_mask_feature", "BoolMaskFeature", "Values selected by a mask."),
        feature("combine_feature", "CombineFeature", "A column's values mapped to numbers and combined."),
    ]


def _readers() -> list[Spec]:
    return [
        ReaderSpec(name="ParquetDataset", target="tzrec_core.data.readers.parquet:ParquetReader",
                   summary="Parquet files on any fsspec path."),
        ReaderSpec(name="CsvDataset", target="tzrec_core.data.readers.csv:CsvReader",
                   summary="CSV files on any fsspec path."),
    ]  # fmt: skip


def _callbacks() -> list[Spec]:
    def callback(name: str, cls: str, summary: str, config: str = "") -> CallbackSpec:
        target = f"tzrec_core.engine.callbacks.{name}:{cls}"
        return CallbackSpec(name=name, target=target, config=config, summary=summary)

    return [
        callback("progress", "Progress", "A live bar in a terminal, lines elsewhere."),
        callback("metrics_log", "MetricsLog", "All numbers of a run in metrics.jsonl."),
        callback("tensorboard", "TensorBoard", "TensorBoard events; train_config.use_tensorboard."),
        callback("health", "Health", "Warnings about a run that does not learn, with likely causes."),
        callback("profiler", "Profiler", "A trace of a few steps; train_config.is_profiling."),
        callback("early_stopping", "EarlyStopping", "Stops when a metric no longer improves.",
                 "tzrec_core.protos.train_pb2:EarlyStopping"),
    ]  # fmt: skip


@hookimpl
def tzrec_specs() -> list[Spec]:
    """Everything the core offers."""
    return [*_losses(), *_metrics(), *_seq_encoders(), *_features(), *_readers(), *_callbacks()]
