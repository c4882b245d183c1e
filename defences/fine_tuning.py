"""FT, fine-tuning on clean data: what one would do without a defence. FTH: the same at a higher learning rate."""

from dataclasses import replace
from pathlib import Path

from config import Config
from defences.defence import Defence, Stage, product_path
from defences.shared import train_released
from pipeline.defender import Phase
from pipeline.runs import DEFENCE_FIELDS
from pipeline.training import cross_entropy


def fine_tune_clean(config: Config) -> dict:
    """Fine-tune the suspicious encoder; write fine_tuned_model and fine_tuning.json. PURE measures this model's heads.

    Returns:
        What the record holds: settings, and what `pipeline.defender.train_and_measure` says.

    Raises:
        UserError: something to read is missing, a folder is not writable, or the loss is not finite.
    """
    phases = [Phase("fine_tuning", "fine-tuning on clean data", cross_entropy, config.epochs)]
    return train_released(config, FINE_TUNING, phases)


def told(config: Config) -> str:
    return (
        f"The defender has that encoder and the clean data set {config.clean_dataset}, and knows of no trigger. Fine-tuning "
        "on clean texts (FT) is what one would do without a defence: does it wash the backdoor out?"
    )


def done(record: dict) -> str:
    return "The encoder was fine-tuned on the clean texts."


FINE_TUNING = Stage(
    run="defences.fine_tuning:fine_tune_clean",
    record="fine_tuning.json",
    product="fine_tuned_model",
    reads=DEFENCE_FIELDS,
    title="Fine-tuning (FT)",
    told=told,
    done=done,
    phases={"fine_tuning": "fine-tuning on clean data (FT)"},
    passes=lambda config: config.epochs,
)

FT = Defence(paper="none: no defence", last=FINE_TUNING)
FTH = Defence(
    paper="Zhao et al., ICML 2024, a baseline",
    last=FINE_TUNING,
    changes=lambda config: {"learning_rate": config.fth_learning_rate},
)


def fine_tuned_model_folder(config: Config) -> Path:
    """Folder of the model that FT makes of a run's encoder, which every defence is shown beside.

    Args:
        config: as it was given, without what its defence changes in it.
    """
    return product_path(replace(config, defence="FT"), FINE_TUNING)
