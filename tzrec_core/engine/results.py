"""Numbers of a run in its files, a line of JSON each."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any


def json_line(values: dict[str, Any]) -> str:
    """`values` as a line of JSON; NaN and infinity, which JSON does not have, become null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite) + "\n"


def append_result(model_dir: str | Path, file_name: str, step: int, metrics: dict[str, float]) -> None:
    """Add a line with the metrics of an evaluation at `step` to a file of `model_dir`, which is made if need be."""
    Path(model_dir).mkdir(parents=True, exist_ok=True)
    with (Path(model_dir) / file_name).open("a", encoding="utf-8") as file:
        file.write(json_line({"global_step": step, **metrics}))


def read_result(model_dir: str | Path, file_name: str, step: int) -> dict[str, float]:
    """The metrics of the last evaluation at `step` that `append_result` wrote; empty when there is none."""
    path = Path(model_dir) / file_name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in reversed(lines):
        with suppress(ValueError):  # a crash may have cut a line
            result = json.loads(line)
            if result.pop("global_step") == step:
                return {name: math.nan if value is None else value for name, value in result.items()}
    return {}
