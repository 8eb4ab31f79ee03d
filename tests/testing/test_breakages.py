"""Breaking one rule of the kit makes exactly the check that names it fail; and every check has been broken so."""

import importlib
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
from breakages import broken_copy, claims, failures

import tzrec_core.testing
from tzrec_core.config.unsupported import REFUSED
from tzrec_core.plugins import Trait
from tzrec_core.testing import conformance
from tzrec_core.testing.check import checks

CHECKS = [check for kind in ("plugin", "model") for check in checks(kind, slow=True)]
# Their BREAKAGES: check -> what breaks it, the first with nothing else broken.
MODULES = ("test_packaging", "test_model_checks", "test_rank_checks", "test_export_checks")
FIRST = [
    (name, several[0])
    for module in MODULES
    for name, several in importlib.import_module(module).BREAKAGES.items()  # of files beside this one
]
EXAMPLE = "tzrec_deepfm/examples/tiny.config"
FORMATS = ("SHARDED", "TORCH_EXPORT", "AOTI", "SCRIPT", "QUANT")
HEALTHY = {
    "as it is": {},
    "with batch norm": {
        **claims(*FORMATS, "ONNX", "BATCH_STATS"),
        EXAMPLE: [("hidden_units: [32, 16]", "hidden_units: [32, 16] use_bn: true")],
    },
    "with a sequence": {  # whose operators torch.onnx does not know
        **claims(*FORMATS, "ROWWISE_LOSS", "SEQUENCE"),
        EXAMPLE: [
            (
                "model_config {",
                'feature_configs { sequence_id_feature { feature_name: "clicks" expression: "user:clicks"\n'
                "  sequence_length: 5 hash_bucket_size: 100 embedding_dim: 8 } }\nmodel_config {",
            ),
            (
                '"age", "score"] }',
                '"age", "score"]\n    sequence_groups { group_name: "hist" feature_names: "clicks" }\n'
                '    sequence_encoders { pooling_encoder { input: "hist" pooling_type: "mean" } } }',
            ),
        ],
    },
}


@pytest.fixture(autouse=True)
def refused_again_afterwards():
    with mock.patch.dict(REFUSED):
        yield


@pytest.fixture
def needs_all():
    """A check is skipped, and does not fail, where the machine lacks what it needs."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")


def test_every_check_has_a_breakage():
    assert {check.name for check in CHECKS} == {name for name, _ in FIRST}


def test_every_trait_is_proved_by_a_check():
    assert {check.trait for check in CHECKS} == {*Trait, None}


def test_every_module_with_checks_is_part_of_the_kit():
    folder = Path(tzrec_core.testing.__file__).parent
    found = {file.stem for file in folder.glob("*.py") if re.search(r"^@(plugin|model)_check", file.read_text(), re.M)}
    assert found == {check.run.__module__.rpartition(".")[2] for check in CHECKS}
    assert found <= set(vars(conformance))


@pytest.mark.slow
@pytest.mark.parametrize(("check", "breakage"), FIRST, ids=[name for name, _ in FIRST])
def test_a_broken_rule_makes_the_check_that_names_it_fail_and_no_other(check, breakage, tmp_path, needs_all):
    with broken_copy(tmp_path, breakage.changes) as subject:
        is_of_model = check in {check.name for check in checks("model", slow=True)}
        assert set(failures(subject, slow=is_of_model)) == {check, *breakage.also}


@pytest.mark.slow
@pytest.mark.parametrize("changes", HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_copy_passes_all(changes, tmp_path, needs_all):
    with broken_copy(tmp_path, changes) as subject:
        assert failures(subject, slow=True) == {}
