import pytest
from torch import nn
from torchmetrics import MeanMetric

from tzrec_core.builtin import tzrec_specs
from tzrec_core.engine.directions import direction_of, directions
from tzrec_core.metrics import AUC, Calibration, LogLoss
from tzrec_core.models import BaseModel
from tzrec_core.plugins import MetricSpec, registry

METRICS = {spec.name: spec for spec in tzrec_specs() if isinstance(spec, MetricSpec)}


class Model(BaseModel):
    def __init__(self):
        nn.Module.__init__(self)
        self._loss_modules = nn.ModuleDict({"l2_loss": nn.MSELoss()})
        metrics = {"auc_ctr": AUC(), "logloss": LogLoss(), "calibration": Calibration(), "l2_loss": MeanMetric()}
        self._metric_modules = nn.ModuleDict(metrics)


def test_metrics_say_what_is_better_and_of_losses_less_is():
    assert directions(Model()) == {"auc_ctr": True, "logloss": False, "l2_loss": False}


@pytest.mark.parametrize(("metric", "expected"), [("auc", True), ("auc_0", True), ("auc_ctr", None), ("x_0", False)])
def test_one_of_several_values_has_the_direction_of_their_metric(metric, expected):
    assert direction_of(metric, {"auc": True, "x_0": False, "x": True}) is expected


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_the_core_says_what_is_better_but_calibration_which_should_be_1(name):
    offer = registry().get(MetricSpec, name)
    assert (registry().load(offer).higher_is_better is None) is (name == "calibration")
