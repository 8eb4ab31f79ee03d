"""Fast checks of the graphs that torch makes of a model, over its packaged example and drawn rows."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torchrec.fx import Tracer

from tzrec_core.data import DataParser
from tzrec_core.features import BaseFeature
from tzrec_core.models import ScriptWrapper
from tzrec_core.plugins import Trait
from tzrec_core.testing.asserts import assert_same_predictions
from tzrec_core.testing.batches import with_nulls
from tzrec_core.testing.check import model_check
from tzrec_core.testing.subject import ModelSubject
from tzrec_core.testing.tables import make_rows

_NUM_ROWS = 16
# A graph may add up in another order.
_RTOL, _ATOL = 1e-4, 1e-5
_LEAF_MODULES = ["EmbeddingBagCollection", "EmbeddingCollection"]


@model_check
def check_fx_trace(model: ModelSubject) -> None:
    """torch.fx traces it, as pipelines on GPUs and scripting do, and the graph predicts what it predicts."""
    config = model.config()
    wrapper, parser = _script_wrapper(model, config), DataParser(model.features(config))
    graph = torch.fx.GraphModule(wrapper, Tracer(leaf_modules=_LEAF_MODULES).trace(wrapper))
    for num_rows in (_NUM_ROWS, 2 * _NUM_ROWS + 1):
        flat = parser.parse(make_rows(config, num_rows, gaps=False))
        with torch.no_grad():
            want, got = wrapper(flat), graph(flat, torch.device("cpu"))
        assert_same_predictions(got, want, rtol=_RTOL, atol=_ATOL, what=f"the graph, of {num_rows} rows:")


@model_check(trait=Trait.TORCH_EXPORT)
def check_torch_export(model: ModelSubject) -> None:
    """torch.export makes a program of any number of rows and ids that predicts what it predicts."""
    config = model.config()
    wrapper = _script_wrapper(model, config)
    features = wrapper.model.get_features_in_feature_groups(config.model_config.feature_groups)
    parser, rows = DataParser(features), make_rows(config, gaps=False)
    program = export_program(wrapper, parser.parse(rows)).module()
    for table in (rows, rows.slice(0, 1), make_rows(config, 3 * _NUM_ROWS, seed=1), with_nulls(rows, config)):
        flat = parser.parse(table)
        with torch.no_grad():
            want, got = wrapper(flat), program(flat)
        assert_same_predictions(got, want, rtol=_RTOL, atol=_ATOL, what=f"the program, of {table.num_rows} rows:")


def export_program(wrapper: ScriptWrapper, data: Mapping[str, Tensor]) -> ExportedProgram:
    """The program that torch.export makes of a model, for any number of rows >= 1 and of ids.

    Args:
        wrapper: in eval mode.
        data: two rows or more of the features that the model's groups use, as `DataParser.parse` gives them.
    """
    shapes: dict[str, dict[int, Any]] = {}  # Any: a Dim, which torch has no type for
    for feature in wrapper.model.get_features_in_feature_groups(wrapper.model._feature_groups):
        shapes |= {f"{feature.name}.{part}": {0: dim} for part, dim in _dims(feature).items()}
    with torch.no_grad():
        return torch.export.export(wrapper, (dict(data),), dynamic_shapes=(shapes,), strict=False)


def _dims(feature: BaseFeature) -> dict[str, Any]:
    """The first dimension of each tensor of a feature, for torch.export, whose own choice starts at 2."""
    rows = Dim("rows", min=1)
    ids = Dim(f"ids_{feature.name}", min=0)
    steps = Dim(f"steps_{feature.sequence_name or feature.name}", min=0)
    if feature.is_multi_value_sequence:
        return {"values": ids, "key_lengths": steps, "seq_lengths": rows}
    if feature.is_sequence:
        return {"values": steps, "lengths": rows}
    if feature.is_sparse:
        weights = {"weights": ids} if feature.is_weighted else {}
        return {"values": ids, "lengths": rows, **weights}
    return {"values": rows}


def _script_wrapper(model: ModelSubject, config: Any) -> ScriptWrapper:
    return ScriptWrapper(model.build(config)).eval()
