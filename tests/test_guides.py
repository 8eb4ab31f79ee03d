"""What README.md and the guides tell a reader to copy works as it stands there."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement

from tzrec_core import __version__, api
from tzrec_core.cli.app import _core_commands, _split
from tzrec_core.config import load_config, model_offer, parse_config
from tzrec_core.plugins import ModelSpec, Registry, Selection, use_registry
from tzrec_core.plugins.hooks import ENTRY_POINT_GROUP

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_MODEL = (ROOT / "registry_docs/guides/first_model.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize("text", [README, FIRST_MODEL], ids=["README", "first_model"])
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
