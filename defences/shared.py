"""What the stages of every defence begin and end with: what they read, what they depend on, where what they make goes."""

import functools
import glob
import hashlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from attacks.planted import RECORD, measured_tables, poisoned_model_folder
from config import Config
from defences import DEFENCES
from defences.defence import Stage, as_defence, product_path, put_exports_aside, record_path, run_folder, run_stage
from encoder.classifier import (
    Classifier,
    load_classifier,
    load_config,
    load_tokeniser,
    require_positions,
    resolve_plm,
    resolve_tokeniser,
)
from encoder.trusted import (
    TOKENISER_FILES,
    fingerprint_files,
    local_folder,
    require_plain_tokeniser,
    require_two_ends,
    require_vocabulary,
)
from pipeline.defender import DefenderInputs, Phase, TokenisedInputs, new_classifier, train_and_measure
from pipeline.runs import command, fingerprint_encoder, stage_settings
from pipeline.stage import run_once
from pipeline.training import cross_entropy
from texts.batching import TokenisedTexts, batches_by_length, tokenise, tokens_per_batch
from texts.data_sets import class_names, defender_splits, fingerprint_texts, require_target
from util import UserError, load_json, make_accelerator, require_writable


@dataclass(frozen=True)
class Keyed:
    """Something too large to be compared, known by its fingerprint."""

    fingerprint: str
    content: object = field(compare=False, repr=False)


@functools.lru_cache(maxsize=32)
def tokenise_once(table: Keyed, tokeniser: Keyed, max_len: int) -> TokenisedTexts:
    """As `tokenise`; the cells of a grid read the same texts again and again."""
    return tokenise(table.content, tokeniser.content, max_len)


def texts_of(config: Config) -> dict[str, pd.DataFrame]:
    """What a defence trains on, chooses by and is measured on: tables of label and text.

    Raises:
        UserError: something is missing.
    """
    train, validation = defender_splits(config)
    return {"train": train, "validation": validation, **measured_tables(config)}


def require_same_texts(config: Config, record: dict | None = None) -> None:
    """Raise a UserError if texts have changed since a run, or it is not finished.

    What is a test text now may be one that its models learnt from.

    Args:
        record: of the stage whose texts they are to be; None: of the last of the defence.
    """
    record = record or load_json(record_path(as_defence(config), DEFENCES[config.defence].last))
    if record is None:
        raise UserError(f"the run in {run_folder(config)} is not finished; go on with: {command('run_all.py', config)}")
    read = record["settings"]["fingerprints"]
    for name, table in texts_of(config).items():
        if read.get(name) != fingerprint_texts(table):
            raise changed_since(config, name)


def require_same_encoder(config: Config, record: dict, fingerprint: str) -> None:
    """Raise a UserError if the encoder that a stage was given has another fingerprint now."""
    if record["settings"]["fingerprints"]["encoder"] != fingerprint:
        raise changed_since(config, "encoder")


def changed_since(config: Config, what: str) -> UserError:
    return UserError(
        f"{what} has changed since the run in {run_folder(config)}; run it again with: {command('run_all.py', config)}"
    )


def load_defender_inputs(config: Config) -> DefenderInputs:
    """Find the poisoned encoder and read the texts; they are tokenised once they are needed.

    Raises:
        UserError: something is missing; the message has the command that makes it.
    """
    encoder = resolve_plm(config.poisoned_model) if config.poisoned_model else str(poisoned_model_folder(config))
    if not config.poisoned_model and not Path(encoder, RECORD).exists():
        raise UserError(
            f"no poisoned encoder in {encoder}; make it with: "
            f"{command('pretrained_model_poisoning.py', config)} (or name one with --poisoned_model)"
        )
    vocabulary_source = resolve_tokeniser(config.tokeniser) if config.tokeniser else encoder
    classes = class_names(config)
    if config.attack != "none":
        require_target(config, classes)
    tables = texts_of(config)
    fingerprints = {name: fingerprint_texts(table) for name, table in tables.items()}
    fingerprints["encoder"] = fingerprint_encoder(encoder)
    if config.tokeniser:
        fingerprints["tokeniser"] = fingerprint_files(local_folder(vocabulary_source), TOKENISER_FILES)
    keyed = {name: Keyed(fingerprints[name], table) for name, table in tables.items()}
    return DefenderInputs(
        encoder, classes, fingerprints, functools.partial(tokenise_inputs, keyed, encoder, vocabulary_source, config)
    )


def tokenise_inputs(tables: dict[str, Keyed], encoder: str, vocabulary_source: str, config: Config) -> TokenisedInputs:
    """Texts as the suspicious encoder's tokeniser cuts them, or a trusted one.

    Raises:
        UserError: the tokeniser is refused, or encoder and texts don't fit it.
    """
    tokeniser = load_tokeniser(vocabulary_source)
    if config.tokeniser:
        require_two_ends(tokeniser, config.tokeniser)
    else:
        require_plain_tokeniser(tokeniser, encoder)
    encoder_config = load_config(encoder)
    require_vocabulary(tokeniser, encoder_config, config.tokeniser or encoder)
    # Whatever the length of these texts: some defences make them longer, and other texts may come later.
    require_positions(encoder_config, config.max_len)
    # A few tokenisers are Python through and through; those are known by where they come from.
    backend = getattr(tokeniser, "backend_tokenizer", None)
    state = backend.to_str() if backend else f"{vocabulary_source} {tokeniser!r}"
    vocabulary = Keyed(hashlib.sha256(state.encode()).hexdigest(), tokeniser)
    texts = {name: tokenise_once(table, vocabulary, config.max_len) for name, table in tables.items()}
    train, validation = texts.pop("train"), texts.pop("validation")
    return TokenisedInputs(tokeniser, train, validation, measured=texts)


def defender_settings(
    config: Config, stage: Stage, inputs: DefenderInputs, accelerator: Accelerator, **read: object
) -> dict:
    """All that a stage's result depends on: the fields that its row names, and what it reads."""
    return stage_settings(
        config,
        stage.reads,
        accelerator,
        method=stage.method,
        classes=list(inputs.classes),
        fingerprints=inputs.fingerprints,
        **read,
    )


def train_once(
    config: Config,
    stage: Stage,
    phases: Iterable[Phase],
    *,
    inputs: DefenderInputs,
    accelerator: Accelerator,
    settings: dict,
    prepare: Callable[[Classifier], None] = lambda classifier: None,
    begin: Callable[[], Classifier] | None = None,
    **also: object,
) -> tuple[dict, bool]:
    """Train a classifier in a stage's phases, unless that is done already.

    Args:
        settings: all that the result depends on.
        prepare: what is done to the classifier before, in place.
        begin: makes the classifier; None: the suspicious encoder, a fresh head on it.
        also: further entries of the record.

    Returns:
        The record, and whether it was there already.
    """
    record = record_path(config, stage)

    def checkpoint_of(phase: Phase) -> Path:
        # Two defences may have phases of one name, and run side by side.
        return record.with_name(f"{'.'.join(dict.fromkeys((record.stem, phase.name)))}.checkpoint.pt")

    def compute() -> dict:
        return train_and_measure(
            begin() if begin else new_classifier(config, inputs),
            phases,
            config=config,
            inputs=inputs,
            accelerator=accelerator,
            settings=settings,
            checkpoint_of=checkpoint_of,
            model_folder=product_path(config, stage),
            prepare=prepare,
            **also,
        )

    product = product_path(config, stage)

    def checkpoints() -> Iterable[Path]:
        return record.parent.glob(f"{glob.escape(record.stem)}.*checkpoint.pt")

    former = load_json(record)
    before = former.get("product") if isinstance(former, dict) else None
    made, there = run_once(record, settings, compute, product=product, overwrite=config.overwrite, checkpoints=checkpoints)
    if not there and before not in (None, made["product"]):
        put_exports_aside(record.parent, before)
    return made, there


def start(config: Config, stage: Stage, **read: object) -> tuple[DefenderInputs, Accelerator, dict]:
    """What a stage begins with: what it reads, the device, and all that its result depends on.

    Args:
        read: what it reads beside that, by fingerprint.
    """
    require_writable(config.output_dir)
    accelerator = make_accelerator(config.device, config.precision)
    inputs = load_defender_inputs(config)
    return inputs, accelerator, defender_settings(config, stage, inputs, accelerator, **read)


def train_released(
    config: Config,
    stage: Stage,
    phases: list[Phase],
    prepare: Callable[[Classifier], None] = lambda classifier: None,
) -> dict:
    """The record of a stage that trains the encoder as it was released, with objectives of its own.

    Args:
        prepare: what is done to the classifier before, in place.
    """
    inputs, accelerator, settings = start(config, stage)
    return train_once(config, stage, phases, inputs=inputs, accelerator=accelerator, settings=settings, prepare=prepare)[0]


def random_labels(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cross-entropy with labels drawn from all classes, anew in every step: none of them can be learnt by heart.

    As SEAM forgets (Zhu et al., S&P 2023).
    """
    labels = torch.randint_like(batch["labels"], model.head.out_features)
    return cross_entropy(model, {**batch, "labels": labels})


def trusted_encoder(config: Config) -> str:
    """The folder of the encoder that is trusted.

    Raises:
        UserError: none is named, or it isn't there.
    """
    if not config.clean_encoder:
        raise UserError(
            f"--defence {config.defence} needs an encoder that is trusted, and none is named; give a folder, a hub id or "
            "minilm with --clean_encoder"
        )
    return resolve_plm(config.clean_encoder)


def record_before(config: Config, stage: Stage) -> dict:
    """The record of the stage before a stage, computed if it isn't there."""
    return run_stage(stage.after, replace(config, overwrite=False))


def model_before(config: Config, stage: Stage) -> Classifier:
    """The classifier that the stage before a stage has written."""
    return load_classifier(product_path(config, stage.after), config.classifier_dropout)


@torch.inference_mode()
def look_at_inputs(
    classifier: Classifier,
    layers: dict[Hashable, nn.Linear],
    texts: TokenisedTexts,
    note: Callable[[Hashable, torch.Tensor, dict[str, torch.Tensor]], None],
) -> None:
    """Call `note` with the key of each layer, its inputs and the batch they are of, over all texts; evaluation mode."""
    batch: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, key=key: note(key, inputs[0], batch))
        for key, layer in layers.items()
    ]
    classifier.eval()
    device = classifier.head.weight.device
    try:
        for indices in batches_by_length(texts.lengths, tokens_per_batch(device)):
            batch = texts.batch(indices, device)
            classifier(batch["input_ids"], batch["attention_mask"])
    finally:
        for hook in hooks:
            hook.remove()


def accuracy_to_keep(validation_accuracy: float, acc_threshold: float | None, acc_drop: float | None) -> float:
    """The validation accuracy that pruning keeps: the threshold, or the fine-tuned model's less `acc_drop`."""
    return validation_accuracy - acc_drop if acc_threshold is None else acc_threshold


def require_accuracy(validation_accuracy: float, acc_threshold: float, part: str) -> None:
    """Raise a UserError if the fine-tuned model is below the accuracy to keep before anything is pruned.

    Args:
        part: what would be pruned, in one word.
    """
    if validation_accuracy < acc_threshold:
        raise UserError(
            f"the fine-tuned model reaches a validation accuracy of {validation_accuracy:.3f} before any {part} is "
            f"pruned, below acc_threshold {acc_threshold:g}; lower --acc_threshold, or train for more "
            "--epochs or at another --learning_rate"
        )
