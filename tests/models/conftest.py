import importlib.util
import sys
from pathlib import Path

import pytest

from tzrec_core.plugins import Registry, use_registry

_SPEC = importlib.util.spec_from_file_location("tzrec_toy", Path(__file__).with_name("toy.py"))
sys.modules["tzrec_toy"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["tzrec_toy"])


@pytest.fixture(autouse=True, scope="module")
def only_the_toy_is_installed():
    from tzrec_toy import PLUGIN

    with use_registry(Registry([PLUGIN])):
        yield
