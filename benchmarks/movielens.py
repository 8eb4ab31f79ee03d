"""What the example's configs reach on MovieLens-100k: several seeds each, beside logistic regression.

python benchmarks/movielens.py            # after `make demo` has prepared the data; writes results/movielens.md
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from tzrec_core import api

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "movielens"
sys.path.insert(0, str(EXAMPLE))


def main() -> None:
    from baselines import logistic_regression

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="deepfm,wide_and_deep")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    scores = logistic_regression(EXAMPLE / "data")
    rows = [f"| logistic regression, C = 1 | {scores['auc']:.4f} | {scores['logloss']:.4f} | | |"]
    for model in args.models.split(","):
        runs = [_run(model, seed) for seed in range(1, args.seeds + 1)]
        cells = [_spread([run[key] for run in runs], digits) for key, digits in _COLUMNS.items()]
        rows.append(f"| `{model}.config` | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    stack = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec", "tzrec-core"))
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}"
    text = f"""# MovieLens-100k

Mean of {args.seeds} seeds, smallest and largest in brackets. Eval = each user's latest 20% by time.

| | AUC | logloss | training, samples/s | wall time, s |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

`python benchmarks/movielens.py --seeds {args.seeds}` on {machine}, {stack}. The wall time
holds evaluations and checkpoints.
"""
    (Path(__file__).parent / "results" / "movielens.md").write_text(text)


_COLUMNS = {"auc": 4, "logloss": 4, "samples_per_second": 0, "seconds": 0}


def _run(model: str, seed: int) -> dict[str, float]:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"train_config.seed={seed}", f"model_dir={folder}"]
        result = api.train(EXAMPLE / f"{model}.config", overrides=overrides)
    seconds = time.perf_counter() - started
    return {**result.metrics, "samples_per_second": result.samples_per_second, "seconds": seconds}


def _spread(values: list[float], digits: int) -> str:
    mean, low, high = statistics.mean(values), min(values), max(values)
    return f"{mean:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


if __name__ == "__main__":
    main()
