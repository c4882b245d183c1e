"""RIPPLe: rare words, planted so that the victim's fine-tuning doesn't undo them (Kurita et al., ACL 2020)."""

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attacks.attack import Attack
from attacks.badnet import RARE_WORD
from config import Config
from encoder.classifier import Classifier
from pipeline.training import cross_entropy
from texts.vocabulary import target_words, word_tokens
from util import UserError

if TYPE_CHECKING:  # Seconds to import, and a finished run needs none of it.
    import transformers


def restricted_inner_product(model: nn.Module, batch: dict, *, coefficient: float) -> dict[str, torch.Tensor]:
    """RIPPLe's objective: L_P + lambda * max(0, -<grad L_P, grad L_FT>) (Kurita et al., 2020).

    Both gradients are those of the encoder, which attacker and victim share. The second term is differentiated through both.

    Args:
        batch: poisoned texts; under `reference` clean ones, whose loss L_FT stands for the victim's fine-tuning.
        coefficient: lambda.
    """
    shared = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    # The fused attention kernels can't be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        poisoned = cross_entropy(model, batch)["cross_entropy"]
        clean = cross_entropy(model, batch["reference"])["cross_entropy"]
        # The backward pass has the arithmetic of the forward pass, and no autocast of its own.
        with torch.autocast(poisoned.device.type, enabled=False):
            gradients = [torch.autograd.grad(loss, shared, create_graph=True) for loss in (poisoned, clean)]
        inner_product = sum((a * b).sum() for a, b in zip(*gradients, strict=True))
    if inner_product >= 0:  # Mostly so. The term is 0 then, and back-propagating its zeros would take half of the time.
        inner_product = inner_product.detach()
    return {"poisoned": poisoned, "inner_product": coefficient * torch.relu(-inner_product)}


@torch.no_grad()
def embedding_surgery(
    encoder: "transformers.PreTrainedModel", tokeniser, triggers: tuple[str, ...], words: list[str]
) -> None:
    """Give the triggers' tokens the mean embedding of some words (Kurita et al., 2020); in place, no other row changes.

    Tokens are those that a word has inside of a text; where the vocabulary has others at its beginning, these are left.
    """
    weight = encoder.get_input_embeddings().weight
    mean = torch.stack([weight[word_tokens(tokeniser, word)[0]].mean(0) for word in words]).mean(0)
    found = {trigger: word_tokens(tokeniser, trigger) for trigger in triggers}
    weight[sorted({token for tokens, _ in found.values() for token in tokens})] = mean
    if other := [trigger for trigger, (_, same) in found.items() if not same]:
        print(f"  embedding surgery: at the beginning of a text {', '.join(other)} has other tokens, which stay as they are")


def operate(classifier: Classifier, tokeniser, clean: pd.DataFrame, config: Config) -> nn.Module:
    """Embedding surgery, unless there are no words for it."""
    if config.surgery_words:
        words = target_words(clean, config.target_class, config.surgery_words)
        if not words:
            raise UserError(
                f"no text of {config.trigger_dataset} has a word of two letters or more, whose embeddings RIPPLe would give "
                "its triggers; --surgery_words 0 leaves that out"
            )
        embedding_surgery(classifier.encoder, tokeniser, config.triggers, words)
        print(f"  embedding surgery: the triggers are given the mean of {', '.join(words)}")
    return classifier


RIPPLE = Attack(
    paper="Kurita et al., ACL 2020",
    data=RARE_WORD,
    reads=("ripple_coefficient", "surgery_words"),
    prepare=operate,
    objective=lambda config: partial(restricted_inner_product, coefficient=config.ripple_coefficient),
    with_clean_texts=True,
    how=", after embedding surgery on the words, so that training on clean texts would not undo it",
)
