"""`tzrec doctor`: what is installed and whether it works."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from tzrec_core import __version__
from tzrec_core.cli.output import JsonOption, print_json, print_table
from tzrec_core.plugins import State, registry

_TIMEOUT_S = 120

# Run in a child process: a broken native library must be a row of the table, not the end of it.
_PROBES = {
    "torch": (
        "import torch; torch.ones(2) @ torch.ones(2);"
        " print(torch.__version__, 'with', torch.get_num_threads(), 'threads')"
    ),
    "cuda": (
        "import torch; names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())];"
        " print(', '.join(names) or 'no device, using the CPU')"
    ),
    "fbgemm": (
        "import torch, fbgemm_gpu; torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2]));"
        " print(fbgemm_gpu.__version__)"
    ),
    "torchrec": (
        "import torch, torchrec; from torchrec import EmbeddingBagConfig, KeyedJaggedTensor;"
        " table = EmbeddingBagConfig(name='t', num_embeddings=2, embedding_dim=2, feature_names=['f']);"
        " ids = KeyedJaggedTensor(['f'], torch.tensor([1]), lengths=torch.tensor([1]));"
        " torchrec.EmbeddingBagCollection(tables=[table])(ids); print(torchrec.__version__)"
    ),
    "hashing": (
        "import polars, polars_hash as h; column = h.col('a').nchash.xxhash64();"
        " value = polars.DataFrame({'a': ['tzrec']}).select(column).item();"
        " assert value == 6187480866781866289, value; print('xxh64 as published')"
    ),
}
# What to do where a probe fails on a machine without a GPU.
_CPU_REMEDIES = {
    "fbgemm": (
        "; without a GPU run `pip uninstall fbgemm-gpu fbgemm-gpu-cpu`, then install again with the wheel of dist/cpu"
        " (README, Install)"
    )
}
_LIBRARIES = (
    "torchmetrics",
    "protobuf",
    "pluggy",
    "pyarrow",
    "polars",
    "polars-hash",
    "fsspec",
    "numpy",
    "tensorboard",
)


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("doctor")(doctor)


def doctor(json: JsonOption = False) -> None:
    """Check the installation; exits 1 when something is broken."""
    rows = [
        _row("tzrec-core", True, __version__),
        _row("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}"),
        _row("machine", True, f"{os.cpu_count()} cores, {_memory_gib()} GiB of memory"),
        *(_probe(name, code) for name, code in _PROBES.items()),
        *(_library(name) for name in _LIBRARIES),
    ]
    selected = os.environ.get("TZREC_PLUGINS")
    notes = registry().notes  # such as a name that no plugin has
    chosen = "unset: all" if selected is None else repr(selected)
    rows.append(_row("TZREC_PLUGINS", not notes, "; ".join([chosen, *notes])))
    for plugin in registry().plugins:
        ok = plugin.state in (State.OK, State.DISABLED)
        state = "" if plugin.state is State.OK else f"{plugin.state}: {plugin.reason}"
        details = [text for text in (f"{plugin.version} {state}".strip(), *plugin.notes) if text]
        rows.append(_row(f"plugin {plugin.distribution}", ok, "; ".join(details)))
    is_healthy = all(row["ok"] for row in rows)
    if json:
        print_json({"ok": is_healthy, "checks": rows})
    else:
        print_table(
            ["check", "state", "detail"], [[r["name"], "ok" if r["ok"] else "BROKEN", r["detail"]] for r in rows]
        )
    if not is_healthy:
        raise typer.Exit(1)


def _row(name: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail}


def _probe(name: str, code: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _row(name, False, f"no answer after {_TIMEOUT_S} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        cause = lines[-1] if lines else f"died with exit code {done.returncode}"
        return _row(name, False, cause + _CPU_REMEDIES.get(name, ""))
    return _row(name, True, done.stdout.strip().splitlines()[-1])


def _library(name: str) -> dict[str, Any]:
    try:
        return _row(name, True, version(name))
    except PackageNotFoundError:
        return _row(name, False, f"not installed; run: pip install {name}")


def _memory_gib() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    except (ValueError, OSError, AttributeError):  # not on every system
        return 0
