"""What every defence shares: the kind of inputs it reads, and one way to train, measure and keep a classifier."""

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from config import Config
from encoder.classifier import Classifier, load_encoder, save_classifier
from pipeline.environment import environment
from pipeline.training import Objective, accuracy, fine_tune, measure
from texts.batching import TokenisedTexts


@dataclass(frozen=True)
class TokenisedInputs:
    """A tokeniser, and texts as it cuts them."""

    tokeniser: object
    train: TokenisedTexts
    validation: TokenisedTexts
    measured: dict[str, TokenisedTexts]
    """What a classifier is measured on, by the names that `pipeline.training.metrics_of` knows.

    Without a known attack there are no poisoned texts."""


@dataclass(frozen=True)
class DefenderInputs:
    """What both of the defender's stages read: the suspicious encoder and texts.

    The texts are tokenised when they are first asked for: whether a stage is finished shows in the fingerprints.
    """

    encoder: str
    classes: tuple[str, ...]
    fingerprints: dict[str, str]
    load: Callable[[], TokenisedInputs]
    """Raises a UserError where tokeniser, encoder and texts don't fit together."""

    @functools.cached_property
    def loaded(self) -> TokenisedInputs:
        return self.load()

    @property
    def tokeniser(self) -> object:
        return self.loaded.tokeniser

    @property
    def train(self) -> TokenisedTexts:
        return self.loaded.train

    @property
    def validation(self) -> TokenisedTexts:
        return self.loaded.validation

    @property
    def measured(self) -> dict[str, TokenisedTexts]:
        return self.loaded.measured


@dataclass(frozen=True)
class Phase:
    """One fine-tuning of a defence."""

    name: str
    """Names its checkpoint and its history in the record."""
    description: str
    objective: Objective
    epochs: int
    learning_rate: float | None = None
    """None: the configuration's."""
    warm_up: float = 0.0
    first_epoch: int = 0
    texts_of: Callable[[int], TokenisedTexts] | None = None
    after_step: Callable[[nn.Module], None] | None = None
    accuracy_below: float | None = None
    freeze_head: bool = False
    """These as for `pipeline.training.fine_tune`."""
    texts: Callable[[], TokenisedTexts] | None = None
    """None: the clean train texts. They are asked for where it begins, so that a finished stage makes none."""
    before: Callable[[Classifier], None] = lambda classifier: None
    after: Callable[[Classifier], None] = lambda classifier: None
    """What is done to the classifier before it and after it, in place; of the weights alone, since a resumed run does it
    once more."""


OWN_HEADS = 10_000_000
"""Added to the seed that a defender draws its first head with; more than any seed. The attacker draws its own with the seed
alone. From the same head fine-tuning would go on where the attacker's training ended: the encoder writes for that head."""


def new_classifier(config: Config, inputs: DefenderInputs) -> Classifier:
    """The suspicious encoder with a fresh classification head."""
    encoder = load_encoder(inputs.encoder)
    encoder.config.id2label = dict(enumerate(inputs.classes))
    encoder.config.label2id = {name: number for number, name in enumerate(inputs.classes)}
    return Classifier(encoder, len(inputs.classes), config.classifier_dropout, OWN_HEADS + config.seed)


def train_and_measure(
    classifier: Classifier,
    phases: Iterable[Phase],
    *,
    config: Config,
    inputs: DefenderInputs,
    accelerator: Accelerator,
    settings: dict,
    checkpoint_of: Callable[[Phase], Path],
    model_folder: Path,
    prepare: Callable[[Classifier], None] = lambda classifier: None,
    **also: object,
) -> dict:
    """Fine-tune on clean texts in one phase or several, measure, and write the model.

    Args:
        settings: all that the result depends on.
        phases: each is asked for when the one before has ended, so that what comes next may depend on it. One that was
            there before begins and ends as it did, and isn't trained again.
        prepare: what is done to the classifier before the first phase, in place.
        also: further entries of the record.

    Returns:
        Of the stage's record: metrics on the test sets; validation accuracy; `also`; seconds, of which `preparation` is all
        that is done before and after phases; `training`, name of each phase to its history; the environment.
    """
    histories, preparation = {}, 0.0

    def timed(change: Callable[[Classifier], None]) -> None:
        nonlocal preparation
        started = time.perf_counter()
        change(classifier)
        preparation += time.perf_counter() - started

    timed(prepare)
    for phase in phases:
        timed(phase.before)
        histories.pop(phase.name, None)  # One that is gone back to comes last.
        histories[phase.name] = fine_tune(
            classifier,
            phase.texts() if phase.texts else inputs.train,
            phase.objective,
            learning_rate=phase.learning_rate or config.learning_rate,
            epochs=phase.epochs,
            warm_up=phase.warm_up,
            first_epoch=phase.first_epoch,
            texts_of=phase.texts_of,
            after_step=phase.after_step,
            accuracy_below=phase.accuracy_below,
            freeze_head=phase.freeze_head,
            config=config,
            accelerator=accelerator,
            checkpoint=checkpoint_of(phase),
            settings=settings,
            description=phase.description,
        )
        timed(phase.after)
    started = time.perf_counter()
    metrics = measure(classifier, inputs.measured, config.target_class, accelerator)
    validation_accuracy = accuracy(classifier, inputs.validation, "validation", accelerator)
    save_classifier(model_folder, classifier, inputs.tokeniser)
    return {
        "metrics": metrics,
        "validation_accuracy": validation_accuracy,
        **also,
        "seconds": {
            "preparation": round(preparation, 1),
            "training": round(sum(sum(history["seconds"]) for history in histories.values()), 1),
            "evaluation": round(time.perf_counter() - started, 1),
        },
        "training": histories,
        "environment": environment(accelerator.device),
    }
