"""The bar to clear: one-hot logistic regression on the split that prepare.py wrote.

python examples/movielens/baselines.py --data examples/movielens/data
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import OneHotEncoder

COLUMNS = ["user_id", "item_id", "age", "gender", "occupation", "year"]


def logistic_regression(data: Path, *, strength: float = 1.0) -> dict[str, float]:
    """AUC and logloss on eval.parquet of one-hot logistic regression, scikit-learn's defaults.

    Args:
        strength: C, the inverse of the L2 penalty.
    """
    train_values, train_labels = _load(data / "train.parquet")
    eval_values, eval_labels = _load(data / "eval.parquet")
    encoder = OneHotEncoder(handle_unknown="ignore").fit(train_values)
    model = LogisticRegression(C=strength, max_iter=1000).fit(encoder.transform(train_values), train_labels)
    probs = model.predict_proba(encoder.transform(eval_values))[:, 1]
    return {
        "auc": float(roc_auc_score(eval_labels, probs)),
        "logloss": float(log_loss(eval_labels, probs)),
    }


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(path, columns=[*COLUMNS, "label"])
    values = [["" if value is None else str(value) for value in table[name].to_pylist()] for name in COLUMNS]
    return np.array(values).T, table["label"].to_numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One-hot logistic regression on the MovieLens split.")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--strength", type=float, default=1.0, help="C, the inverse of the L2 penalty")
    parser.add_argument("--out", type=Path, help="a JSON file to write the scores to")
    args = parser.parse_args()
    result = logistic_regression(args.data, strength=args.strength)
    scores = ", ".join(f"{name} {value:.4f}" for name, value in result.items())
    print(f"logistic regression, C = {args.strength:g}: {scores}")
    if args.out:
        args.out.write_text(json.dumps(result) + "\n")
