"""Writes a real table, the breast cancer data of Wisconsin: `python demo/cancer.py cancer.csv`.

569 tumours, 30 measurements of each, benign or malignant; from scikit-learn (the extra `examples`).
"""

import csv
import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer


def main() -> None:
    """Write it to the new file that was named."""
    data = load_breast_cancer()
    with Path(sys.argv[1]).open("x", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["patient", *data.feature_names, "diagnosis"])
        for number, (row, kind) in enumerate(zip(data.data, data.target, strict=True), start=1):
            lines.writerow([f"patient {number}", *row.tolist(), data.target_names[kind]])


if __name__ == "__main__":
    main()
