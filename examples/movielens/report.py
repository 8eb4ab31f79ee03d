"""Print what a run reached, in a short table, and draw its loss and AUC curves.

python examples/movielens/report.py --model-dir examples/movielens/runs/deepfm
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

Record = dict[str, float | str]


def read_metrics(path: Path) -> dict[str, list[Record]]:
    """The records of metrics.jsonl by their "split", "train" or "eval", in step order.

    A run that was continued may have logged a step twice: the later record counts.
    """
    by_step: dict[str, dict[float, Record]] = {"train": {}, "eval": {}}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        by_step[record["split"]][record["step"]] = record
    return {split: [steps[step] for step in sorted(steps)] for split, steps in by_step.items()}


def read_eval_result(path: Path) -> Record:
    """The metrics of the last evaluation: the last line of a file of JSON lines."""
    return json.loads(path.read_text().splitlines()[-1])


def draw_curves(metrics: dict[str, list[Record]], path: Path) -> None:
    """Write a PNG with one panel for the loss and one for the AUC."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, names in zip(panels, (("loss", "logloss"), ("auc",)), strict=True):
        for split, records in metrics.items():
            points = [(record["step"], record[name]) for record in records for name in names if name in record]
            if points:
                panel.plot(*zip(*points), label=split, marker="o" if len(points) < 30 else None, markersize=3)
        panel.set(xlabel="step", title="loss" if "loss" in names else "AUC")
        panel.grid(alpha=0.3)
        if panel.has_data():
            panel.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def summary(
    metrics: dict[str, list[Record]],
    eval_result: Record,
    files: dict[str, Path],
    baseline: float | None = None,
) -> Table:
    """The table that the demo ends with."""
    table = Table(title="MovieLens-100k, eval = each user's latest 20%", show_header=False)
    for key, label in (("auc", "AUC"), ("logloss", "logloss")):
        if key in eval_result:
            table.add_row(label, f"{eval_result[key]:.4f}")
    if baseline is not None:
        table.add_row("AUC of logistic regression", f"{baseline:.4f}")
    speeds = [record["samples_per_second"] for record in metrics["train"] if "samples_per_second" in record]
    if speeds:
        table.add_row("samples/s at the end", f"{speeds[-1]:,.0f}")
    for label, path in files.items():
        if path.exists():
            table.add_row(label, str(path))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Print and draw what a run reached.")
    parser.add_argument("--model-dir", type=Path, default=Path(__file__).parent / "runs" / "deepfm")
    parser.add_argument("--eval-result", type=Path, help="default: MODEL_DIR/eval_result.txt")
    parser.add_argument("--predictions", type=Path, help="where `tzrec predict` wrote, to show it")
    parser.add_argument("--baseline", type=Path, help="what baselines.py wrote, to show its AUC")
    args = parser.parse_args(argv)
    log = args.model_dir / "metrics.jsonl"
    result = args.eval_result or args.model_dir / "eval_result.txt"
    for path, command in ((log, "train"), (result, "eval")):
        if not path.exists():
            print(f"{path} is missing: run `tzrec {command}` first.", file=sys.stderr)
            return 1
    metrics = read_metrics(log)
    curves = args.model_dir / "curves.png"
    draw_curves(metrics, curves)
    files = {"model": args.model_dir, "curves": curves, "eval result": result}
    if args.predictions:
        files["predictions"] = args.predictions
    baseline = json.loads(args.baseline.read_text())["auc"] if args.baseline else None
    Console().print(summary(metrics, read_eval_result(result), files, baseline))
    return 0


if __name__ == "__main__":
    sys.exit(main())
