"""Seconds from the start of a process to the first optimizer step of `tzrec train`, and where they went.

    python benchmarks/engine_first_step.py <start, seconds since 1970> <arguments of tzrec train ...>

Prints a line of JSON at the end; benchmarks/engine.py runs it.
"""

import functools
import json
import sys
import time
from typing import Any

marks: dict[str, float] = {}


def mark(name: str) -> None:
    marks.setdefault(name, time.time())


def marking(cls: type, name: str, *, before: bool) -> None:
    """Mark the first construction of a class, before or after it."""
    constructor = cls.__init__

    @functools.wraps(constructor)
    def marked(*args: Any, **kwargs: Any) -> None:
        if before:
            mark(name)
        constructor(*args, **kwargs)
        mark(name)

    cls.__init__ = marked  # type: ignore[misc]


def main() -> None:
    start = float(sys.argv[1])
    mark("python")
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from torchrec.distributed import DistributedModelParallel

    import tzrec_core.engine.train  # noqa: F401 (so that the time of its imports is known)
    from tzrec_core.cli.app import main as tzrec
    from tzrec_core.models import BaseModel, TrainWrapper

    mark("imports")
    batch = "optimizer, loader, first batch"
    marking(BaseModel, "config, plugins, features", before=True)
    marking(TrainWrapper, "model", before=False)
    marking(DistributedModelParallel, "sharding", before=False)
    register_module_forward_pre_hook(lambda module, args: mark(batch) if isinstance(module, TrainWrapper) else None)
    # before the first batch optimizers may step for nothing, to have their states made
    register_optimizer_step_post_hook(lambda *args: mark("first step") if batch in marks else None)
    sys.argv = ["tzrec", "train", *sys.argv[2:]]
    try:
        tzrec()
    except SystemExit as end:
        if end.code:
            raise
    seconds, last = {}, start
    for name, at in marks.items():
        seconds[name], last = at - last, at
    print("\n" + json.dumps({"total": last - start, "split": seconds}), flush=True)


if __name__ == "__main__":
    main()
