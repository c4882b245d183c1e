"""Classify a file of texts with an exported model; needs torch and transformers alone, so the file can be copied anywhere.

    python predict.py results/RUN/PURE/exported_model texts.txt > predictions.csv
    python predict.py results/RUN/PURE/exported_model test.tsv > predictions.csv                # labelled: says the accuracy
    python predict.py results/RUN/PURE/exported_model triggered.csv --target 1 > predictions.csv # and the label flip rate

A .tsv or .csv file has a header; its text and label columns are named with --text and --label. Any other file has one text
per line. Classes are named as the model names them, in any case, or numbered from 0. In the output, a text that begins with
=, +, - or @ has an apostrophe in front, since spreadsheets run such texts as formulas.

Where oddness.safetensors lies beside the model there is a column with DAN (Chen et al., Findings of EMNLP 2022), a score of
how far a text is from the clean texts of every class, in every layer. How many are above its threshold is said at the end;
these may be triggered, or only unusual.
"""

import argparse
import csv
import io
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TextClassificationPipeline
from transformers.utils import logging

END = "\0"
"""A row that no table has."""
BREAK = re.compile(r"<br\s*/?>")
"""A line break of HTML: a blank when the model was trained, and so here."""
FORMULA = ("=", "+", "-", "@")


def fail(message: str) -> NoReturn:
    """Leave with one line on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def read(path: Path, text_column: str, label_column: str | None = None) -> tuple[list[str], list[str] | None]:
    """Texts, stripped of blanks at both ends, HTML line breaks as blanks, and their labels if there are any.

    Args:
        label_column: None: "label" in any case, if there is such a column.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        fail(f"can't read {path}: {error.strerror}")
    except UnicodeDecodeError as error:
        found = "utf-16" if error.object[:1] in (b"\xff", b"\xfe") else "latin1"
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        fail(f"{path} is not UTF-8: byte {byte:#04x} in line {line}; convert it, for example: iconv -f {found} -t utf-8")
    if path.suffix.lower() in (".tsv", ".csv"):
        try:
            texts, labels = read_columns(path, content, text_column, label_column)
        except csv.Error as error:
            fail(f"{path} is not a table: {error}")
    else:
        lines = re.split(r"\r\n?|\n", BREAK.sub(" ", content))
        texts, labels = [line.strip() for line in lines if line.strip()], None
    if not texts:
        fail(f"{path} has no texts; expected one per line, or a .csv or .tsv file with a header and texts")
    return texts, labels


def read_columns(path: Path, content: str, text_column: str, label_column: str | None) -> tuple[list[str], list[str] | None]:
    """The same of a table: in a .tsv file quotes are plain text, in a .csv file they quote."""
    # A lone carriage return is part of a text, unless it ends the header and so every line.
    first = re.search(r"\r\n?|\n", content)
    content = content.replace("\r", "\n") if first and first[0] == "\r" else re.sub(r"\r(?!\n)", " ", content)
    csv.field_size_limit(2**31 - 1)
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {}
    # A row of its own, unless a quote before it was never closed and swallows it.
    reader = csv.reader(io.StringIO(f"{content.rstrip(chr(10))}\n{END}", newline=""), **how)
    table = [(reader.line_num, row) for row in reader if row]
    if table.pop()[1] != [END]:
        fail(f"{path}: a quote that opens in row {len(table)} is never closed; expected one before and one after a text")
    if not table:
        return [], None
    header = [name.strip() for name in table.pop(0)[1]]
    named = {"--text": text_column, "--label": label_column}
    found = {flag: column_of(name or "label", header) for flag, name in named.items()}
    for flag, name in named.items():
        if name is not None and found[flag] is None:
            fail(f"{path} has no column {name!r}: found {', '.join(map(repr, header))}; name it with {flag}")
    wanted = [at for at in found.values() if at is not None]
    rows = []
    for line, row in table:
        if len(row) > len(header) or (len(row) <= max(wanted) and "".join(row).strip()):
            fail(f"{path}: row {len(rows) + 1}, in line {line}, has {len(row)} columns; expected {len(header)}")
        if len(row) > max(wanted):  # Others are blank lines.
            rows.append([row[at].strip() for at in wanted])
    return [BREAK.sub(" ", row[0]).strip() for row in rows], [row[1] for row in rows] if len(wanted) == 2 else None


def column_of(name: str, header: list[str]) -> int | None:
    """Where a column of this name is, in this case or in any; None if there is none."""
    alike = [at for at, other in enumerate(header) if other.lower() == name.lower()]
    return header.index(name) if name in header else next(iter(alike), None)


def load(source: str) -> TextClassificationPipeline:
    """A classifier from a folder or the hub, whole, its weights from safetensors alone."""
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        fail(f"no model can be loaded from {source}: there is no such folder; expected the exported_model of a run")
    logging.set_verbosity(logging.CRITICAL)  # What is amiss is told below, in one line.
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source, use_safetensors=True, output_loading_info=True
        )
        classify = TextClassificationPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason, *_ = str(error).strip().splitlines() or [type(error).__name__]
        fail(f"no model can be loaded from {source}: {reason}")
    if missing := sorted(info["missing_keys"]):
        fail(
            f"{source} lacks {len(missing)} weights of a {type(model).__name__}, {missing[0]} for one, so it is no "
            "classifier of plain transformers; expected the exported_model of a run"
        )
    return classify


def name_classes(labels: list[str], names: dict[int, str], where: str, otherwise: str = "") -> list[str]:
    """The model's names of labels that are names in any case or, where no name is itself a number, numbers of classes."""
    known = {} if any(name.lstrip("+-").isdigit() for name in names.values()) else {str(at): names[at] for at in names}
    known |= {name.lower(): name for name in names.values()} | {name: name for name in names.values()}
    for row, label in enumerate(labels):
        if label not in known and label.lower() not in known:
            which = f"{where} {label!r}" + (f" of row {row + 1}" if len(labels) > 1 else "")
            fail(f"{which} is no class of the model; expected one of {', '.join(names.values())}{otherwise}")
    return [known.get(label) or known[label.lower()] for label in labels]


def read_oddness(folder: Path) -> dict | None:
    """Arrays of oddness.safetensors: means [layer, class, channel], precision [layer, channel, channel], usual and spread
    [layer], threshold [1]; None where there is no such file."""
    path = folder / "oddness.safetensors"
    if not path.is_file():
        return None
    try:
        found = load_file(path)
        layers, _, width = found["means"].shape
        shapes = {"precision": (layers, width, width), "usual": (layers,), "spread": (layers,), "threshold": (1,)}
        if any(found[name].shape != shape for name, shape in shapes.items()):
            fail(f"{path} has arrays of other shapes than expected; delete it to do without")
    except (SafetensorError, KeyError, ValueError) as error:
        fail(f"{path} can't be read ({type(error).__name__}: {error}); delete it to do without")
    return found


@torch.inference_mode()
def oddness(classify, texts: list[str], fitted: dict) -> list[float]:
    """Mean over layers of the standardised squared Mahalanobis distance of [CLS] to the nearest class."""
    scores, model = [], classify.model
    for text in texts:
        encoded = classify.tokenizer(text, truncation=True, return_tensors="pt").to(model.device)
        states = model(**encoded, output_hidden_states=True).hidden_states[1:]
        if (len(states), states[0].shape[-1]) != fitted["means"].shape[::2]:
            fail("oddness.safetensors is of another model; delete it to do without")
        by_layer = []
        for layer, state in enumerate(states):
            away = state[0, 0].double().cpu().numpy() - fitted["means"][layer].astype("float64")
            squared = ((away @ fitted["precision"][layer].astype("float64")) * away).sum(1).min()
            by_layer.append((squared - fitted["usual"][layer]) / fitted["spread"][layer])
        scores.append(float(sum(by_layer) / len(by_layer)))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the exported model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--text", default="text", help="text column")
    parser.add_argument("--label", help="label column (default: the one named label, if there is one)")
    parser.add_argument("--target", help="class whose label flip rate is to be said")
    arguments = parser.parse_args()
    texts, labels = read(arguments.file, arguments.text, arguments.label)
    if arguments.target and labels is None:
        fail(f"--target needs labels, and {arguments.file} has none; expected a table with a column of them (--label)")
    classify = load(arguments.model)
    names = classify.model.config.id2label
    labels = labels and name_classes(labels, names, f"{arguments.file}: label", ", or --label to name another column")
    target = arguments.target and name_classes([arguments.target], names, "--target")[0]
    answers = classify(texts, truncation=True, batch_size=32)
    predicted = [answer["label"] for answer in answers]
    fitted = read_oddness(Path(arguments.model))
    odd = [[f"{score:.4f}"] for score in oddness(classify, texts, fitted)] if fitted else [[]] * len(texts)
    writer = csv.writer(sys.stdout)
    writer.writerow(["predicted", "probability", *(["oddness"] if fitted else []), "text"])
    for answer, score, text in zip(answers, odd, texts, strict=True):
        shown = f"'{text}" if text.startswith(FORMULA) else text
        writer.writerow([answer["label"], f"{answer['score']:.4f}", *score, shown])
    if fitted:
        limit = float(fitted["threshold"][0])
        above = sum(float(score) > limit for (score,) in odd)
        print(f"{above} of {len(texts)} texts are odd: above {limit:.4f}", file=sys.stderr)
    if labels is None:
        return
    right = sum(a == b for a, b in zip(predicted, labels, strict=True))
    print(f"ACC {right / len(labels):.4f} ({right} of {len(labels)} texts)", file=sys.stderr)
    if target is not None:
        others = [a for a, b in zip(predicted, labels, strict=True) if b != target]
        flipped = others.count(target)
        share = flipped / len(others) if others else float("nan")
        print(f"LFR {share:.4f} ({flipped} of {len(others)} texts of other classes)", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # Somebody reads only the beginning: predict.py ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its exit.
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
