"""The manifest."""

from tzrec_core.plugins import (
    CallbackSpec,
    FeatureSpec,
    LossSpec,
    MetricSpec,
    Output,
    ReaderSpec,
    SeqEncoderSpec,
    Spec,
    hookimpl,
)


@hookimpl
def tzrec_specs() -> list[Spec]:
    """Offer one of each kind but a model."""
    return [
        LossSpec(
            name="tversky",
            target="acme_ranking.loss:Tversky",
            config="acme_ranking.config_pb2:Tversky",
            summary="Overlap of predictions and labels, false positives and negatives weighed apart.",
            output=Output.BINARY,
        ),
        MetricSpec(
            name="brier",
            target="acme_ranking.metric:Brier",
            config="acme_ranking.config_pb2:Brier",
            summary="Mean squared error of the probability.",
            train=True,
        ),
        SeqEncoderSpec(
            name="last_steps",
            target="acme_ranking.encoder:LastSteps",
            config="acme_ranking.config_pb2:LastSteps",
            summary="Mean of the last steps.",
        ),
        FeatureSpec(
            name="text_length",
            target="acme_ranking.feature:TextLength",
            summary="How many characters a text has.",
        ),
        ReaderSpec(
            name="counting",
            target="acme_ranking.reader:CountingReader",
            config="acme_ranking.config_pb2:Counting",
            summary="Rows made of thin air.",
        ),
        CallbackSpec(
            name="stop_after_rows",
            target="acme_ranking.callback:StopAfterRows",
            config="acme_ranking.config_pb2:StopAfterRows",
            summary="Ends a run after so many rows.",
        ),
    ]
