"""What README.md and the guides tell a reader to copy works as it stands there."""

import doctest
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp
from packaging.requirements import Requirement

from tzrec_core import __version__, api
from tzrec_core.cli.app import _core_commands, _split
from tzrec_core.config import load_config, model_offer, parse_config, refused_settings
from tzrec_core.engine.setup import build
from tzrec_core.features import create_features
from tzrec_core.models import TrainWrapper
from tzrec_core.modules import EmbeddingGroup
from tzrec_core.plugins import FeatureSpec, ModelSpec, Registry, Selection, registry, use_registry
from tzrec_core.plugins.hooks import ENTRY_POINT_GROUP

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ROOT / "registry_docs/guides"
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_MODEL = (GUIDES / "first_model.md").read_text(encoding="utf-8")
CONFIGS = (GUIDES / "configs.md").read_text(encoding="utf-8")
FEATURES = (GUIDES / "features.md").read_text(encoding="utf-8")
MIGRATE = (GUIDES / "migrate_from_torcheasyrec.md").read_text(encoding="utf-8")
QUICK = ["data_config.num_workers=0", "data_config.batch_size=16", "train_config.use_tensorboard=false"]


def blocks(text, language=""):
    """The fenced blocks of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def commands(text):
    """The indented lines that call `tzrec`, without their comments."""
    return [shlex.split(line, comments=True) for line in re.findall(r"^    (tzrec .*)$", text, re.MULTILINE)]


def first_config():
    (text,) = [block for block in blocks(README) if block.startswith("train_input_path")]
    return text


def mine_config():
    """`first.config`, changed as the guide says."""
    assert "remove the group `wide`, write `mine { hidden: 32 }` for `deepfm { ... }` and name another" in FIRST_MODEL
    text, wide = re.subn(r'^  feature_groups \{ group_name: "wide".*\n', "", first_config(), flags=re.MULTILINE)
    text, model = re.subn(r"^  deepfm \{.*\}$", "  mine { hidden: 32 }", text, flags=re.MULTILINE)
    text, folder = re.subn("runs/first", "runs/mine", text)
    assert (wide, model, folder) == (1, 1, 1)
    return text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of somebody who follows the README and the guide, with tables as the README describes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    rng = np.random.default_rng(0)

    def write(path, rows):
        table = {
            "user_id": [f"u{n}" for n in rng.integers(0, 9, rows)],
            "tags": rng.choice(["new|red", "red", "", None], rows),
            "price": rng.uniform(0, 200, rows),
            "click": rng.integers(0, 2, rows),
        }
        Path(path).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(table), path)

    write("train/one.parquet", 48)
    write("eval.parquet", 24)
    write("new.parquet", 10)
    Path("first.config").write_text(first_config(), encoding="utf-8")
    Path("mine.config").write_text(mine_config(), encoding="utf-8")
    for name, body in zip(("plugin.py", "model.py"), blocks(FIRST_MODEL, "python"), strict=True):
        Path(name).write_text(body, encoding="utf-8")
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def mine(folder):
    """The plugins with the guide's manifest, as `--plugin ./plugin.py` gives it."""
    with use_registry(Registry.find(Selection(files=(str(folder / "plugin.py"),)))) as found:
        yield found


def test_the_config_of_the_readme_is_valid(folder):
    config = load_config("first.config", validate=True)
    assert model_offer(config.model_config).spec.name == "deepfm"


def test_the_model_of_the_guide_trains_and_predicts(mine, folder):
    assert not mine.problems()
    result = api.train("mine.config", overrides=QUICK)
    assert result.step == 2 * 48 / 16
    assert 0 <= result.metrics["auc"] <= 1
    api.predict("mine.config", "new.parquet", "mine_scores", overrides=QUICK)
    scores = pq.read_table("mine_scores")["probs"].to_numpy()
    assert scores.shape == (10,)
    assert ((scores > 0) & (scores < 1)).all()


def test_the_settings_of_the_guides_model_have_their_default_and_meaning(mine):
    config = parse_config("model_config { mine {} }", partial=True)
    assert config.model_config.mine.hidden == 16
    assert mine.load(mine.get(ModelSpec, "mine")).__mro__[1].__name__ == "RankModel"


@pytest.mark.parametrize(
    "text", [README, FIRST_MODEL, CONFIGS, MIGRATE], ids=["README", "first_model", "configs", "migrate"]
)
def test_every_command_that_is_told_exists(text):
    told = commands(text)
    assert told
    for _, *arguments in told:
        options, rest = _split(arguments)
        assert rest[0] in _core_commands(), arguments
        assert options in ([], ["--plugin", "./plugin.py"])


@pytest.mark.parametrize("text", [README, FIRST_MODEL], ids=["README", "first_model"])
def test_every_piece_of_a_pyproject_names_the_group_of_plugins(text):
    for block in blocks(text, "toml"):
        found = tomllib.loads(block)["project"]
        assert found["entry-points"] == {ENTRY_POINT_GROUP: {"mine": "my_package.plugin"}}
        for line in found.get("dependencies", []):
            assert Requirement(line).specifier.contains(__version__, prereleases=True)


def test_the_manifest_of_the_readme_is_a_manifest(folder):
    manifest = next(block for block in blocks(README, "python") if "tzrec_specs" in block)
    Path("of_the_readme.py").write_text(manifest, encoding="utf-8")
    found = Registry.find(Selection(only=frozenset(), files=(str(folder / "of_the_readme.py"),)))
    assert not found.problems()
    assert found.get(ModelSpec, "mine").spec.target == "my_package.model:Mine"


# ---- configs


@pytest.fixture
def click(tmp_path, monkeypatch):
    """The folder of somebody who follows the guide to configs."""
    monkeypatch.chdir(tmp_path)
    Path("click.config").write_text(blocks(CONFIGS)[0], encoding="utf-8")
    rng = np.random.default_rng(0)
    for name in ("train", "eval"):
        rows = {
            "user": [f"u{n}" for n in rng.integers(0, 9, 64)],
            "price": rng.uniform(0, 200, 64),
            "click": rng.integers(0, 2, 64),
        }
        pq.write_table(pa.table(rows), f"{name}.parquet")
    return tmp_path


def test_the_config_of_the_guide_trains_and_is_kept_with_what_was_changed(click):
    assert api.train("click.config", overrides=QUICK).step == 2 * 64 / 16
    assert load_config("runs/click/pipeline.config") == load_config("click.config", overrides=QUICK)


def test_every_change_that_the_guide_makes_is_one(click):
    before = load_config("click.config")
    changes = [shlex.join(rest).split("--set ")[1:] for _, *rest in commands(CONFIGS) if "--set" in rest]
    overrides = [shlex.split(change)[0] for line in changes for change in line]
    assert len(overrides) == 6
    for override in overrides:
        changed = load_config("click.config", overrides=[override], validate=True)
        assert (changed == before) is (override == "data_config.label_fields=[click]"), override


def test_the_slots_of_the_guide_are_understood(use_plugins):
    use_plugins("acme-ranking")
    (text,) = [block for block in blocks(CONFIGS) if "acme_ranking" in block]
    parsed = parse_config(text, partial=True)
    assert not list(refused_settings(parsed))
    assert parsed.model_config.losses[0].WhichOneof("loss") == "plugin"


def test_the_mistakes_of_the_guide_are_told_in_these_words(click):
    (shown,) = [block for block in blocks(CONFIGS) if block.startswith("$ tzrec ")]
    command, _, said = shown.partition("\n")
    command = [sys.executable, "-m", "tzrec_core.cli.app", *shlex.split(command)[2:]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=click)
    assert (done.returncode, done.stderr) == (2, said)


def test_every_block_of_the_guide_to_configs_is_looked_at():
    assert len(re.findall("^```", CONFIGS, re.MULTILINE)) == 2 * 3


def test_a_part_of_a_config_that_the_guide_names_is_a_field_of_it():
    told = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ", CONFIGS, re.MULTILINE)
    names = {name for cell in told for name in re.findall(r"`(\w+)`", cell)}
    fields = set(parse_config("", partial=True).DESCRIPTOR.fields_by_name)
    assert fields - names == {"model_dir", "export_config"}
    assert names <= fields | {"losses", "metrics", "train_metrics", "sequence_encoders"}
    assert "`model_dir`" in CONFIGS
    assert "`export_config`" in CONFIGS


# ---- features


@pytest.fixture
def features_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("features.config").write_text("".join(blocks(FEATURES)), encoding="utf-8")
    Path("read.py").write_text(blocks(FEATURES, "python")[0], encoding="utf-8")
    yield
    sys.modules.pop("read", None)


def test_features_make_of_rows_what_the_guide_shows(features_folder):
    sessions = blocks(FEATURES, "python")[1:]
    assert all(session.startswith(">>> ") for session in sessions)
    found = doctest.DocTestParser().get_doctest("\n".join(sessions), {}, "features.md", None, 0)
    result = doctest.DocTestRunner().run(found, out=lambda text: pytest.fail(text))
    assert result.attempted == 18


def test_the_groups_of_the_guide_are_built_with_the_tables_that_it_tells_of(features_folder):
    config = parse_config(
        Path("features.config").read_text(), partial=True, overrides=["data_config.fg_mode=FG_NORMAL"]
    )
    groups = config.model_config.feature_groups
    features = create_features(config.feature_configs, config.data_config)
    tables = [n for n, _ in EmbeddingGroup(features, groups).named_parameters() if "item" in n and "emb" in n]
    assert len({name.rpartition(".embeddings.")[2] for name in tables if ".embeddings." in name}) == len(tables) == 1
    groups[0].feature_names.append("item")
    assert len([n for n, _ in EmbeddingGroup(features, groups).named_parameters() if "item_emb" in n]) == 2


def test_what_waits_is_what_cannot_be_made_from_raw_columns():
    waits = FEATURES.partition("## What waits")[2]
    told = set(re.findall(r"`(\w+)`", next(line for line in waits.splitlines() if "encoded (`FG_NONE`) only" in line)))
    offers = [offer for offer in registry().offers(FeatureSpec) if offer.plugin is registry().core]
    raw = {offer.spec.name for offer in offers if registry().load(offer).supports_fg_normal}
    assert told - {"FG_NONE"} == {offer.spec.name for offer in offers} - raw - {"custom_feature", "sequence_feature"}
    assert raw == {"id_feature", "raw_feature"}


# ---- migrate from TorchEasyRec


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """The folder of somebody who brings a config, a checkpoint and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("theirs.config").write_text(blocks(MIGRATE)[0], encoding="utf-8")
    rng = np.random.default_rng(0)
    for name in ("train", "eval"):
        rows = {
            "user_id": rng.integers(0, 100, 128), "price": rng.integers(0, 3, 128), "clk": rng.integers(0, 2, 128)
        }  # fmt: skip
        pq.write_table(pa.table(rows), f"{name}.parquet")
    torch.manual_seed(7)
    model = TrainWrapper(build(load_config("theirs.config")).model).state_dict()  # without storage
    tensors = {name: 0.1 * torch.rand(tensor.shape) for name, tensor in model.items()}
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter("theirs/model.ckpt-2000/model"), no_dist=True)
    (diff,) = blocks(MIGRATE, "diff")
    ours = "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))
    Path("model.py").write_text(ours, encoding="utf-8")
    Path("plugin.py").write_text(blocks(MIGRATE, "python")[0], encoding="utf-8")
    yield
    for name in ("model", "plugin"):
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore:torch.distributed")
def test_a_config_and_a_checkpoint_of_theirs_do_what_the_guide_says(theirs):
    load_config("theirs.config", validate=True)
    checkpoint = "theirs/model.ckpt-2000"
    assert api.evaluate("theirs.config", overrides=QUICK, checkpoint=checkpoint).step == 2000
    predicted = api.predict("theirs.config", "eval.parquet", "scores", overrides=QUICK, checkpoint=checkpoint)
    assert predicted.num_rows == 128
    trained = api.train("theirs.config", overrides=[*QUICK, f"train_config.fine_tune_checkpoint={checkpoint}"])
    assert trained.step == 128 / 16
    counts = json.loads(Path("runs/theirs/warm_start.json").read_text())["counts"]
    assert {status for status, count in counts.items() if count} == {"loaded"}


def test_a_model_dir_of_theirs_goes_on_at_its_step(theirs):
    Path("theirs/model.ckpt-2000").rename("theirs/model.ckpt-5")
    trained = api.train("theirs.config", overrides=[*QUICK, "model_dir=theirs"])
    assert trained.step == 128 / 16
    assert Path("theirs/model.ckpt-8").is_dir()


def test_the_model_of_the_diff_trains_with_the_manifest_of_the_guide(theirs):
    text = re.sub(r"deepfm \{.*\}", "custom_model { mlp { hidden_units: [16, 8] } }", blocks(MIGRATE)[0])
    text = re.sub(r".*group_name: \"wide\".*\n", "", text)
    Path("custom.config").write_text(text, encoding="utf-8")
    with use_registry(Registry.find(Selection(files=("plugin.py",)))) as found:
        assert not found.problems()
        assert api.train("custom.config", overrides=QUICK).step == 128 / 16
        assert parse_config(text).model_config.WhichOneof("model") == "custom_model"


def test_the_diff_changes_imports_only():
    (diff,) = blocks(MIGRATE, "diff")
    changed = [line for line in diff.splitlines() if line[:1] in ("-", "+")]
    assert {line[0] for line in changed} == {"-", "+"}
    assert all(re.match(r"-from tzrec\.|\+from tzrec_core\.", line) for line in changed)


def test_what_the_guide_says_is_refused_is_refused():
    row = next(line for line in MIGRATE.splitlines() if line.startswith("| refused"))
    assert "`zch`, `dynamicemb`" in row
    settings = (
        "data_config { dataset_type: KafkaDataset sample_mask_prob: 0.1 batch_cost_size: 5 negative_sampler { } }",
        "feature_configs { id_feature { zch { zch_size: 9 } } }",
        "feature_configs { id_feature { dynamicemb { } } }",
        "model_config { kernel: TRITON }",
        "train_config { save_checkpoints_timestamps: 5 delta_embedding_dump_config { } }",
    )
    problems = [found for text in settings for found in refused_settings(parse_config(text, partial=True))]
    assert len(problems) == 8, problems
