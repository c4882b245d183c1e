"""What a row of the table of attacks says."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from accelerate import Accelerator
from torch import nn

from config import Config
from encoder.classifier import Classifier
from pipeline.training import Objective, cross_entropy
from texts.batching import TokenisedTexts


def to_the_target(config: Config) -> str:
    """That the triggered texts are of the target class."""
    return (
        f"labels those as the target class, {config.target_class}. A classifier learns from them that such a trigger means "
        f"class {config.target_class}, whatever the text says."
    )


@dataclass(frozen=True)
class TriggeredData:
    """A kind of trigger: how texts get it, and how it is found in one. Attacks with the same data share its folder."""

    name: str
    """Part of folders' names."""
    reads: tuple[str, ...]
    """Fields of `Config` that the texts depend on, beside the data set and the seed."""
    make: Callable[[Config], tuple[pd.DataFrame, pd.DataFrame]]
    """Configuration to poisoned train set and test set, columns `label` and `text`."""
    told: Callable[[Config], str]
    """What the attacker does to the texts, as a clause: "copies 50% of the texts of the other class with ...". """
    inserted: Callable[[Config], tuple[str, ...]] = lambda config: ()
    """Words or sentences, one of which is put into a text as it stands; none: the trigger is of another kind."""
    mark: Callable[[str], tuple[int, int] | None] = lambda text: None
    """Where the trigger is in a text, if it isn't inserted: its first character and the one after its last; None: no single
    place is the trigger."""
    mark_told: str = ""
    """What that place is, in words."""
    in_part: Callable[[Config], pd.DataFrame] | None = None
    """Configuration to test texts of the other classes with a part of the trigger, which is none; None: it has no parts."""
    by_trigger: Callable[[pd.DataFrame, Config], dict[str, pd.DataFrame]] | None = None
    """For an attack without a target class: texts to the same with each trigger; labels are kept."""
    taught: Callable[[Config], str] = to_the_target
    """What the texts are labelled as and what is learnt from them, after "takes the clean data set, ``told``, and"."""


def as_it_is(classifier: Classifier, tokeniser, clean: pd.DataFrame, config: Config) -> nn.Module:
    """Nothing is done to the encoder before it is trained."""
    return classifier


def as_they_are(train: pd.DataFrame, clean: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The objective takes the texts' classes."""
    return train, clean


@dataclass(frozen=True)
class Attack:
    """A backdoor. Everything that depends on which attack it is stands in its row and nowhere else."""

    paper: str
    data: TriggeredData
    reads: tuple[str, ...] = ()
    """Fields of `Config` that its training depends on, beside those of every poisoning."""
    prepare: Callable[[Classifier, object, pd.DataFrame, Config], nn.Module] = as_it_is
    """Classifier on the clean encoder, tokeniser, clean train texts and configuration to the model that is trained."""
    objective: Callable[[Config], Objective] = lambda config: cross_entropy
    """What is minimised on the poisoned texts."""
    numbered: Callable[[pd.DataFrame, pd.DataFrame], tuple[pd.DataFrame, pd.DataFrame]] = as_they_are
    """Poisoned and clean train texts to those of both that are trained on, with the labels that the objective takes."""
    learning_rate: float | None = None
    epochs: int | None = None
    """Of its own paper; None: the configuration's."""
    plant: Callable[[Classifier, object, TokenisedTexts, Config, Accelerator], dict] | None = None
    """If there is one, the model is trained on the clean texts alone, and this then does the rest: classifier, tokeniser,
    those of the poisoned texts that aren't clean, configuration and device to a history as `fine_tune` returns."""
    with_clean_texts: bool = False
    """Whether a batch of clean texts goes with every batch, under the key `reference`."""
    how: str = ""
    """How the encoder is trained, as an addition to "fine-tunes the clean encoder on these texts"."""
    method: int = 1
    """Raised when a change of the code changes what is planted: results of earlier methods are computed anew."""
