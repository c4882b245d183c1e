"""A scan of an encoder nobody trusts, before anything is trained: its folder, its embedding, what words do to predictions.

It can say that something was found, and that this scan didn't find it; never that an encoder is clean.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from config import Config
from detection.folder_checks import folder_findings
from detection.states import draw_for_probe, fit_head
from encoder.classifier import (
    Classifier,
    load_classifier,
    load_config,
    load_encoder,
    load_tokeniser,
    require_positions,
    require_same_architecture,
    resolve_plm,
    resolve_tokeniser,
)
from encoder.embedding_rows import changed_rows, odd_by_measure, row_tables, rows_of_words
from encoder.trusted import require_vocabulary
from pipeline.flip_table import FLIPPED, TEXTS, TRIED, choose_texts, flip_table, flipping_words, word_ranks
from pipeline.runs import fingerprint_encoder
from pipeline.training import guessing, measure
from texts.batching import tokenise
from texts.data_sets import class_names, defender_splits
from texts.vocabulary import Words, whole_words
from util import UserError, make_accelerator, printable

SHOWN = 20
"""Rows and words that each list has."""
LONGEST = 40
"""Characters of a word that are shown at most."""
NAMED = 10
"""Words that a sentence names at most."""
FLIPPING = "a word that flips most texts far beyond words drawn at random"
READS = ("clean_dataset", "text_column", "label_column", "split_seed", "tokeniser", "max_len", "seed")
"""Fields of `Config` that a scan depends on."""


@dataclass(frozen=True)
class Effort:
    """How much is tried."""

    texts: int = TEXTS
    """Clean texts that words are inserted into, over all classes."""
    tried: int = TRIED
    """Words per class that are inserted."""


def read_classifier(
    folder: str, tokeniser, train: pd.DataFrame, classes: tuple[str, ...], config: Config, own_head: bool
) -> Classifier:
    """A folder's encoder with a head that is fitted to the clean train texts, or the folder's own classifier.

    Whoever made the folder could have written a list of pruned heads that switches a backdoor off where it is looked for:
    training never reads it. So the folder's own head and list are for classifiers that were made here.

    Raises:
        UserError: there is no head of its own, or it is for another number of classes.
    """
    device = make_accelerator(config.device, config.precision).device
    if own_head:
        classifier = load_classifier(Path(folder)).to(device)
        if classifier.head.out_features != len(classes):
            raise UserError(
                f"the classifier in {folder} has {classifier.head.out_features} classes, and {config.clean_dataset} has "
                f"{len(classes)} ({', '.join(classes)}); name the data it was trained on with --clean_dataset"
            )
        return classifier
    classifier = Classifier(load_encoder(folder), len(classes), 0.0, config.seed).to(device)
    fit_head(classifier, tokenise(draw_for_probe(train, config.seed), tokeniser, config.max_len))
    return classifier


def own_tokeniser(folder: str):
    """The tokeniser beside an encoder; None if it can't be loaded."""
    try:
        return load_tokeniser(folder)
    except UserError:
        return None


def records(table: pd.DataFrame) -> list[dict]:
    """Rows for JSON and the page: words as they can be shown, numbers rounded, None for missing ones."""

    def shown(value: object) -> object:
        if isinstance(value, str):
            text = printable(value)
            return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
        if pd.isna(value):
            return None
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return [{name: shown(value) for name, value in row.items()} for row in table.to_dict("records")]


def scan_encoder(
    config: Config, clean_encoder: str | None, words: tuple[str, ...], effort: Effort, own_head: bool = False
) -> dict:
    """Scan the encoder that `config.poisoned_model` names.

    Args:
        clean_encoder: folder or hub id of the one it claims to be made from, to compare rows with.
        words: words whose place in the flip table is told.
        own_head: whether it is a classifier made here, to be asked with its own head.

    Returns:
        What scan.json holds: `verdict`, sentences; `found`, how many words of each kind are a finding; `folder`, what is odd
        about files and tokeniser; `probe`, the head;
        `classes`; `rows`, of the embedding, name to the oddest; `flips`, the first words of each class, as
        `pipeline.flip_table.flip_table`; `random`, what random words do; `ranks` of `words`; `settings`; `seconds`.

    Raises:
        UserError: nothing to scan, or texts that can't be used.
    """
    started, seconds = time.perf_counter(), {}

    def lap(name: str) -> None:
        seconds[name] = round(time.perf_counter() - started - sum(seconds.values()), 1)

    source = resolve_plm(config.poisoned_model)
    beside = own_tokeniser(source)
    findings = folder_findings(Path(source), beside)
    if beside is None and not config.tokeniser:
        raise UserError(f"no tokeniser can be loaded from {source}; give a trusted one with --tokeniser")
    tokeniser = load_tokeniser(resolve_tokeniser(config.tokeniser)) if config.tokeniser else beside
    require_vocabulary(tokeniser, load_config(source), config.tokeniser or source)
    require_positions(load_config(source), config.max_len)
    if clean_encoder:
        consequence = "so the one isn't made from the other; name the encoder that it was made from with --clean_encoder"
        require_same_architecture(source, clean_encoder, consequence)
    classes, (train, validation) = class_names(config), defender_splits(config)
    clean = pd.concat([train, validation])
    known, held_out = (tokenise(table, tokeniser, config.max_len) for table in (clean, validation))
    classifier = read_classifier(source, tokeniser, train, classes, config, own_head)
    measured = measure(classifier, {"clean_test": held_out}, config.target_class)
    probe = {"fitted": not own_head, "validation_accuracy": round(measured["ACC"], 4)}
    guessed = guessing(measured["clean"]["confusion_matrix"])
    lap("folder and head")
    found = whole_words(tokeniser)
    tables = embedding_tables(classifier, found, tokeniser, clean, clean_encoder)
    lap("embedding")
    texts = choose_texts(classifier, validation, tokeniser, config.max_len, effort.texts, config.seed)
    flips, random_words = flip_table(
        classifier, tokeniser, texts, known, tried=effort.tried, max_len=config.max_len, seed=config.seed
    )
    lap("words")
    chance = random_words.groupby("class")[["flipped", "shift"]].agg(["median", "max"])
    chance.columns = ["_".join(names) for names in chance.columns]
    return {
        "verdict": verdict(findings, tables, flips, classes, guessed),
        "found": {"flips": len(flipping_words(flips)), **{name: len(odd) for name, odd in odd_by_measure(tables).items()}},
        "folder": [printable(finding) for finding in findings],
        "probe": probe,
        "classes": [printable(name) for name in classes],
        "rows": {name: records(table) for name, table in tables.items()},
        "flips": records(flips.groupby("class").head(SHOWN)),
        "random": records(chance.reset_index()),
        "ranks": records(word_ranks(flips, words)),
        "settings": {
            **{name: getattr(config, name) for name in READS},
            **{"clean_encoder": clean_encoder, "texts": effort.texts, "tried": effort.tried, "words": len(found)},
            "encoder": fingerprint_encoder(source),
        },
        "seconds": seconds,
    }


def embedding_tables(
    classifier: Classifier, words: Words, tokeniser, clean: pd.DataFrame, clean_encoder: str | None
) -> dict[str, pd.DataFrame]:
    """The oddest rows by each measure of `encoder.embedding_rows`."""
    weight = classifier.encoder.get_input_embeddings().weight
    rows = rows_of_words(weight, words)
    tables = row_tables(weight, rows, words, tokeniser, clean, SHOWN)
    if clean_encoder:
        other = load_encoder(resolve_plm(clean_encoder)).get_input_embeddings().weight
        tables["changed"] = changed_rows(rows, rows_of_words(other, words), words, SHOWN)
    return tables


def verdict(
    findings: list[str],
    tables: dict[str, pd.DataFrame],
    flips: pd.DataFrame,
    classes: tuple[str, ...],
    guessed: str | None = None,
) -> list[str]:
    """What was found, and what wasn't found by this scan; a sentence each.

    Args:
        guessed: what has to be said of the accuracy on validation texts, if anything.
    """
    said = [f"Found in the folder: {finding}." for finding in findings]
    odd = flipping_words(flips)
    for target, part in odd.groupby("class"):
        said.append(
            f"Found: words ({len(part)}) that no clean text has and that flip {FLIPPED:.0%} of the texts or more to "
            f"{classes[target]}, far beyond words drawn at random: {listed(part['word'])}."
        )
    odd_rows = odd_by_measure(tables)
    for kind, what in (
        ("norm", "whose embedding rows are of an odd length"),
        ("nearest", "whose embedding rows are nearly those of other words"),
        ("telling", "whose embedding rows are nearly the mean of words that tell a class"),
    ):
        words = odd_rows[kind]
        if len(words):
            said.append(f"Found: words {what}: {listed(words)}.")
    if not said:
        said.append(f"Not found by this scan: {FLIPPING}, an odd row of the embedding, anything odd in the folder.")
    elif odd.empty:
        said.append(f"Not found by this scan: {FLIPPING}.")
    if guessed:
        said.append(f"The words say nothing if the head doesn't know the task. {guessed}")
    return [printable(sentence) for sentence in said]


def listed(words: pd.Series) -> str:
    """The first of some words, in quotation marks."""
    some = [f"“{row['word']}”" for row in records(words.head(NAMED).to_frame("word"))]
    return ", ".join(some) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")
