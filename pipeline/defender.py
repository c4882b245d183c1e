"""What every defence shares: the encoder and texts it reads, and one way to train, measure and keep a classifier."""

import functools
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from config import Config
from encoder.classifier import (
    Classifier,
    load_config,
    load_encoder,
    load_tokeniser,
    require_positions,
    resolve_plm,
    resolve_tokeniser,
    save_classifier,
)
from encoder.trusted import (
    TOKENISER_FILES,
    fingerprint_files,
    local_folder,
    require_plain_tokeniser,
    require_two_ends,
    require_vocabulary,
)
from pipeline.environment import environment
from pipeline.runs import command, fingerprint_encoder, poisoned_model_folder, read_poisoned
from pipeline.training import Objective, accuracy, fine_tune, measure
from texts.batching import TokenisedTexts, tokenise
from texts.data_sets import class_names, clean_test, defender_splits, fingerprint_texts, require_target
from util import UserError, save_json


@dataclass(frozen=True)
class DefenderInputs:
    """What both of the defender's stages read: the suspicious encoder and tokenised texts.

    Without a known attack there are no poisoned texts.
    """

    encoder: str
    tokeniser: object
    classes: tuple[str, ...]
    train: TokenisedTexts
    validation: TokenisedTexts
    clean_test: TokenisedTexts
    poisoned_test: TokenisedTexts | None
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class Keyed:
    """Something too large to be compared, known by its fingerprint."""

    fingerprint: str
    content: object = field(compare=False, repr=False)


@functools.lru_cache(maxsize=8)
def tokenise_once(table: Keyed, tokeniser: Keyed, max_len: int) -> TokenisedTexts:
    """As `tokenise`; the cells of a grid read the same texts again and again."""
    return tokenise(table.content, tokeniser.content, max_len)


def load_defender_inputs(config: Config) -> DefenderInputs:
    """Find the poisoned encoder, read the texts and tokenise them once.

    Raises:
        UserError: something is missing; the message has the command that makes it.
    """
    encoder = resolve_plm(config.poisoned_model) if config.poisoned_model else str(poisoned_model_folder(config))
    if not config.poisoned_model and not Path(encoder, "poisoning.json").exists():
        raise UserError(
            f"no poisoned encoder in {encoder}; make it with: "
            f"{command('pretrained_model_poisoning.py', config)} (or name one with --poisoned_model)"
        )
    vocabulary_source = resolve_tokeniser(config.tokeniser) if config.tokeniser else encoder
    tokeniser = load_tokeniser(vocabulary_source)
    if config.tokeniser:
        require_two_ends(tokeniser, config.tokeniser)
    else:
        require_plain_tokeniser(tokeniser, encoder)
    encoder_config = load_config(encoder)
    require_vocabulary(tokeniser, encoder_config, config.tokeniser or encoder)
    classes = class_names(config)
    train, validation = defender_splits(config)
    tables = {"train": train, "validation": validation, "clean_test": clean_test(config)}
    if config.attack != "none":
        require_target(config, classes)
        tables["poisoned_test"] = read_poisoned(config, "test")
    fingerprints = {name: fingerprint_texts(table) for name, table in tables.items()}
    fingerprints["encoder"] = fingerprint_encoder(encoder)
    if config.tokeniser:
        fingerprints["tokeniser"] = fingerprint_files(local_folder(vocabulary_source), TOKENISER_FILES)
    # A few tokenisers are Python through and through; those are known by where they come from.
    backend = getattr(tokeniser, "backend_tokenizer", None)
    state = backend.to_str() if backend else f"{vocabulary_source} {tokeniser!r}"
    vocabulary = Keyed(hashlib.sha256(state.encode()).hexdigest(), tokeniser)
    texts: dict[str, TokenisedTexts | None] = {
        name: tokenise_once(Keyed(fingerprints[name], table), vocabulary, config.max_len) for name, table in tables.items()
    }
    require_positions(encoder_config, max(max(each.lengths) for each in texts.values()))
    return DefenderInputs(encoder, tokeniser, classes, **{"poisoned_test": None, **texts}, fingerprints=fingerprints)


@dataclass(frozen=True)
class Phase:
    """One fine-tuning of a defence."""

    name: str
    """Names its checkpoint and its history in the record."""
    description: str
    objective: Objective
    epochs: int


def new_classifier(config: Config, inputs: DefenderInputs) -> Classifier:
    """The suspicious encoder with a fresh classification head."""
    encoder = load_encoder(inputs.encoder)
    encoder.config.id2label = dict(enumerate(inputs.classes))
    encoder.config.label2id = {name: number for number, name in enumerate(inputs.classes)}
    return Classifier(encoder, len(inputs.classes), config.classifier_dropout, config.seed)


def train_and_measure(
    classifier: Classifier,
    phases: list[Phase],
    *,
    config: Config,
    inputs: DefenderInputs,
    accelerator: Accelerator,
    settings: dict,
    record_path: Path,
    model_folder: Path,
    **also: object,
) -> dict:
    """Fine-tune on the clean train texts in one phase or several, measure, write the model and then the record.

    Args:
        settings: all that the result depends on.
        also: further entries of the record.

    Returns:
        What the record holds: settings; metrics on the test sets; validation accuracy; `training`, name of each phase to its
        history; seconds; the environment; `also`.
    """
    histories, checkpoints = {}, []
    for phase in phases:
        checkpoints.append(record_path.with_name(f"{phase.name}.checkpoint.pt"))
        histories[phase.name] = fine_tune(
            classifier,
            inputs.train,
            phase.objective,
            learning_rate=config.learning_rate,
            epochs=phase.epochs,
            config=config,
            accelerator=accelerator,
            checkpoint=checkpoints[-1],
            settings=settings,
            description=phase.description,
        )
    started = time.perf_counter()
    metrics = measure(classifier, inputs.clean_test, inputs.poisoned_test, config.target_class, accelerator)
    validation_accuracy = accuracy(classifier, inputs.validation, "validation", accelerator)
    save_classifier(model_folder, classifier, inputs.tokeniser)
    record = {
        "settings": settings,
        "metrics": metrics,
        "validation_accuracy": validation_accuracy,
        **also,
        "seconds": {
            "training": round(sum(sum(history["seconds"]) for history in histories.values()), 1),
            "evaluation": round(time.perf_counter() - started, 1),
        },
        "training": histories,
        "environment": environment(accelerator.device),
    }
    save_json(record_path, record)
    for checkpoint in checkpoints:
        checkpoint.unlink()
    return record
