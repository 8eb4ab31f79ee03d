"""The slots in which a config names what a plugin offers."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tzrec_core.config import parse_config
from tzrec_core.data import create_dataloader
from tzrec_core.plugins import (
    LossSpec,
    MetricSpec,
    Output,
    Plugin,
    ReaderSpec,
    Registry,
    SeqEncoderSpec,
    use_registry,
)
from tzrec_core.testing.golden import golden_batch

PROTOS = "tzrec_core.protos"
SPECS = [
    LossSpec(name="a_loss", target="tzrec_core.losses:L2Loss", config=f"{PROTOS}.loss_pb2:L2Loss",
             summary="A loss.", output=Output.VALUE),
    MetricSpec(name="a_metric", target="tzrec_core.metrics:MeanAbsoluteError", summary="A metric.",
               config=f"{PROTOS}.metric_pb2:MeanAbsoluteError", outputs=(Output.VALUE,), train=True),
    SeqEncoderSpec(name="an_encoder", target="tzrec_core.modules.sequence:PoolingEncoder", summary="An encoder.",
                   config=f"{PROTOS}.seq_encoder_pb2:PoolingEncoder"),
    ReaderSpec(name="a_reader", target="tzrec_core.data.readers:ParquetReader", summary="A reader.",
               config=f"{PROTOS}.data_pb2:Field"),
]  # fmt: skip
FEATURES = """
feature_configs { id_feature { feature_name: "item" expression: "item:item" num_buckets: 9 embedding_dim: 4 } }
feature_configs { sequence_id_feature { feature_name: "s" expression: "user:s" sequence_length: 9 num_buckets: 9
  embedding_dim: 4 } }
"""


@pytest.fixture(autouse=True)
def _with_a_plugin():
    plugin = Plugin(name="mine", distribution="tzrec-mine", version="1", specs=SPECS)
    with use_registry(Registry([*Registry.find().plugins, plugin])):
        yield


def slot(message, settings=""):
    return f"plugin {{ [tzrec.dev/tzrec_core.protos.{message}] {{ {settings} }} }}"


def test_a_loss_a_metric_and_a_train_metric_of_a_plugin(model_of):
    groups = " ".join(
        f'feature_groups {{ group_name: "{name}" group_type: {name.upper()} feature_names: "item" }}'
        for name in ("wide", "deep")
    )
    metric = slot("MeanAbsoluteError")
    objectives = f"losses {{ {slot('L2Loss')} }} metrics {{ {metric} }} train_metrics {{ {metric} decay_step: 1 }}"
    model = model_of(
        f"{FEATURES} model_config {{ {groups} wide_and_deep {{ deep {{ hidden_units: 4 }} }} {objectives} }}"
    )
    batch = golden_batch({"labels": {"label": {"values": [1.0, 3.0]}}})
    predictions = {"y": torch.tensor([2.0, 5.0])}
    losses = model.loss(predictions, batch)
    model.update_metric(predictions, batch)
    model.update_train_metric(predictions, batch)
    assert losses["a_loss"].item() == 2.5 and model.compute_metric()["a_metric"].item() == 1.5
    assert model.compute_train_metric()["a_metric"].item() == 1.5


def test_a_sequence_encoder_of_a_plugin(embed):
    encoder = slot("PoolingEncoder", 'input: "h" pooling_type: "sum"')
    groups = f"""feature_groups {{ group_name: "g" group_type: DEEP sequence_encoders {{ {encoder} }}
    sequence_groups {{ group_name: "h" feature_names: "s" }} }}"""
    module, output = embed(f"{FEATURES} model_config {{ {groups} }}", {"item": pa.array([1]), "s": pa.array([[1, 2]])})
    (weight,) = module.parameters()
    torch.testing.assert_close(output["g"][0], weight[1] + weight[2])


def test_a_reader_of_a_plugin(tmp_path):
    pq.write_table(pa.table({"item": [1, 2]}), tmp_path / "rows.parquet")
    reader = '[tzrec.dev/tzrec_core.protos.Field] { input_name: "x" }'
    text = f"data_config {{ dataset_type: OdpsDataset num_workers: 0 label_fields: 'item' reader {{ {reader} }} }}"
    config = parse_config(text, partial=True)
    (batch,) = create_dataloader(config.data_config, [], str(tmp_path / "rows.parquet"))
    assert batch.labels["item"].tolist() == [1, 2]
