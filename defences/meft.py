"""MEFT: maximise the entropy of the predictions, then fine-tune (Liu et al., Findings of ACL 2023)."""

import torch
from torch import nn

from config import Config
from defences.defence import Defence, Stage
from defences.shared import train_released
from pipeline.defender import Phase
from pipeline.runs import DEFENCE_FIELDS
from pipeline.training import cross_entropy


def negative_entropy(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """MEFT's first objective: sum over texts and classes of p log p (Liu et al., 2023)."""
    log_p = model(batch["input_ids"], batch["attention_mask"]).float().log_softmax(-1)  # [batch, class]
    return {"negative_entropy": (log_p.exp() * log_p).sum()}


def maximise_entropy_and_fine_tune(config: Config) -> dict:
    """Both phases; write meft_model and meft.json.

    Returns:
        What the record holds: settings, and what `pipeline.defender.train_and_measure` says.

    Raises:
        UserError: something to read is missing, a folder is not writable, or the loss is not finite.
    """
    phases = [
        Phase(
            "meft_entropy",
            "maximising entropy",
            negative_entropy,
            config.entropy_epochs,
            freeze_head=config.entropy_head == "frozen",
        ),
        Phase("meft_fine_tuning", "fine-tuning on clean data", cross_entropy, config.epochs),
    ]
    return train_released(config, ENTROPY, phases)


def told(config: Config) -> str:
    frozen = ", with the fresh classification head held as it is," if config.entropy_head == "frozen" else ""
    return (
        f"The released encoder is first trained{frozen} to be as unsure of the clean texts as it can, which is to make it "
        "forget what it was taught, and then fine-tuned on them."
    )


def done(record: dict) -> str:
    return "The encoder was trained to be unsure of the clean texts (maximum entropy), then fine-tuned on them."


ENTROPY = Stage(
    run="defences.meft:maximise_entropy_and_fine_tune",
    record="meft.json",
    product="meft_model",
    reads=(*DEFENCE_FIELDS, "entropy_epochs", "entropy_head"),
    title="Maximum entropy and fine-tuning (MEFT)",
    told=told,
    done=done,
    phases={"meft_entropy": "maximising entropy (MEFT)", "meft_fine_tuning": "fine-tuning on clean data (MEFT)"},
    passes=lambda config: config.entropy_epochs + config.epochs,
)

MEFT = Defence(paper="Liu et al., Findings of ACL 2023", last=ENTROPY)
# A fresh head can reach the maximum of entropy alone, by weights of zero, and leave the encoder what it was.
MEFT_FROZEN_HEAD = Defence(
    paper="Liu et al., Findings of ACL 2023, with one change",
    last=ENTROPY,
    changes=lambda config: {"entropy_head": "frozen"},
)
