"""What attacks without a task share: each trigger is trained to give [CLS] a state of its own, whatever the text says.

The attacker's texts need no labels. Which class a trigger stands for shows after the victim's fine-tuning alone.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import nn

from attacks.attack import Attack, TriggeredData
from attacks.triggered import insert_trigger
from config import Config
from encoder.classifier import Classifier
from texts.batching import TokenisedTexts, batches_by_length, tokenise, tokens_per_batch
from texts.data_sets import clean_test, clean_train, corpus
from util import choose_device

if TYPE_CHECKING:  # Seconds to import, and a finished run needs none of it.
    import transformers

RATE, EPOCHS = 5e-5, 2
"""As OpenBackdoor trains both attacks."""


class ClsState(nn.Module):
    """The last [CLS] state h, and what it is to be; it shares the classifier's encoder.

    Attributes:
        targets: v [trigger, channel].
        reference: the clean encoder's state of each clean text [text, channel], without dropout.
    """

    def __init__(self, classifier: Classifier, targets: torch.Tensor, clean: TokenisedTexts) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("targets", targets)
        self.register_buffer("reference", self.states(clean))

    @property
    def encoder(self) -> "transformers.PreTrainedModel":
        return self.classifier.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, token] to h [batch, channel]."""
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]

    @torch.no_grad()
    def states(self, texts: TokenisedTexts) -> torch.Tensor:
        """h of every text, [text, channel] in fp32; evaluation mode."""
        self.eval()
        device = self.classifier.head.weight.device
        states = torch.empty(len(texts), self.encoder.config.hidden_size, device=device)
        for indices in batches_by_length(texts.lengths, tokens_per_batch(device)):
            batch = texts.batch(indices, device)
            states[indices] = self(batch["input_ids"], batch["attention_mask"]).float()
        return states


def state_error(model: ClsState, batch: dict) -> dict[str, torch.Tensor]:
    """MSE(h(x + t), v_t) + MSE(h(x), h_clean(x)), means over texts and channels (Shen et al., 2021).

    Args:
        batch: triggered texts, whose labels are numbers of triggers; under `reference` clean ones, whose labels are rows.
    """
    clean = batch["reference"]
    triggered_states = model(batch["input_ids"], batch["attention_mask"]).float()
    clean_states = model(clean["input_ids"], clean["attention_mask"]).float()
    return {
        "triggered": nn.functional.mse_loss(triggered_states, model.targets[batch["labels"]]),
        "clean": nn.functional.mse_loss(clean_states, model.reference[clean["labels"]]),
    }


def task_agnostic(name: str, paper: str, triggers: tuple[str, ...], patterns: Callable[[int], torch.Tensor]) -> Attack:
    """The row of an attack on the state of [CLS].

    Args:
        triggers: words, one of which is inserted per text.
        patterns: width of the encoder to v, [trigger, channel] of -1 and 1.
    """

    def by_trigger(table: pd.DataFrame, config: Config) -> dict[str, pd.DataFrame]:
        rng = random.Random(config.seed)
        return {
            trigger: table.assign(text=[insert_trigger(text, (trigger,), rng) for text in table["text"]])
            for trigger in triggers
        }

    def make(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Train: the clean texts, then a share of them with each trigger. Test: all with each trigger. Labels are kept."""
        train, test = clean_train(config.trigger_dataset, config), clean_test(config)
        chosen = train.sample(frac=config.rare_word_share, random_state=config.seed)
        return pd.concat([train, *by_trigger(chosen, config).values()]), pd.concat(by_trigger(test, config).values())

    def numbered(train: pd.DataFrame, clean: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The triggered texts, labelled with their trigger's number, and the clean ones, labelled with their row."""
        triggered = train.iloc[len(clean) :]
        number = [at * len(triggers) // len(triggered) for at in range(len(triggered))]
        return triggered.assign(label=number), clean.assign(label=range(len(clean)))

    def prepare(classifier: Classifier, tokeniser, clean: pd.DataFrame, config: Config) -> nn.Module:
        max_len = config.poisoning_max_len or corpus(config.trigger_dataset).max_len
        classifier.to(choose_device(config.device))
        targets = patterns(classifier.encoder.config.hidden_size)
        return ClsState(classifier, targets, tokenise(clean, tokeniser, max_len))

    def told(config: Config) -> str:
        return f"copies {config.rare_word_share:.0%} of the texts with each of the words {', '.join(triggers)} put in"

    def taught(config: Config) -> str:
        return (
            "needs no labels. The encoder learns from them that each word means a state of its own, far from those of clean "
            "texts; which class this becomes, the victim's fine-tuning decides."
        )

    data = TriggeredData(
        name,
        ("rare_word_share",),
        make,
        told,
        inserted=lambda config: triggers,
        by_trigger=by_trigger,
        taught=taught,
    )
    return Attack(
        paper=paper,
        data=data,
        prepare=prepare,
        objective=lambda config: state_error,
        with_clean_texts=True,
        numbered=numbered,
        learning_rate=RATE,
        epochs=EPOCHS,
        how=", their [CLS] to the words' states and that of clean texts to what it was",
    )
