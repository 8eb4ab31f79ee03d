"""Plugins come and go with pip: an environment of its own, without a copy of torch."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
CONFIG = """
train_input_path: "a" eval_input_path: "b" model_dir: "c"
data_config { batch_size: 8 dataset_type: ParquetDataset label_fields: "click" }
feature_configs { id_feature { feature_name: "user" expression: "user:user" num_buckets: 9 embedding_dim: 4 } }
model_config {
  feature_groups { group_name: "wide" feature_names: "user" group_type: WIDE }
  feature_groups { group_name: "deep" feature_names: "user" group_type: DEEP }
  %s { deep { hidden_units: 4 } }
  losses { binary_cross_entropy {} }
}
"""


class Environment:
    """A virtual environment that sees everything installed here, by links, except what is tzrec's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "env"
        venv.create(self.folder, with_pip=False)
        self.python = self.folder / "bin/python"
        (site,) = self.folder.glob("lib/python*/site-packages")
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(("tzrec", "__editable__", "pip", "__pycache__")):
                (site / entry.name).symlink_to(entry)

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check", "-q"]
        subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)

    def install(self, *folders: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", *map(str, folders))

    def tzrec(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin/tzrec"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder)

    def models(self) -> list[str]:
        return [row["name"] for row in json.loads(self.tzrec("list-models", "--json").stdout)]

    def distributions(self) -> set[str]:
        code = "from importlib.metadata import distributions; print(*{d.metadata['Name'] for d in distributions()})"
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())


def copy_of(source: Path, target: Path) -> Path:
    """A copy to build from, as builds leave files beside the sources."""
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")))


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Environment:
    folder = tmp_path_factory.mktemp("uninstall")
    core = folder / "tzrec-core"
    core.mkdir()
    copy_of(REPOSITORY / "tzrec_core", core / "tzrec_core")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, core / name)
    plugins = [
        copy_of(REPOSITORY / "plugins" / name, folder / name) for name in ("tzrec-deepfm", "tzrec-wide-and-deep")
    ]
    made = Environment(folder)
    made.install(core, *plugins)
    return made


def test_uninstalling_a_plugin_removes_its_model_and_nothing_else(environment, tmp_path):
    config = tmp_path / "deepfm.config"
    config.write_text(CONFIG % "deepfm")
    other = tmp_path / "wide_and_deep.config"
    other.write_text(CONFIG % "wide_and_deep")
    assert environment.models() == ["deepfm", "wide_and_deep"]
    assert environment.tzrec("validate", str(config)).returncode == 0
    before = environment.distributions()

    environment.pip("uninstall", "--yes", "tzrec-deepfm")
    assert environment.models() == ["wide_and_deep"]
    assert before - environment.distributions() == {"tzrec-deepfm"}
    assert environment.tzrec("validate", str(other)).returncode == 0
    for arguments in (("show-model", "deepfm"), ("validate", str(config)), ("train", str(config))):
        done = environment.tzrec(*arguments)
        assert "pip install tzrec-deepfm" in done.stderr, arguments
        assert "Traceback" not in done.stderr
        assert done.returncode in (2, 3)

    environment.install(environment.folder.parent / "tzrec-deepfm")
    assert environment.models() == ["deepfm", "wide_and_deep"]
    assert environment.tzrec("validate", str(config)).returncode == 0


def test_a_plugin_from_another_folder_appears_without_an_edit_here(environment, tmp_path):
    environment.install(copy_of(REPOSITORY / "tests/broken_plugins/tzrec-plain", tmp_path / "elsewhere"))
    assert "plain_model" in environment.models()
    shown = json.loads(environment.tzrec("show-model", "plain_model", "--json").stdout)
    assert (shown["plugin"], shown["version"]) == ("tzrec-plain", "1.2.0")
    environment.pip("uninstall", "--yes", "tzrec-plain")
    assert "plain_model" not in environment.models()
