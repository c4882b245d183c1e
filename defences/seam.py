"""SEAM, selective amnesia: forget the task on random labels, then recover it on the true ones (Zhu et al., S&P 2023)."""

import numpy as np

from config import Config
from defences.defence import Defence, Stage
from defences.fine_tuning import FINE_TUNING
from defences.shared import model_before, random_labels, record_before, start, train_once
from pipeline.defender import Phase
from pipeline.runs import DEFENCE_FIELDS
from pipeline.training import cross_entropy
from texts.batching import TokenisedTexts

FORGOTTEN_FROM = 320
"""Train texts that are given random labels, at most: the paper needs a small part of the data."""


def forgotten_below(classes: int) -> float:
    """The accuracy below which the task counts as forgotten: twice that of guessing, or 0.6 where that is less."""
    return min(2 / classes, 0.6)


def forget_and_recover(config: Config) -> dict:
    """Forget and recover what the fine-tuned model can do; write recovered_model and seam.json.

    Returns:
        What the record holds: settings, and what `pipeline.defender.train_and_measure` says, the accuracy on the texts with
        random labels after each pass among it.

    Raises:
        UserError: something to read is missing, a folder is not writable, or the loss is not finite.
    """
    fine_tuned = record_before(config, FORGETTING)
    inputs, accelerator, settings = start(config, FORGETTING, fine_tuned_model=fine_tuned["product"])

    def few() -> TokenisedTexts:
        return inputs.train.select(np.random.default_rng((config.seed, 8)).permutation(len(inputs.train))[:FORGOTTEN_FROM])

    phases = [
        Phase(
            "forgetting",
            "forgetting on random labels",
            random_labels,
            config.forgetting_epochs,
            learning_rate=config.forgetting_rate,
            texts=few,
            accuracy_below=forgotten_below(len(inputs.classes)),
        ),
        Phase("recovery", "recovering on true labels", cross_entropy, config.epochs),
    ]
    record, _ = train_once(
        config,
        FORGETTING,
        phases,
        inputs=inputs,
        accelerator=accelerator,
        settings=settings,
        begin=lambda: model_before(config, FORGETTING),
    )
    return record


def told(config: Config) -> str:
    return (
        "The fine-tuned model is trained on a few clean texts with random labels until it has forgotten the task, and with "
        "it, so the hope, the backdoor. Then it recovers the task on the true labels."
    )


def done(record: dict) -> str:
    accuracy = record["training"]["forgetting"]["accuracy"][-1]
    return (
        "The fine-tuned model was trained on random labels, which brought its accuracy on these texts down to "
        f"{accuracy:.3f}, and then fine-tuned on the true ones."
    )


FORGETTING = Stage(
    run="defences.seam:forget_and_recover",
    record="seam.json",
    product="recovered_model",
    reads=(*DEFENCE_FIELDS, "forgetting_epochs", "forgetting_rate"),
    title="Forgetting and recovery (SEAM)",
    told=told,
    done=done,
    after=FINE_TUNING,
    phases={"forgetting": "forgetting on random labels (SEAM)", "recovery": "recovery (SEAM)"},
    passes=lambda config: config.epochs,
)

SEAM = Defence(paper="Zhu et al., S&P 2023", last=FORGETTING)
