import contextlib
import importlib
import json
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny_plugin"))
import tiny_data

from tzrec_core.cli import app as app_module

registry_module = importlib.import_module("tzrec_core.plugins.registry")


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=pytest.fail)


@pytest.fixture
def tzrec(monkeypatch, capfd, tmp_path):
    """Runs the command line in this process, with no plugin but those given by the arguments."""

    def run(*arguments: str, only: str | None = "") -> Result:
        with monkeypatch.context() as patch, warnings.catch_warnings(), contextlib.ExitStack() as after:
            for name in ("TZREC_PLUGINS", "TZREC_PLUGIN_FILES"):  # set first, so that what a run sets is undone
                patch.setenv(name, "")
                patch.delenv(name)
            if only is not None:
                patch.setenv("TZREC_PLUGINS", only)
            patch.setattr(registry_module, "_current", None)
            patch.setattr(app_module.app, "registered_groups", [])
            patch.setattr(sys, "argv", ["tzrec", *arguments])
            for name in ("tzrec_core", "torch.fx._symbolic_trace"):  # main() sets their levels for the process
                after.callback(logging.getLogger(name).setLevel, logging.getLogger(name).level)
            after.callback(capfd.readouterr)
            capfd.readouterr()
            try:
                app_module.main()
                code = 0
            except SystemExit as error:
                code = int(error.code or 0)
            out, err = capfd.readouterr()
            return Result(code, out, err)

    yield run
    for name, module in list(sys.modules.items()):  # manifests that a test wrote
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def tiny(tzrec):
    """`tzrec` with the tiny plugin."""

    def run(*arguments: str) -> Result:
        return tzrec("--plugin", tiny_data.MANIFEST, *arguments)

    return run


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "tiny.config"
    path.write_text(tiny_data.write_tables(tmp_path), encoding="utf-8")
    return path
