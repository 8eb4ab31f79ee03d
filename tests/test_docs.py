"""registry_docs/ says what the code, the plugins and the measurements say, and nothing else."""

import dataclasses
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
from packaging.licenses import canonicalize_license_expression
from packaging.specifiers import SpecifierSet

from tzrec_core import plugins
from tzrec_core.plugins import ModelSpec, Plugin, Registry, Spec
from tzrec_core.plugins.spec import KINDS
from tzrec_core.testing import conformance
from tzrec_core.testing.check import CheckResult, Outcome, checks

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "registry_docs"
REGISTRY = json.loads((DOCS / "registry.json").read_text(encoding="utf-8"))
MODELS = REGISTRY["models"]
CONFORMANCE = json.loads((DOCS / "conformance.json").read_text(encoding="utf-8"))
RESULTS = tomllib.loads((DOCS / "results.toml").read_text(encoding="utf-8"), parse_float=Decimal)
COMMUNITY = (DOCS / "community.toml").read_text(encoding="utf-8")
INDEX = (DOCS / "index.md").read_text(encoding="utf-8")
API = (DOCS / "api.md").read_text(encoding="utf-8")
SPECS = (DOCS / "specs.md").read_text(encoding="utf-8")
SCHEMA = (DOCS / "schema.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def docs():
    """The script, with the folder that it finds its modules in."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("docs")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def official(docs):
    return docs.sources.official()


def page(name):
    return (DOCS / f"models/{name}.md").read_text(encoding="utf-8")


def section(text, title, level=2):
    """The body of a section, to the next one that is as high."""
    return re.search(rf"^#{{{level}}} {title}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def cell(text):
    return " ".join(text.split()).replace("|", "\\|")


# The script


def test_the_pages_are_current(docs, official):
    stale = [str(path.relative_to(ROOT)) for path in docs.stale_files(docs.outputs(official))]
    assert not stale, f"run `make docs` and commit: {stale}"


def test_the_pages_are_the_same_in_every_process_and_made_without_torch():
    code = "import docs, sys; print(docs.outputs(docs.sources.official())); assert 'torch' not in sys.modules"
    found = set()
    for seed in "12":
        env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "PYTHONHASHSEED": seed, "TZREC_PLUGINS": ""}
        run = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
        found.add(hashlib.sha256(run.stdout.encode()).hexdigest())
    assert len(found) == 1


@pytest.fixture
def tree(docs, tmp_path, monkeypatch):
    """A page that is stale, one that is missing, one that is current, and one of a model that is no more."""
    folder = tmp_path / "registry_docs"
    for name, text in {"index.md": "old", "api.md": "same", "models/gone.md": "gone"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    fresh = {folder / "index.md": "new", folder / "api.md": "same", folder / "models/mine.md": "mine"}
    monkeypatch.setattr(docs, "DOCS", folder)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "outputs", lambda found: fresh)
    monkeypatch.setattr(docs.sources.Conformance, "unproved", lambda self, registry: [])
    return folder


def test_check_names_the_stale_files_and_the_command_and_touches_none(docs, tree, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    assert docs.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "stale: registry_docs/index.md",
        "stale: registry_docs/models/mine.md",
        "stale: registry_docs/models/gone.md",
        "Run `make docs` and commit the result.",
    ]
    assert (tree / "index.md").read_text() == "old"
    assert (tree / "models/gone.md").exists()


def test_the_script_writes_what_is_stale_and_removes_what_is_no_more(docs, tree, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["docs.py"])
    assert docs.main() == 0
    assert "api.md" not in capsys.readouterr().out
    assert {path.name: path.read_text() for path in tree.rglob("*.md")} == {
        "index.md": "new",
        "api.md": "same",
        "mine.md": "mine",
    }
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    assert docs.main() == 0


def test_check_fails_when_a_manifest_claims_a_trait_that_is_not_proved(docs, tree, monkeypatch, capsys):
    docs.write(docs.outputs(None))
    capsys.readouterr()
    monkeypatch.setattr(docs.sources.Conformance, "unproved", lambda self, registry: ["x claims script"])
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    assert docs.main() == 1
    assert capsys.readouterr().out == "unproved: x claims script\n"


def test_a_plugin_that_is_not_installed_is_an_error_that_says_what_to_run(docs, monkeypatch, capsys):
    monkeypatch.setattr(docs.sources, "projects", lambda: {"tzrec-nowhere": None})
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    assert docs.main() == 3
    assert "not installed: tzrec-nowhere; run `make setup`" in capsys.readouterr().err


def test_a_distribution_without_a_manifest_is_no_plugin(docs, tmp_path, monkeypatch):
    for name, more in (("tzrec-a", '[project.entry-points."tzrec.plugins"]\na = "a.plugin"'), ("tzrec-all", "")):
        project = f'[project]\nname = "{name}"\nversion = "1.2"\ndependencies = ["tzrec-core>=0.1,<0.2"]\n{more}'
        (tmp_path / "plugins" / name).mkdir(parents=True)
        (tmp_path / "plugins" / name / "pyproject.toml").write_text(project)
    monkeypatch.setattr(docs.sources, "ROOT", tmp_path)
    found = docs.sources.projects.__wrapped__()
    assert {name: (project.version, project.core) for name, project in found.items()} == {
        "tzrec-a": ("1.2", ">=0.1,<0.2")
    }


def test_every_generated_page_says_so_in_its_first_line(docs, official):
    for path, text in docs.outputs(official).items():
        if path.suffix == ".md":
            assert re.match(r"<!-- Generated by `make docs` from .+: edit those, not this page. -->\n", text), path
    assert REGISTRY["generated_by"] == "make docs"
    assert CONFORMANCE["generated_by"] == "make conformance"


def test_a_docstring_becomes_paragraphs_and_lists(docs):
    doc = """What it is for.

    Args:
        one, two: the first,
            and the second.
        three: `a: b`.

    By loss:
        one: this.
        the second (or third): that.

    Returns:
        a number; there is
        no other.
    """
    assert docs.api.docstring(doc) == (
        "What it is for.\n\n"
        "Args:\n\n- `one, two`: the first, and the second.\n- `three`: `a: b`.\n\n"
        "By loss:\n\n- `one`: this.\n- the second (or third): that.\n\n"
        "Returns:\n\n- a number; there is no other."
    )


def test_links_of_a_readme_lead_to_the_same_files_from_a_page(docs):
    text = "[a](../tzrec-b/README.md#x) [b](#here) [c](https://pypi.org) [d](examples)"
    moved = docs.models.relink(text, ROOT / "plugins/tzrec-a/README.md", DOCS / "models/a.md")
    assert moved == (
        "[a](../../plugins/tzrec-b/README.md#x) [b](#here) [c](https://pypi.org) [d](../../plugins/tzrec-a/examples)"
    )


# Links


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", without_code_blocks(text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return found


def without_code_blocks(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def linked_pages():
    examples = [path for path in sorted(ROOT.glob("examples/**/*.md")) if not {"runs", "data"} & {*path.parts}]
    tops = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")]
    return [*tops, *sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("plugins/*/README.md")), *examples]


@pytest.mark.parametrize("path", linked_pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(path):
    text = re.sub(r"`[^`\n]*`(?!\])", "", without_code_blocks(path.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target


def test_the_index_leads_to_every_page():
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)\s#]+)\)", INDEX)}
    assert {path for path in DOCS.rglob("*.md") if path.name != "index.md"} <= linked


def test_the_readme_leads_to_the_index():
    assert "](registry_docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


# The index and the models


def test_the_index_has_every_official_model_with_its_plugin_and_page():
    for name, entry in MODELS.items():
        (row,) = [line for line in INDEX.splitlines() if line.startswith(f"| [`{name}`](models/{name}.md)")]
        assert row in section(INDEX, f"Task `{entry['task']}`")
        for text in (entry["package"], entry["summary"], entry["paper"], ", ".join(entry["traits_proved"])):
            assert cell(text) in row


def test_every_plugin_in_the_repository_is_in_the_registry():
    with_manifest = {path.parent.parent.name for path in ROOT.glob("plugins/tzrec-*/*/plugin.py")}
    assert set(REGISTRY["plugins"]) == with_manifest
    assert {entry["package"] for entry in MODELS.values()} <= with_manifest


@pytest.mark.parametrize("name", MODELS)
def test_a_page_shows_the_packaged_example_and_every_field_with_its_meaning(name):
    text, package = page(name), MODELS[name]["package"]
    (example,) = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shown = re.search(r"example, `(.*?)`", text)[1]
    assert example == (ROOT / "plugins" / package / package.replace("-", "_") / shown).read_text(encoding="utf-8")
    for field in MODELS[name]["fields"]:
        assert field["meaning"], field
        row = rf"^\| `{field['field'].rpartition('.')[2]}` \| {re.escape(cell(field['type']))} \| .+ \| "
        assert re.search(row + re.escape(cell(field["meaning"])), text, re.MULTILINE), field


def test_a_page_has_types_and_defaults_also_of_messages_within_messages():
    assert "| `hidden_units` | list of int >= 0 | `[]` | Width of each layer; > 0." in page("deepfm")
    assert "| `deep` | MLP | required | Layers of the deep network" in page("deepfm")
    assert "deep.hidden_units" in {field["field"] for field in MODELS["deepfm"]["fields"]}


@pytest.mark.parametrize("name", MODELS)
def test_a_page_has_what_the_readme_says_of_when_to_use_the_model_and_of_departures(name):
    readme = (ROOT / "plugins" / MODELS[name]["package"] / "README.md").read_text(encoding="utf-8")
    for start in ("When to use", "Departures"):
        body = re.search(rf"^## {start}.*?\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)[1].strip()
        without_links = re.sub(r"\]\([^)]*\)", "]", body)
        assert without_links in re.sub(r"\]\([^)]*\)", "]", page(name)), start


def test_a_model_that_lost_on_a_dataset_says_to_which():
    assert "MovieLens-100k, AUC: [`deepfm`](deepfm.md) has 0.7991" in page("wide_and_deep")
    assert "Where another model of the zoo won" not in page("deepfm")


# Conformance


def test_conformance_is_recorded_for_every_plugin_and_every_check():
    known = {check.name: check for kind in ("plugin", "model") for check in checks(kind, slow=True)}
    advice = "run `make conformance` and commit"
    recorded = {name: (check["rule"], check.get("trait")) for name, check in CONFORMANCE["checks"].items()}
    assert recorded == {name: (check.rule, check.trait) for name, check in known.items()}, advice
    assert set(CONFORMANCE["plugins"]) == set(REGISTRY["plugins"]), advice
    for package, outcomes in CONFORMANCE["plugins"].items():
        models = [name for name, entry in MODELS.items() if entry["package"] == package]
        wanted = {name for name, check in known.items() if check.kind == "plugin"}
        wanted |= {f"{name}[{m}]" for name, check in known.items() if check.kind == "model" for m in models}
        assert set(outcomes) == wanted, advice


def test_every_recorded_check_has_passed_or_is_not_claimed():
    for package, outcomes in CONFORMANCE["plugins"].items():
        assert {k: v for k, v in outcomes.items() if v not in ("passed", "not claimed")} == {}, package


def test_every_trait_that_a_manifest_claims_is_proved(docs, official):
    assert docs.sources.Conformance.read().unproved(official) == []


def offered(**fields):
    """A registry with the model x of a plugin tzrec-x, and the model's offer."""
    spec = ModelSpec("x", "m:C", "tzrec_core.protos.module_pb2:MLP", summary="s", **fields)
    registry = Registry([Plugin("x", "tzrec-x", specs=[spec])])
    return registry, registry.get(ModelSpec, "x")


def test_a_trait_is_proved_only_if_it_has_checks_and_all_of_them_passed(docs):
    found = docs.sources.Conformance(
        checks={"one": {"rule": "", "trait": "script"}, "two": {"rule": "", "trait": "script"}, "other": {"rule": ""}},
        outcomes={"tzrec-x": {"one[x]": "passed", "two[x]": "failed", "other[x]": "passed"}},
    )
    registry, offer = offered(traits=frozenset({plugins.Trait.SCRIPT, plugins.Trait.ONNX}))
    assert found.proved(offer) == []
    found.outcomes["tzrec-x"]["two[x]"] = "passed"
    assert found.proved(offer) == ["script"]
    (line,) = found.unproved(registry)
    assert line.startswith("x claims onnx, which conformance.json does not show as passed")
    assert "`python scripts/docs.py --conformance tzrec-x`" in line


def test_conformance_is_written_for_what_ran_and_kept_for_the_rest(docs, tmp_path, monkeypatch, capsys):
    path = tmp_path / "conformance.json"
    path.write_text(json.dumps({"plugins": {"tzrec-b": {"specs": "passed"}, "tzrec-gone": {"specs": "passed"}}}))
    monkeypatch.setattr(docs.sources, "CONFORMANCE", path)
    monkeypatch.setattr(docs.sources, "projects", lambda: {"tzrec-a": None, "tzrec-b": None})
    result = CheckResult("finite", "a", "rule", Outcome.FAILED, "logits[3] is nan", 1.0)
    monkeypatch.setattr(conformance, "check_plugin", lambda name, slow: [result] if slow else [])
    assert docs.write_conformance(["tzrec-a"]) is False
    assert capsys.readouterr().out == "failed: tzrec-a: finite[a]: logits[3] is nan\n"
    written = json.loads(path.read_text())
    assert written["plugins"] == {"tzrec-a": {"finite[a]": "failed"}, "tzrec-b": {"specs": "passed"}}
    assert written["checks"]["torch_export"]["trait"] == "torch_export"


# results.toml


@pytest.mark.parametrize("run", RESULTS["run"], ids=lambda run: run["dataset"])
def test_every_result_stands_in_its_source_and_names_command_commit_and_machine(run):
    assert re.fullmatch(r"[0-9a-f]{7,40}", run["commit"])
    source = (ROOT / run["source"]).read_text(encoding="utf-8")
    assert run["command"] in source
    assert run["machine"] in source
    for result in run["results"]:
        row = f"| {result['setting'].split()[0]} |" if "setting" in result else result["subject"]
        (line,) = [line for line in source.splitlines() if line.startswith("| ") and row in line]
        for value in (result["value"], *result.get("spread", ())):
            assert re.search(rf"(?<![\d.]){value:,}(?![\d.])", line), result
        assert result["subject"] in source
        assert result["metric"] in RESULTS["metrics"]
    assert set(RESULTS["metrics"].values()) <= {"higher", "lower", ""}


# registry.json


def test_the_registry_that_the_core_ships_is_a_part_of_the_whole_one():
    shipped = json.loads((ROOT / "tzrec_core/plugins/registry.json").read_text(encoding="utf-8"))["models"]
    for name, entry in shipped.items():
        whole = MODELS[entry.get("alias_of", name)]
        assert {key: entry[key] for key in ("package", "task", "summary")}.items() <= whole.items()
    assert set(shipped) == {*MODELS, *(alias for entry in MODELS.values() for alias in entry["aliases"])}


def test_an_alias_is_in_the_shipped_registry_under_its_own_name(docs):
    registry, _ = offered(aliases=("nick",))
    models = docs.registry.shipped(registry)["models"]
    assert models["x"] == {"package": "tzrec-x", "task": "rank", "summary": "s"}
    assert models["nick"] == {**models["x"], "alias_of": "x"}


# community.toml


def community_entries():
    commented = re.sub(r"^# ", "", COMMUNITY[COMMUNITY.index("# [[plugin]]") :], flags=re.MULTILINE)
    return [*tomllib.loads(commented)["plugin"], *tomllib.loads(COMMUNITY).get("plugin", [])]


@pytest.mark.parametrize("entry", community_entries(), ids=lambda entry: entry["name"])
def test_an_entry_of_the_community_says_all_that_is_asked_for(entry):
    asked = re.findall(r"^#   (\w+) ", COMMUNITY, re.MULTILINE)
    assert list(entry) == asked == ["name", "summary", "url", "license", "core", "offers"]
    assert re.fullmatch(r"[a-z0-9]+([-_.][a-z0-9]+)*", entry["name"])
    assert entry["name"] not in REGISTRY["plugins"]
    assert entry["summary"].endswith(".") and "\n" not in entry["summary"]
    assert entry["url"].startswith("https://")
    assert canonicalize_license_expression(entry["license"]) == entry["license"]
    assert not SpecifierSet(entry["core"]).contains("99"), "give an upper bound on tzrec-core"
    assert entry["offers"] and all(re.fullmatch(r"\w+", name) for name in entry["offers"])


# api.md

# Section 5 of the architecture: every public name, by module.
SECTION_5 = {
    "tzrec_core.api": "train evaluate predict load_model export load_artifact",
    "tzrec_core.plugins": "list_models get_model load_class",
    "tzrec_core.config": "load_config parse_config config_to_kwargs",
    "tzrec_core.features": "BaseFeature create_features",
    "tzrec_core.data": "Batch BASE_DATA_GROUP NEG_DATA_GROUP DataParser create_dataloader",
    "tzrec_core.modules": "BaseModule EmbeddingGroup MLP",
    "tzrec_core.models": "BaseModel RankModel MultiTaskRank MatchModel MatchTower MatchTowerWoEG TowerWrapper "
    "TowerWoEGWrapper create_model TrainWrapper PredictWrapper ScriptWrapper CombinedModelWrapper",
    "tzrec_core.losses": "BinaryFocalLoss JRCLoss ParetoEfficientMultiTaskLoss",
    "tzrec_core.metrics": "GroupedAUC XAUC GroupedXAUC DecayAUC TrainMetricWrapper RecallAtK NormalizedEntropy "
    "RelativeL1 UniqueRatio",
    "tzrec_core.kernels": "hstu_mha delta_hstu_mha build_sla_func_tensor hstu_compute_uqvk hstu_compute_output "
    "concat_2D_jagged split_2D_jagged jagged_dense_bmm_broadcast_add layer_norm rms_norm swish_layer_norm "
    "add_positional_embeddings add_timestamp_positional_embeddings compute_stu_truncation_plan "
    "apply_stu_truncation_plan",
}
# The names of it that are still to come, and the step that brings them.
LATER = {
    **dict.fromkeys(("export", "load_artifact", "CombinedModelWrapper"), "export"),
    **dict.fromkeys(SECTION_5["tzrec_core.kernels"].split(), "sequence models"),
}
MEMBERS = {
    "BaseModule": "kernel set_kernel is_inference set_is_inference is_train is_eval",
    "EmbeddingGroup": "group_names group_dims group_feature_dims group_total_dim has_group grouped_features_keys",
    "BaseFeature": "name is_sparse is_sequence is_grouped_sequence is_weighted value_dim output_dim num_embeddings "
    "has_embedding data_group inputs side_inputs emb_bag_config emb_config",
    "Batch": "dense_features sparse_features sequence_mulval_lengths sequence_dense_features labels jagged_labels "
    "reserves tile_size sample_weights additional_infos to pin_memory record_stream to_dict",
    "BaseModel": "predict init_loss loss init_metric update_metric compute_metric update_train_metric "
    "compute_train_metric forward sparse_parameters get_features_in_feature_groups on_train_end _base_model_config "
    "_model_config _features _feature_groups _labels _loss_modules _metric_modules _train_metric_modules",
    "RankModel": "init_input build_input _output_to_prediction embedding_group _num_class _label_name _init_loss_impl "
    "_loss_impl _init_metric_impl _update_metric_impl",
    "MatchModel": "sim _num_class _label_name _init_loss_impl _loss_impl _init_metric_impl _update_metric_impl",
    "MatchTower": "init_input build_input",
    "ScriptWrapper": "get_batch",
}
SIGNATURES = [
    "def create_model(\n    model_config: Any,\n    features: Sequence[BaseFeature],\n    labels: Sequence[str],\n"
    "    sample_weights: Sequence[str] | None = None,\n    sampler_type: str | None = None,\n    device: ",
    "def create_features(",
    "class EmbeddingGroup(\n    features: Sequence[BaseFeature],\n    feature_groups: ",
    "class MatchTower(\n    tower_config: ",
    "class TrainWrapper(module: BaseModel, device: torch.device | None = None, mixed_precision: str | None = None)",
    "class ScriptWrapper(module: BaseModel)",
]


def api_sections():
    """The names of each module with their text, as api.md has them."""
    return {
        module: dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", section(API, module), re.MULTILINE | re.DOTALL))
        for module in re.findall(r"^## (tzrec_core[\w.]*)$", API, re.MULTILINE)
    }


def test_every_name_of_the_architecture_is_in_the_api_or_comes_later():
    sections = api_sections()
    for module, names in SECTION_5.items():
        for name in names.split():
            is_there = name in sections.get(module, {})
            advice = f"it is there: take it out of LATER ({LATER.get(name)})" if is_there else "missing in api.md"
            assert is_there != (name in LATER), f"{module}.{name}: {advice}"


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_that_the_architecture_names_is_in_the_api(name):
    text = next(names[name] for names in api_sections().values() if name in names)
    for member in MEMBERS[name].split():
        as_member = rf"^- `{member}[(:`]"
        as_attribute = rf"^- `(\w+, )*{member}(, \w+)*`: \S"
        as_field = rf"^    {member}: "
        assert any(re.search(way, text, re.MULTILINE) for way in (as_member, as_attribute, as_field)), member


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda text: text.split("(")[0])
def test_signatures_are_in_the_api_as_they_are_called(signature):
    assert signature in API


def test_every_name_of_an_all_is_in_the_api():
    sections = api_sections()
    for module, names in sections.items():
        public = getattr(importlib.import_module(module), "__all__", None)
        assert names, module
        assert public is None or list(names) == list(public), module
    for path in (ROOT / "tzrec_core").rglob("*.py"):
        if re.search(r"^__all__ = ", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") in sections


def test_every_class_and_function_of_the_api_says_what_it_is_for():
    for module, names in api_sections().items():
        for name, text in names.items():
            is_value = re.search(rf"^```py\n{name}(: .*)? = ", text, re.MULTILINE)
            prose = without_code_blocks(text)
            assert is_value or re.search(r"^(?!Bases:|Members:|- )\S", prose, re.MULTILINE), f"{module}.{name}"


def test_the_examples_of_the_api_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", API, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(compile(block, "api.md", "exec"), names)
    assert names["total_loss"].isfinite()
    assert names["probs"].dtype.is_floating_point and set(names["predictions"]) == {"logits", "probs"}


# schema.md


def test_the_schema_page_has_every_entry_of_the_ledger():
    ledger = tomllib.loads((ROOT / "tests/schema_coverage.toml").read_text(encoding="utf-8"))
    theirs, _, ours = SCHEMA.partition("## Fields of our own")
    for text, messages in ((ours, ledger.pop("own")), (theirs, ledger)):
        for message, fields in messages.items():
            rows = section(text, message, level=3) if "*" not in fields else text
            for field, entry in fields.items():
                ((state, words),) = entry.items()
                says = f"[`{words.partition('::')[2]}`](../{words.partition('::')[0]})" if state == "works" else words
                start = rf"\| {message} \| \d+ \|" if field == "*" else rf"\| `{field}` \|"
                assert re.search(rf"^{start} {state} \| {re.escape(cell(says))} \|$", rows, re.MULTILINE), (
                    message,
                    field,
                )


def test_the_schema_page_counts_every_field_once():
    schema = json.loads((ROOT / "tests/goldens/config_schema.json").read_text(encoding="utf-8"))["messages"]
    counts = re.search(r"Of the (\d+) fields .*?(\d+) work, (\d+) are refused and (\d+) wait", SCHEMA)
    total, *parts = map(int, counts.groups())
    assert total == sum(parts) == sum(len(facts["fields"]) for facts in schema.values())


# specs.md; tests/test_guide_specs.py sees each kind at work and told in the guide


def test_no_kind_of_spec_is_left_out():
    assert {*KINDS} == {cls for cls in vars(plugins).values() if isinstance(cls, type) and issubclass(cls, Spec)} - {
        Spec
    }
    assert {*KINDS} == {cls for cls in Spec.__subclasses__() if cls.__module__.startswith("tzrec_core.")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_spec_is_documented_with_every_field(kind):
    shared, own = SPECS.partition("\n## ")[0], section(SPECS, kind.__name__)
    for field in dataclasses.fields(kind):
        text = shared if field.name in ("name", "target", "config", "summary") else own
        assert re.search(rf"^\| `{field.name}` \| `.+` \| .+ \| \S.* \|$", text, re.MULTILINE), field.name
    assert "- `target`: a subclass of [`" in own or "`target(" in own


def test_everything_that_the_core_has_built_in_is_in_the_tables():
    for spec in Registry([]).core.specs:
        assert f"| `{spec.name}` | {cell(spec.summary)} |" in section(SPECS, type(spec).__name__)


def test_the_methods_that_a_target_must_write_are_named():
    assert "[`tzrec_core.data.BaseReader`](api.md#basereader) that writes `schema`, `num_units`, `read`." in SPECS
    assert "[`tzrec_core.models.RankModel`](api.md#rankmodel) that writes `predict`." in SPECS
