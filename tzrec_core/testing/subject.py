"""What checks look at: an installed plugin, or a manifest given as a file, and the models that it offers."""

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from packaging.utils import canonicalize_name

from tzrec_core.config import load_config
from tzrec_core.engine.setup import seed_everything
from tzrec_core.errors import PluginError, did_you_mean
from tzrec_core.features import BaseFeature, create_features
from tzrec_core.models import BaseModel, TrainWrapper, create_model
from tzrec_core.plugins import ModelSpec, Plugin, Registry, Selection, Spec, State, registry
from tzrec_core.plugins.registry import how_to_enable, use_registry
from tzrec_core.testing.layout import Layout, layout_of

_FILES = "TZREC_PLUGIN_FILES"


@dataclass
class PluginSubject:
    """A plugin under test.

    Attributes:
        plugin: what discovery knows about it.
        registry: what the process offers while its checks run.
        distribution: what pip knows about it; None for a manifest given as a file.
        package_folder: the installed package; for a file, the folder that holds it.
        source_folder: where its pyproject.toml lies, when it is installed as editable.
        models: one for each model that it offers.
    """

    plugin: Plugin
    registry: Registry
    distribution: Distribution | None
    package_folder: Path
    source_folder: Path | None
    models: list["ModelSubject"] = field(init=False)

    def __post_init__(self) -> None:
        self.models = [ModelSubject(spec, self) for spec in self.specs if isinstance(spec, ModelSpec)]

    @property
    def name(self) -> str:
        """Its distribution, such as `tzrec-deepfm`; for a file, the path."""
        return self.plugin.distribution

    @property
    def specs(self) -> tuple[Spec, ...]:
        """All that it offers."""
        return tuple(self.plugin.specs)

    @classmethod
    def find(cls, name: str) -> "PluginSubject":
        """The plugin of a distribution, an entry point or a file.

        Args:
            name: such as `tzrec-deepfm`, `deepfm` or `./plugin.py`.

        Raises:
            PluginError: there is none of that name, or it is not ok; carries the cause.
        """
        file = os.path.abspath(name) if name.endswith(".py") or os.sep in name else ""
        found = _registry_with(file) if file else registry()
        plugin = _plugin(found, file or name)
        if plugin.state is not State.OK:
            raise PluginError(
                f"{plugin.distribution} is {plugin.state}: {plugin.reason.rstrip('.')}.{how_to_enable(plugin)}"
            ) from plugin.cause
        assert plugin.manifest is not None and plugin.manifest.__file__ is not None
        folder = Path(plugin.manifest.__file__).parent
        if file:
            return cls(plugin, found, None, folder, None)
        dist = distribution(plugin.distribution)
        return cls(plugin, found, dist, folder, _source_folder(dist))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block, this process and its children offer the plugin."""
        before = os.environ.get(_FILES)
        files = [file for file in (before or "").split(os.pathsep) if file]
        if self.distribution is None and self.name not in files:
            os.environ[_FILES] = os.pathsep.join([*files, self.name])
        try:
            with use_registry(self.registry):
                yield
        finally:
            os.environ.pop(_FILES, None)
            if before is not None:
                os.environ[_FILES] = before


def _registry_with(file: str) -> Registry:
    if not Path(file).is_file():
        raise PluginError(f"{file}: there is no such file")
    if any(plugin.module == file for plugin in registry().plugins):
        return registry()
    selection = Selection.from_environment()
    return Registry.find(replace(selection, files=(*selection.files, file)))


def _plugin(found: Registry, name: str) -> Plugin:
    by_entry_point = [plugin for plugin in found.plugins if plugin.name == name]
    wanted = canonicalize_name(name)
    by_distribution = [p for p in found.plugins if p.distribution == name or p.distribution == wanted]
    matches = by_distribution if by_distribution else by_entry_point
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise PluginError(
            f"{name!r} is more than one plugin; say which: "
            f"{', '.join(p.name if by_distribution else p.distribution for p in matches)}"
        )
    names = [n for plugin in found.plugins for n in (plugin.distribution, plugin.name)]
    raise PluginError(
        f"there is no plugin {name!r}.{did_you_mean(name, names)} "
        f"Installed: {', '.join(sorted({p.distribution for p in found.plugins})) or 'none'}. See `tzrec list-plugins`."
    )


def _source_folder(dist: Distribution) -> Path | None:
    """Where an editable install points to (PEP 610)."""
    origin = json.loads(dist.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    folder = Path(url2pathname(urlparse(origin["url"]).path))
    return folder if (folder / "pyproject.toml").is_file() else None


@dataclass
class ModelSubject:
    """A model under test: its packaged example, brought to life as training does it.

    Attributes:
        spec: what the plugin says about it.
        plugin: where it comes from.
        parameters_without_gradient: glob patterns of the parameters that have no gradient by design.
    """

    spec: ModelSpec
    plugin: PluginSubject = field(repr=False)
    parameters_without_gradient: Collection[str] = ()

    @property
    def package_folder(self) -> Path:
        """The installed package."""
        return self.plugin.package_folder

    def in_use(self) -> Any:  # Any: a context manager without a value
        """See `PluginSubject.in_use`."""
        return self.plugin.in_use()

    def layout(self, config: Any, *, is_inference: bool = False) -> Layout:
        """What it predicts, and where the rows lie in it; see `layout_of`.

        Raises:
            Skipped: the core has no base class, and so no rules, for the model's task yet.
        """
        return layout_of(self.spec.task, config, is_inference=is_inference)

    def config(self, *overrides: str) -> Any:
        """The packaged example, checked: a new EasyRecConfig each time.

        Args:
            *overrides: changes as `--set` takes them, such as `data_config.batch_size=8`.

        Raises:
            AssertionError: the spec names no example.
            ConfigError: the example has mistakes.
        """
        assert self.spec.example, (
            f"model {self.spec.name!r} has no example to check it with; write a config into the package and name it: "
            f'ModelSpec(..., example="examples/tiny.config")'
        )
        return load_config(self.package_folder / self.spec.example, overrides=overrides, validate=True)

    def features(self, config: Any = None) -> list[BaseFeature]:
        """The features of `config`; None = of the example."""
        config = self.config() if config is None else config
        return create_features(config.feature_configs, config.data_config)

    def build(self, config: Any = None, *, seed: int = 1, device: str = "cpu") -> BaseModel:
        """A fresh model, as it initialises itself, without losses and metrics.

        Args:
            config: None = the example.
            seed: of Python, NumPy and torch, set before.
            device: `cpu`, or `meta` for one without storage.
        """
        config = self.config() if config is None else config
        data_config = config.data_config
        seed_everything(seed)
        return create_model(
            config.model_config,
            self.features(config),
            list(data_config.label_fields),
            list(data_config.sample_weight_fields),
            sampler_type=data_config.WhichOneof("sampler"),
            device=device,
        )

    def wrapper(self, config: Any = None, *, seed: int = 1) -> TrainWrapper:
        """A fresh model on the CPU with its losses and metrics; arguments as for `build`."""
        return TrainWrapper(self.build(config, seed=seed))
