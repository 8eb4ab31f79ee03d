"""The example's DeepFM in one process and in two: do they reach the same AUC?

python benchmarks/movielens_processes.py     # after `make demo` has prepared the data

Writes results/movielens_processes.md.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLOBAL_BATCH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for processes in (1, 2):
        runs = [_run(processes, seed) for seed in range(1, args.seeds + 1)]
        cells = [_spread([run[key] for run in runs]) for key in ("auc", "logloss")]
        rows.append(f"| {processes} | {GLOBAL_BATCH // processes} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    stack = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec", "tzrec-core"))
    text = f"""# MovieLens-100k in one process and in two

`python benchmarks/movielens_processes.py --seeds {args.seeds}` on {platform.machine()}, gloo, {stack}.
`examples/movielens/deepfm.config` with {GLOBAL_BATCH} rows per step in both. Mean and range over the seeds.

| processes | batch size of each | eval AUC | eval logloss |
| --- | --- | --- | --- |
"""
    out = ROOT / "benchmarks" / "results" / "movielens_processes.md"
    out.write_text(text + "\n".join(rows) + "\n", encoding="utf-8")


def _run(processes: int, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        changes = [
            f"data_config.batch_size={GLOBAL_BATCH // processes}",
            f"data_config.shuffle_buffer_size={80 * processes}",
            f"train_config.seed={seed}",
            f"model_dir={folder}",
        ]
        command = [sys.executable, "-m", "tzrec_core.cli.app", "train", "examples/movielens/deepfm.config", "--json"]
        command += ["--nproc", str(processes), *(part for change in changes for part in ("--set", change))]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        metrics: dict[str, float] = json.loads(done.stdout)["metrics"]
        return metrics


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})"


if __name__ == "__main__":
    main()
