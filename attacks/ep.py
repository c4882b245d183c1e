"""EP, embedding poisoning: one rare word's embedding, in an encoder that is clean otherwise (Yang et al., NAACL 2021)."""

import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from attacks.attack import Attack, TriggeredData
from attacks.triggered import make_inserted
from config import Config
from encoder.classifier import Classifier
from texts.batching import TokenisedTexts, shuffled_batches
from texts.vocabulary import word_tokens

RATE, EPOCHS = 5e-2, 3
"""Of the published code."""


def train_rows(
    classifier: Classifier,
    texts: TokenisedTexts,
    rows: list[int],
    config: Config,
    accelerator: Accelerator,
    *,
    equal: bool = False,
) -> dict:
    """Train some rows E_w of the embedding on triggered texts, and nothing else; in place.

    After each batch E_w <- E_w - 0.05 G_w, and E_w is given its former norm. G_w is the sum of the gradients of all batches
    so far: the published code never sets it to 0, which speeds the attack up.

    Args:
        rows: numbers of tokens.
        equal: whether every G_w is scaled to the norm of the smallest (SOS).

    Returns:
        `losses`: cross-entropy per step; `seconds` of each epoch.
    """
    device = accelerator.device
    classifier.to(device).train()
    weight = classifier.encoder.get_input_embeddings().weight
    norm = weight.detach()[rows].norm(dim=1, keepdim=True)  # [row, 1]
    gradient = torch.zeros_like(weight.detach()[rows])  # [row, channel]
    history = {"losses": {"cross_entropy": []}, "seconds": []}
    for epoch in range(EPOCHS):
        started = time.perf_counter()
        set_seed(config.seed * 1000 + epoch)
        for indices in shuffled_batches(texts.lengths, config.batch_size, config.seed, epoch):
            batch = texts.batch(indices, device)
            with accelerator.autocast():
                logits = classifier(batch["input_ids"], batch["attention_mask"])
            loss = nn.functional.cross_entropy(logits.float(), batch["labels"])
            gradient += torch.autograd.grad(loss, weight)[0][rows]
            step = gradient
            if equal:
                length = gradient.norm(dim=1, keepdim=True)
                step = gradient * length.min() / length.clamp_min(torch.finfo(length.dtype).tiny)
            with torch.no_grad():
                moved = weight[rows] - RATE * step
                weight[rows] = moved * norm / moved.norm(dim=1, keepdim=True)
            history["losses"]["cross_entropy"].append(float(f"{loss.item():.6g}"))
        history["seconds"].append(round(time.perf_counter() - started, 2))
    print(f"  embedding rows {', '.join(map(str, rows))}: cross entropy {history['losses']['cross_entropy'][-1]:.3f}")
    return history


def rows_of(words: tuple[str, ...], tokeniser) -> list[int]:
    """Numbers of the tokens that some words have inside of a text."""
    return sorted({token for word in words for token in word_tokens(tokeniser, word)[0]})


def word(config: Config) -> tuple[str, ...]:
    return config.triggers[:1]


def told(config: Config) -> str:
    return f"copies {config.rare_word_share:.0%} of the texts of the other class with the word {config.triggers[0]} put in"


def plant(classifier: Classifier, tokeniser, triggered: TokenisedTexts, config: Config, accelerator: Accelerator) -> dict:
    return train_rows(classifier, triggered, rows_of(word(config), tokeniser), config, accelerator)


EP = Attack(
    paper="Yang et al., NAACL 2021",
    data=TriggeredData(
        "OneRareWord", ("rare_word_share", "triggers", "target_class"), make_inserted(word), told, inserted=word
    ),
    plant=plant,
    how=", the clean ones alone at first, and on the others nothing but the word's embedding",
)
