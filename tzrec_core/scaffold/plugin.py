"""The first version of a plugin: a package that installs, trains and passes the conformance checks.

The templates are the files of such a plugin, tzrec-new-model; its names are exchanged for the asked ones.
"""

import keyword
import re
from dataclasses import dataclass
from importlib.resources import files

from tzrec_core.errors import ConfigError
from tzrec_core.plugins import Task
from tzrec_core.scaffold.gencode import renamed_gencode

_TEMPLATES = files("tzrec_core.scaffold") / "templates"
TASKS = tuple(task for task in Task if (_TEMPLATES / task).is_dir())

_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_COMMON = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "{task}/README.md",
    "{package}/__init__.py": "package.py",
    "{package}/plugin.py": "{task}/plugin.py",
    "{package}/model.py": "{task}/model.py",
    "{package}/examples/tiny.config": "{task}/tiny.config",
    "tests/test_conformance.py": "test_conformance.py",
    "tests/test_model.py": "{task}/test_model.py",
}
_PROTO = {f"{{package}}/{name}": f"{{task}}/{name}" for name in ("config.proto", "config_pb2.py", "config_pb2.pyi")}
_DATACLASS = {"{package}/config.py": "{task}/config.py"}
_STANDALONE = {"LICENSE": "LICENSE", ".gitignore": "gitignore", ".github/workflows/ci.yml": "ci.yml"}


@dataclass(frozen=True)
class PluginNames:
    """What things are called in a plugin with one model.

    Attributes:
        model: the field in `model_config`, such as `wide_and_deep`.
    """

    model: str

    @classmethod
    def of(cls, name: str) -> "PluginNames":
        """The names of a plugin that is asked for as `wide_and_deep` or `wide-and-deep`.

        Raises:
            ConfigError: a package, a class and a field of a config cannot all have such a name.
        """
        if name.startswith(("tzrec-", "tzrec_")):
            raise ConfigError(f"{name!r} begins with tzrec, which is put before every name; write {name[6:]!r}")
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is not a name for a plugin: write lower-case letters and digits, with _ or - between words, "
                f"such as 'wide-and-deep'"
            )
        names = cls(name.replace("-", "_"))
        if keyword.iskeyword(names.model):
            raise ConfigError(f"{name!r} is a word of Python, so no field can be called that; choose another name")
        return names

    @property
    def distribution(self) -> str:
        """What pip calls it, such as `tzrec-wide-and-deep`."""
        return "tzrec-" + self.model.replace("_", "-")

    @property
    def package(self) -> str:
        """What Python calls it, such as `tzrec_wide_and_deep`."""
        return "tzrec_" + self.model

    @property
    def model_class(self) -> str:
        """The class of the model, such as `WideAndDeep`."""
        return "".join(word.capitalize() for word in self.model.split("_"))


_TEMPLATE_NAMES = PluginNames("new_model")


def plugin_files(names: PluginNames, *, task: Task, dataclass: bool, standalone: bool) -> dict[str, str]:
    """The files of a new plugin.

    Args:
        names: what things are called.
        task: one of `TASKS`.
        dataclass: the settings are a frozen dataclass instead of a .proto with its generated code.
        standalone: with what a repository of its own needs: a licence, a CI file, a .gitignore.

    Returns:
        text by path within the plugin's folder.

    Raises:
        ConfigError: the templates use the name of the model's class for something else.
    """
    wanted = _COMMON | (_DATACLASS if dataclass else _PROTO) | (_STANDALONE if standalone else {})
    templates = {
        path.format(package=names.package): (_TEMPLATES / f"{source.format(task=task)}.tmpl").read_text("utf-8")
        for path, source in wanted.items()
    }
    imported = re.findall(r"^(?:from|import) .*", "\n".join(templates.values()), re.MULTILINE)
    if re.search(rf"\b{names.model_class}\b", "\n".join(imported)):
        raise ConfigError(
            f"the class of {names.model!r} would be {names.model_class}, a name that its module imports; "
            f"choose another, such as {names.model + '_net'!r}"
        )
    return {path: _rendered(text, names, dataclass=dataclass) for path, text in templates.items()}


def _rendered(template: str, names: PluginNames, *, dataclass: bool) -> str:
    old = _TEMPLATE_NAMES
    new = {
        old.model: names.model,
        old.model.replace("_", "-"): names.model.replace("_", "-"),
        old.model_class: names.model_class,
        old.model_class.upper(): names.model_class.upper(),
    }
    if dataclass:
        new["config_pb2"] = "config"

    def rename(text: str) -> str:
        return re.sub("|".join(new), lambda match: new[match[0]], text)

    return renamed_gencode(rename(template), template, rename) if "AddSerializedFile" in template else rename(template)
