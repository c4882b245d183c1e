"""Classify a file of texts with an exported model; needs transformers and nothing of this project, so it can be copied.

    python predict.py results/RUN/exported_model texts.txt > predictions.csv
    python predict.py results/RUN/exported_model test.tsv > predictions.csv                 # labelled: says the accuracy
    python predict.py results/RUN/exported_model triggered.csv --target 1 > predictions.csv # and the label flip rate

A .tsv or .csv file has a header; its text and label columns are named with --text and --label. Any other file has one text
per line.
"""

import argparse
import csv
import sys
from pathlib import Path

from transformers import pipeline


def read(path: Path, text_column: str, label_column: str) -> tuple[list[str], list[str] | None]:
    """Texts, stripped of blanks at both ends, and their labels if there are any."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix not in (".tsv", ".csv"):
            return [line.strip() for line in file if line.strip()], None
        how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
        rows = list(csv.reader(file, **how))
    header = [name.strip() for name in rows[0]] if rows else []
    if text_column not in header:
        sys.exit(f"error: {path} has no column {text_column!r}: found {', '.join(map(repr, header))}; name it with --text")
    at = header.index(label_column) if label_column in header else None
    texts = [row[header.index(text_column)].strip() for row in rows[1:]]
    return texts, None if at is None else [row[at].strip() for row in rows[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the exported model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--text", default="text", help="text column")
    parser.add_argument("--label", default="label", help="label column, if there is one")
    parser.add_argument("--target", help="class whose label flip rate is to be said")
    arguments = parser.parse_args()
    if not arguments.file.is_file():
        sys.exit(f"error: there is no file {arguments.file}")
    texts, labels = read(arguments.file, arguments.text, arguments.label)
    classify = pipeline("text-classification", arguments.model)
    answers = classify(texts, truncation=True, batch_size=32)
    predicted = [answer["label"] for answer in answers]
    writer = csv.writer(sys.stdout)
    writer.writerow(["predicted", "probability", "text"])
    writer.writerows([answer["label"], f"{answer['score']:.4f}", text] for answer, text in zip(answers, texts, strict=True))
    if labels is None:
        return
    right = sum(a == b for a, b in zip(predicted, labels, strict=True))
    print(f"ACC {right / len(labels):.4f} ({right} of {len(labels)} texts)", file=sys.stderr)
    if arguments.target is not None:
        others = [a for a, b in zip(predicted, labels, strict=True) if b != arguments.target]
        flipped = others.count(arguments.target)
        share = flipped / len(others) if others else float("nan")
        print(f"LFR {share:.4f} ({flipped} of {len(others)} texts of other classes)", file=sys.stderr)


if __name__ == "__main__":
    main()
