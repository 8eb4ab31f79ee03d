"""Checks of a plugin as a package: what pip, discovery and a reader of its card rely on."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import torchmetrics
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import nn

from tzrec_core.cli.app import app
from tzrec_core.config import model_offer
from tzrec_core.config.assemble import config_class
from tzrec_core.config.comments import field_comments, message_comment
from tzrec_core.config.dataclass_message import dataclass_of
from tzrec_core.data import BaseReader
from tzrec_core.engine.callbacks import Callback
from tzrec_core.features import BaseFeature
from tzrec_core.models import BaseModel
from tzrec_core.modules import SequenceEncoder
from tzrec_core.plugins import (
    CallbackSpec,
    FeatureSpec,
    LossSpec,
    MetricSpec,
    ModelSpec,
    Offer,
    ReaderSpec,
    SeqEncoderSpec,
    Spec,
    registry,
)
from tzrec_core.plugins.registry import known_packages
from tzrec_core.testing.check import NotClaimed, Skipped, plugin_check
from tzrec_core.testing.subject import PluginSubject

BASES: dict[type[Spec], type] = {
    ModelSpec: BaseModel,
    LossSpec: nn.Module,
    MetricSpec: torchmetrics.Metric,
    SeqEncoderSpec: SequenceEncoder,
    FeatureSpec: BaseFeature,
    ReaderSpec: BaseReader,
    CallbackSpec: Callback,
}
_STACK = {"torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu"}
_SECTIONS = ("When to use", "Config", "Results", "Departures")
_TIMEOUT_S = 300
_NEEDED = re.compile(r"(PATH|HOME|TMPDIR|VIRTUAL_ENV|SYSTEMROOT|PYTHON\w+|TZREC_\w+|LD_\w+)\Z")
_JUNK = shutil.ignore_patterns("build", "dist", "*.egg-info", ".venv*", "venv", "__pycache__")

# A child sees the plugin as a command of tzrec does; it is given the manifest's name.
_DISCOVER = """
import importlib, json, sys
def discover():
    manifest = importlib.import_module(sys.argv[1])
    for spec in manifest.tzrec_specs() if hasattr(manifest, "tzrec_specs") else []:
        if spec.config:
            importlib.import_module(spec.config.partition(":")[0])
"""
_TORCH_PROBE = f"""
{_DISCOVER}
import tzrec_core.config
discover()
print(json.dumps("torch" in sys.modules))
"""
_STATE_PROBE = f"""
{_DISCOVER}
import logging, os, random, signal, warnings
import numpy, torch, tzrec_core.config

def loggers():
    return {{"the root": logging.getLogger(), **logging.root.manager.loggerDict}}

def state(names):
    found = {{
        "the working directory": os.getcwd(),
        "the random generator of Python": random.getstate(),
        "the random generator of NumPy": repr(numpy.random.get_state()),
        "the random generator of torch": torch.get_rng_state().tolist(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_default_device()": torch.get_default_device(),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_num_interop_threads()": torch.get_num_interop_threads(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.is_anomaly_enabled()": torch.is_anomaly_enabled(),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "torch.backends.cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "torch.multiprocessing.get_sharing_strategy()": torch.multiprocessing.get_sharing_strategy(),
        "sys.excepthook": sys.excepthook,
        "warnings.filters": list(warnings.filters),
        "the handler of SIGINT": signal.getsignal(signal.SIGINT),
        "the handler of SIGTERM": signal.getsignal(signal.SIGTERM),
        "logging.disable()": logging.root.manager.disable,
    }}
    found |= {{f"os.environ[{{name!r}}]": value for name, value in os.environ.items()}}
    for name, logger in loggers().items():
        if name in names and isinstance(logger, logging.Logger):
            settings = (logger.level, logger.disabled, logger.propagate, list(logger.handlers), list(logger.filters))
            found[f"the logger {{name!r}}"] = settings
    return found

names = set(loggers())
before = state(names)
discover()
after = state(names)
print(json.dumps([name for name in {{**before, **after}} if before.get(name) != after.get(name)]))
"""


@plugin_check
def check_core_bound(plugin: PluginSubject) -> None:
    """The distribution says which versions of tzrec-core it works with, from and up to."""
    bound = plugin.plugin.requires
    wanted = "write into its dependencies, for instance: tzrec-core>=0.1,<0.2"
    assert bound, f"{plugin.name} does not depend on tzrec-core; {wanted}"
    specifier = Requirement(f"tzrec-core{bound}").specifier
    assert not specifier.contains("0.0.1"), f"{plugin.name} needs tzrec-core{bound}, without a lower bound; {wanted}"
    assert not specifier.contains("9999"), f"{plugin.name} needs tzrec-core{bound}, without an upper bound; {wanted}"


@plugin_check
def check_dependencies(plugin: PluginSubject) -> None:
    """The distribution leaves torch, torchrec and fbgemm to tzrec-core, which pins them as one."""
    required = [Requirement(text) for text in _distribution(plugin).requires or []]
    pinned = sorted({canonicalize_name(r.name) for r in required} & _STACK)
    assert not pinned, f"{plugin.name} depends on {', '.join(pinned)}; leave that to tzrec-core"


@plugin_check
def check_entry_point(plugin: PluginSubject) -> None:
    """The entry point has a name that no other plugin has and no command takes, and is the module `plugin`."""
    found = plugin.plugin
    package, _, module = found.module.rpartition(".")
    assert package and module == "plugin", (
        f"the entry point {found.name!r} is {found.module}; put the manifest into {package or 'a_package'}/plugin.py "
        f'and write: {found.name} = "{package or "a_package"}.plugin"'
    )
    owners = [other.distribution for other in registry().plugins if other.name == found.name]
    assert len(owners) == 1, f"the entry-point name {found.name!r} is taken by {' and '.join(owners)}"
    commands = {command.name for command in app.registered_commands}
    assert found.name not in commands, f"the entry-point name {found.name!r} is a command of tzrec; choose another"


@plugin_check
def check_manifest_without_torch(plugin: PluginSubject) -> None:
    """The manifest and the config modules import no torch, so that every command starts at once."""
    assert not _child(_TORCH_PROBE, plugin.plugin.module), (
        f"importing {plugin.plugin.module}, or the config modules of its specs, imports torch; name classes as "
        f"'module:Class' and import what needs torch in the modules of the classes only"
    )


@plugin_check
def check_discovery_changes_nothing(plugin: PluginSubject) -> None:
    """Discovery leaves torch's global state, random generators, environment and logging as they were."""
    changed = _child(_STATE_PROBE, plugin.plugin.module)
    assert not changed, (
        f"importing {plugin.plugin.module} changes {', '.join(changed)}; an installed plugin must not change the runs "
        f"of others"
    )


@plugin_check
def check_specs(plugin: PluginSubject) -> None:
    """The manifest offers specs, all of kinds that this core knows, each with a summary of one line."""
    assert plugin.specs, f"{plugin.plugin.module} offers nothing; return a list of specs from tzrec_specs"
    unknown = [note for note in plugin.plugin.notes if "that tzrec-core" in note]
    assert not unknown, "; ".join(unknown)
    for spec in plugin.specs:
        summary = str(getattr(spec, "summary", ""))
        assert summary.endswith(".") and "\n" not in summary, (
            f"{spec.label()} {spec.name!r}: summary {summary!r} is not one line that ends in a period"
        )


@plugin_check
def check_targets(plugin: PluginSubject) -> None:
    """The class that each spec names can be imported and is one of its kind."""
    for offer in _offers(plugin):
        base = BASES[type(offer.spec)]
        target = registry().load(offer)
        assert isinstance(target, type) and issubclass(target, base), (
            f"{offer.spec.label()} {offer.spec.name!r}: {offer.spec.target} is not a subclass of "
            f"{base.__module__}.{base.__name__}"
        )


@plugin_check
def check_configs(plugin: PluginSubject) -> None:
    """The settings that each spec names can be imported, are a message or a frozen dataclass, and have its fields."""
    for offer in _offers(plugin):
        if offer.spec.config:
            config_class(offer)


@plugin_check
def check_proto_package(plugin: PluginSubject) -> None:
    """The package and the path of each .proto are those of the Python package it lies in."""
    messages = [
        (offer, message) for offer, message in _settings(plugin) if dataclass_of(message.DESCRIPTOR.full_name) is None
    ]
    if not messages:
        raise NotClaimed("no spec has its settings in a .proto")
    for offer, message in messages:
        package = message.__module__.rpartition(".")[0]
        file = message.DESCRIPTOR.file
        assert file.package == package, (
            f"{offer.spec.config}: its .proto says package {file.package}; write: package {package}; and run tzrec "
            f"protoc. Two plugins with messages of one name would crash the process"
        )
        folder = package.replace(".", "/")
        assert file.name.rpartition("/")[0] == folder, (
            f"{offer.spec.config} was generated from {file.name}, but lies in {folder}/; generate it with tzrec protoc"
        )


@plugin_check
def check_fields_documented(plugin: PluginSubject) -> None:
    """Every message and every field of the settings says what it means."""
    missing = [name for _, message in _settings(plugin) for name in _undocumented(message.DESCRIPTOR, set())]
    assert not missing, (
        f"no comment explains {', '.join(dict.fromkeys(missing))}; write // lines above it in the .proto that the "
        f"package ships, or for a dataclass a docstring and field(metadata={{'doc': ...}})"
    )


@plugin_check
def check_examples(plugin: PluginSubject) -> None:
    """Each model has an example in the package that parses without a mistake and uses the model."""
    _require_models(plugin)
    for model in plugin.models:
        spec = model_offer(model.config().model_config).spec
        assert spec is model.spec, f"{model.spec.example} is an example of {spec.name}, not of {model.spec.name}"


@plugin_check
def check_shipped_files(plugin: PluginSubject) -> None:
    """The wheel ships the manifest, the examples and the .proto files."""
    package = plugin.plugin.module.rpartition(".")[0].replace(".", "/")
    wanted = {f"{package}/plugin.py", *(f"{package}/{m.spec.example}" for m in plugin.models if m.spec.example)}
    wanted |= {
        message.__module__.replace(".", "/").removesuffix("_pb2") + ".proto"
        for _, message in _settings(plugin)
        if dataclass_of(message.DESCRIPTOR.full_name) is None
    }
    missing = sorted(wanted - _shipped(plugin))
    assert not missing, (
        f"the wheel lacks {', '.join(missing)}; with setuptools, write into pyproject.toml: "
        f'[tool.setuptools.package-data] "*" = ["*.proto", "*.pyi", "*.config"]'
    )


@plugin_check
def check_version(plugin: PluginSubject) -> None:
    """`__version__` of the package is the version of the distribution."""
    package = plugin.plugin.module.partition(".")[0]
    version = getattr(import_module(package), "__version__", None)
    expected = _distribution(plugin).version
    assert version == expected, (
        f"{package}.__version__ is {version!r}, but {plugin.name} is installed as {expected}; make them equal, and "
        f"install an editable one again"
    )


@plugin_check
def check_readme(plugin: PluginSubject) -> None:
    """The README has the sections When to use, Config, Results and Departures, and none of them is empty."""
    _require_models(plugin)
    sections = _sections(_readme(plugin))
    for wanted in _SECTIONS:
        bodies = [body for title, body in sections.items() if title.lower().startswith(wanted.lower())]
        has = ", ".join(sections) or "none"
        assert bodies, f"the README has no section ## {wanted} ...; its sections are: {has}"
        assert any(body.strip() for body in bodies), f"the section {wanted} of the README is empty"


@plugin_check
def check_readme_names_another_model(plugin: PluginSubject) -> None:
    """The README says when another model is the better choice, and which."""
    _require_models(plugin)
    text = _readme(plugin)
    packages = known_packages()
    models = {**packages, **{o.spec.name: o.plugin.distribution for o in registry().offers(ModelSpec)}}
    others = {name for name, owner in models.items() if owner != plugin.name} - {m.spec.name for m in plugin.models}
    named = set(re.findall(r"`(\w+)`", text)) & others
    named |= set(re.findall(r"[\w-]+", text)) & ({*packages.values()} - {plugin.name})
    assert named, (
        "the README names no other model; say when another one is better, as package (tzrec-deepfm) or in backticks "
        f"(`deepfm`). Known are: {', '.join(sorted(others))}"
    )


def _distribution(plugin: PluginSubject) -> Distribution:
    assert plugin.distribution is not None, "checks of packages are for packages"
    return plugin.distribution


def _require_models(plugin: PluginSubject) -> None:
    if not plugin.models:
        raise NotClaimed("offers no model")


def _offers(plugin: PluginSubject) -> Iterator[Offer[Spec]]:
    return (Offer(spec, plugin.plugin) for spec in plugin.specs)


def _settings(plugin: PluginSubject) -> Iterator[tuple[Offer[Spec], Any]]:
    """The offers that have settings, and the message class of these."""
    return ((offer, config_class(offer)) for offer in _offers(plugin) if offer.spec.config)


def _undocumented(descriptor: Any, seen: set[str]) -> Iterator[str]:
    """Full names of what has no comment, in a message and those that it holds, but the core's."""
    if descriptor.full_name in seen or descriptor.file.package.startswith(("tzrec_core.", "google.")):
        return
    seen.add(descriptor.full_name)
    if not message_comment(descriptor):
        yield descriptor.name
    comments = field_comments(descriptor)
    for field in descriptor.fields:
        if field.name not in comments:
            yield f"{descriptor.name}.{field.name}"
        if field.message_type is not None:
            yield from _undocumented(field.message_type, seen)


def _child(code: str, *arguments: str) -> Any:  # Any: JSON
    """What `code` prints last, as JSON, in a process whose environment no plugin has touched yet."""
    environment = {name: value for name, value in os.environ.items() if _NEEDED.match(name)}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment)
    assert done.returncode == 0, f"a process that only imports the plugin ends with:\n{_tail(done.stderr)}"
    return json.loads(done.stdout.splitlines()[-1])


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:])


def _shipped(plugin: PluginSubject) -> set[str]:
    """The files of the wheel: built now from the source, or as installed."""
    if plugin.source_folder is None:
        return {str(file) for file in _distribution(plugin).files or []}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"  # a copy, for builds leave files beside the sources and take up old ones
        shutil.copytree(plugin.source_folder, source, ignore=_JUNK)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-index", "--no-build-isolation", "--wheel-dir", scratch, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode and ("No module named pip" in done.stderr or "BackendUnavailable" in done.stderr):
            raise Skipped("no wheel can be built here: pip install --upgrade pip 'setuptools>=77'")
        assert done.returncode == 0, f"no wheel can be built:\n{_tail(done.stderr)}"
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return set(archive.namelist())


def _readme(plugin: PluginSubject) -> str:
    if plugin.source_folder is not None and (plugin.source_folder / "README.md").is_file():
        return (plugin.source_folder / "README.md").read_text(encoding="utf-8")
    text = _distribution(plugin).metadata.get_payload()  # type: ignore[attr-defined]  # it is a Message
    assert text and text.strip(), f'{plugin.name} has no README; write one, and readme = "README.md" in pyproject.toml'
    return str(text)


def _sections(markdown: str) -> dict[str, str]:
    """Headings of the second level and what stands below each."""
    prose = re.sub(r"^```.*?^```", lambda code: code[0].replace("#", ""), markdown, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^## +(.+?)\s*$", prose, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))
