import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny_plugin"))
import tiny_data

from tzrec_core.config import parse_config
from tzrec_core.plugins import Registry, Selection, use_registry


@pytest.fixture(scope="session")
def tiny_registry() -> Registry:
    return Registry.find(Selection(only=frozenset(), files=(tiny_data.MANIFEST,)))


@pytest.fixture(autouse=True)
def _only_the_tiny_model(tiny_registry: Registry) -> Iterator[None]:
    with use_registry(tiny_registry):
        yield


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Any]:
    """Writes tables once; `config("a.b=c", ...)` is the tiny config with these changes."""
    text = tiny_data.write_tables(tmp_path)

    def make(*overrides: str) -> Any:
        return parse_config(text, overrides=overrides, validate=True)

    return make
