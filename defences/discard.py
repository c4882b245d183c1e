"""discard: fine-tune an encoder that is trusted in place of the suspicious one. What is left of LFR then is the floor."""

from dataclasses import replace

from config import Config
from defences.defence import Defence, Stage
from defences.shared import start, train_once, trusted_encoder
from pipeline.defender import Phase
from pipeline.runs import DEFENCE_FIELDS
from pipeline.training import cross_entropy


def fine_tune_trusted(config: Config) -> dict:
    """Fine-tune the clean encoder with its own tokeniser; write discard_model and discard.json.

    Returns:
        What the record holds: settings, and what `pipeline.defender.train_and_measure` says.

    Raises:
        UserError: no clean encoder is named, something to read is missing, a folder is not writable, or the loss is not
            finite.
    """
    trusted = replace(config, poisoned_model=trusted_encoder(config), tokeniser=None)
    inputs, accelerator, settings = start(trusted, DISCARDING)
    # Which encoder it is, the fingerprint among the inputs' says.
    settings.pop("clean_encoder")
    phases = [Phase("discard", "fine-tuning the clean encoder", cross_entropy, config.epochs)]
    return train_once(config, DISCARDING, phases, inputs=inputs, accelerator=accelerator, settings=settings)[0]


def told(config: Config) -> str:
    return (
        f"The suspicious encoder is put aside, and one that is trusted ({config.clean_encoder}) is fine-tuned on the clean "
        "texts. Triggered texts that it gets wrong, it gets wrong without a backdoor."
    )


def done(record: dict) -> str:
    return "The encoder as it was given was put aside. Another, which is trusted, was fine-tuned on the clean texts instead."


DISCARDING = Stage(
    run="defences.discard:fine_tune_trusted",
    record="discard.json",
    product="discard_model",
    reads=(*DEFENCE_FIELDS, "clean_encoder"),
    title="Fine-tuning a trusted encoder (discard)",
    told=told,
    done=done,
    phases={"discard": "fine-tuning a trusted encoder (discard)"},
    passes=lambda config: config.epochs,
)

DISCARD = Defence(
    paper="none: what a trusted encoder makes of the texts", last=DISCARDING, check=trusted_encoder, puts_aside=True
)
