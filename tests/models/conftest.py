import importlib.util
import sys
from pathlib import Path

import pytest

from tzrec_core.plugins import Registry, use_registry

for name in ("toy", "toy_match", "toy_tasks"):
    _SPEC = importlib.util.spec_from_file_location(f"tzrec_{name}", Path(__file__).with_name(f"{name}.py"))
    sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(sys.modules[_SPEC.name])


@pytest.fixture(autouse=True, scope="module")
def only_the_toy_is_installed():
    from tzrec_toy import PLUGIN

    with use_registry(Registry([PLUGIN])):
        yield
