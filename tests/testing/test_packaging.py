"""Each rule of a plugin as a package, broken on a copy of tzrec-deepfm, makes the check that names it fail.

That no other check fails is tested in test_breakages.py.
"""

import pytest
from breakages import MANIFEST, Breakage, broken_copy, failures, outcome

from tzrec_core.plugins import Trait
from tzrec_core.plugins.spec import KINDS
from tzrec_core.testing import packaging
from tzrec_core.testing.check import Outcome, checks

EXAMPLE = "tzrec_deepfm/examples/tiny.config"
PROTO = "tzrec_deepfm/config.proto"
GENERATED = "tzrec_deepfm/config_pb2.py"
IF_TORCH = "import sys\nif torch := sys.modules.get('torch'):"  # imports none


def offers_loss(target, config):
    """A change of the manifest: another spec, so that what is wrong with it is not wrong with the model."""
    return {
        MANIFEST: [
            ("import Group", "import LossSpec, Output, Group"),
            (
                "    return [",
                f"    return [LossSpec('focal', '{target}', '{config}', summary='S.', output=Output.BINARY),",
            ),
        ]
    }


# check -> [(what is broken, words of the message)]
BROKEN = {
    "core_bound": [
        ({"pyproject.toml": [("tzrec-core>=0.1,<0.2", "tzrec-core>=0.1")]}, "without an upper bound"),
        ({"pyproject.toml": [("tzrec-core>=0.1,<0.2", "tzrec-core<0.2")]}, "without a lower bound"),
        ({"pyproject.toml": [('"tzrec-core>=0.1,<0.2"', "")]}, "does not depend on tzrec-core"),
    ],
    "dependencies": [
        ({"pyproject.toml": [('<0.2"]', '<0.2", "torch>=2"]')]}, "depends on torch; leave that to tzrec-core"),
        ({"pyproject.toml": [('<0.2"]', '<0.2", "fbgemm_gpu==1.8"]')]}, "depends on fbgemm-gpu;"),
    ],
    "entry_point": [
        ({"pyproject.toml": [('deepfm = "tzrec', 'train = "tzrec')]}, "'train' is a command of tzrec"),
        (
            {"pyproject.toml": [("_deepfm.plugin", "_deepfm.manifest")], "tzrec_deepfm/manifest.py": [("", "")]},
            "put the manifest into tzrec_",
        ),
    ],
    "manifest_without_torch": [
        ({MANIFEST: [("", "import torch")]}, "imports torch; name classes as 'module:Class'"),
        ({"tzrec_deepfm/__init__.py": [("", "import torch")]}, "imports torch"),
        ({GENERATED: [("", "import torch")]}, "imports torch"),
    ],
    "discovery_changes_nothing": [
        ({MANIFEST: [("", "import os\nos.environ['OMP_NUM_THREADS'] = '9'")]}, "'OMP_NUM_THREADS'"),
        ({MANIFEST: [("", "import random\nrandom.seed(1)")]}, "the random generator of Python"),
        ({MANIFEST: [("", "import logging\nlogging.basicConfig()")]}, "the logger 'the root'"),
        ({MANIFEST: [("", f"{IF_TORCH} torch.set_num_threads(3)")]}, "torch.get_num_threads()"),
        ({GENERATED: [("", f"{IF_TORCH} torch.manual_seed(3)")]}, "the random generator of torch"),
    ],
    "specs": [
        ({MANIFEST: [("over shared embeddings.", "over shared embeddings")]}, "is not one line that ends in a period"),
        ({MANIFEST: [("    return [", "    return []\n    return [")]}, "offers nothing"),
        ({MANIFEST: [("    return [", "    return [object(),")]}, "offers a object, a kind that tzrec-core"),
    ],
    "targets": [
        (offers_loss("torch:Tensor", "tzrec_deepfm.config_pb2:DeepFM"), "torch:Tensor is not a subclass of torch.nn"),
        ({MANIFEST: [("tzrec_deepfm.model:DeepFM", "tzrec_deepfm.model:MLP")]}, "model:MLP is not a subclass of"),
        ({"tzrec_deepfm/model.py": [("import torch\n", "import torch, nobody_has_this\n")]}, "nobody_has_this"),
    ],
    "configs": [
        ({MANIFEST: [('Group("fm", required=False)', 'Group(from_field="tower")')]}, "there is no 'tower'"),
        ({MANIFEST: [("config_pb2:DeepFM", "config_pb2:DeepFMs")]}, "cannot import"),
    ],
    "proto_package": [
        (
            {
                PROTO: [("package tzrec_deepfm", "package other_deepfm")],
                GENERATED: [("\\x0ctzrec_deepfm\\x1a", "\\x0cother_deepfm\\x1a")],
            },
            "write: package tzrec_c",
        ),
    ],
    "fields_documented": [
        (
            {PROTO: [("// Initialiser of the tables", ""), ("  // `nn.init.normal_,std=0.01`. Unset = each", "")]},
            "DeepFM.wide_init_fn",
        ),
    ],
    "examples": [
        ({EXAMPLE: [("deep { hidden_units", "deap { hidden_units")]}, "deap"),
        ({MANIFEST: [("examples/tiny.config", "examples/tiny_one.config")]}, "does not exist"),
        ({MANIFEST: [('            example="examples/tiny.config",\n', "")]}, "has no example"),
    ],
    "shipped_files": [
        ({"pyproject.toml": [(', "*.config"', "")]}, "examples/tiny.config; with setuptools"),
        ({"pyproject.toml": [('"*.proto", ', "")]}, "config.proto; with setuptools"),
        ({"pyproject.toml": [('include = ["tzrec_deepfm*"]', 'include = ["elsewhere*"]')]}, "plugin.py"),
        ({"pyproject.toml": [("setuptools.build_meta", "setuptools.build_meta_x")]}, "no wheel can be built"),
    ],
    "version": [
        ({"tzrec_deepfm/__init__.py": [('"0.1.0"', '"0.0.9"')]}, "__version__ is '0.0.9', but tzrec-c"),
    ],
    "readme": [
        ({"README.md": [("## Departures from the paper", "## Else")]}, "no section ## Departures ...;"),
        ({"README.md": [("## Results", "## Results\n\n## Numbers")]}, "the section Results of the README is empty"),
        ({"README.md": None}, "has no README"),
    ],
    "readme_names_another_model": [
        ({"README.md": [("tzrec-wide-and-deep", "the other")]}, "the README names no other model"),
    ],
}  # fmt: skip
# Models are checked by their example, and a plugin whose settings are wrong offers none.
OF_THE_EXAMPLE = {
    check.name for check in checks("model", slow=False) if check.trait not in (Trait.SEQUENCE, Trait.BATCH_STATS)
}
ENTAILED = {
    "examples": OF_THE_EXAMPLE,
    "configs": {"proto_package", "fields_documented", "examples", "shipped_files", *OF_THE_EXAMPLE},
}
# The first of each check is also run against all other checks.
BREAKAGES = {name: [Breakage(*case, also=ENTAILED.get(name, ())) for case in cases] for name, cases in BROKEN.items()}
CASES = [pytest.param(name, b, id=f"{name}-{i}") for name, several in BREAKAGES.items() for i, b in enumerate(several)]


def test_every_kind_of_spec_has_a_class_that_its_targets_must_be():
    assert set(packaging.BASES) == set(KINDS)


@pytest.mark.parametrize(("name", "breakage"), CASES)
def test_a_broken_rule_is_reported(tmp_path, name, breakage):
    with broken_copy(tmp_path, breakage.changes) as plugin:
        found, message = outcome(plugin, name)
    assert found is Outcome.FAILED
    assert breakage.words in message


def test_an_unchanged_copy_passes_all(tmp_path):
    with broken_copy(tmp_path) as plugin:
        assert failures(plugin, "plugin") == {}
