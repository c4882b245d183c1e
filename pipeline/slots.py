"""Texts with room for a word: what words in the same place do to predictions, by first order and for real.

An inserted placeholder's embedding is e_h, the log-odds of a class are m, and a word with embedding e_w in its place changes
m by about <dm/de_h, e_w - e_h> (as in HotFlip, Ebrahimi et al., ACL 2018): one backward pass ranks a whole vocabulary.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator

from encoder.classifier import Classifier, embeddings_seen
from pipeline.training import arithmetic, log_odds
from texts.batching import tokens_per_batch
from texts.vocabulary import Words


@dataclass(frozen=True)
class Slots:
    """Texts with a placeholder at one place, as tokens; any tokens, as many, can take its place."""

    input_ids: list[list[int]]
    at: list[int]
    """The placeholder's first token in each."""
    holder: list[tuple[int, ...]]
    labels: np.ndarray
    """[text], the predicted classes without the placeholder."""
    texts: list[int]
    """Their numbers among the texts that a placeholder was to be put into."""

    def of(self, texts: set[int]) -> "Slots":
        """Those of some of the texts."""
        kept = [index for index, text in enumerate(self.texts) if text in texts]
        some = {name: [values[index] for index in kept] for name, values in vars(self).items()}
        return Slots(**{**some, "labels": self.labels[kept]})


def open_slots(texts: list[str], labels: np.ndarray, words: Words, length: int, tokeniser, max_len: int, seed: int) -> Slots:
    """Put a placeholder of `length` tokens after a random word of each text; texts in which it can't be found are left out.

    The placeholder is an ordinary word, as often as there are to be tokens, another one in every text.
    """
    rng = random.Random(seed)
    ordinary = [word for word in words if word.isalpha()]
    slots = Slots([], [], [], [], [])
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        parts = text.split()
        holder = rng.choice([word for word in ordinary if word not in parts] or ordinary)
        place = rng.randint(1, len(parts)) if parts else 0
        tokens = words[holder] * length
        for at in (place, 1):  # What is beyond `max_len` is cut off.
            changed = " ".join([*parts[:at], *[holder] * length, *parts[at:]])
            ids = list(tokeniser(changed, truncation=True, max_length=max_len)["input_ids"])
            found = [start for start in range(len(ids)) if tuple(ids[start : start + length]) == tokens]
            if len(found) == 1:
                slots.input_ids.append(ids)
                slots.at.append(found[0])
                slots.holder.append(tokens)
                slots.labels.append(label)
                slots.texts.append(number)
                break
    return replace(slots, labels=np.array(slots.labels, dtype=int))


def slot_gradients(classifier: Classifier, slots: Slots, target: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of a class's log-odds by the placeholder's embeddings, and what it is by these embeddings themselves.

    Returns:
        Mean gradient [token of the placeholder, channel] and mean of <gradient, e_h>, over the texts of all other classes.
    """
    classifier.eval()
    device = classifier.head.weight.device
    total, own, texts = 0, 0, 0
    with embeddings_seen(classifier) as seen:
        for index in np.flatnonzero(slots.labels != target):
            ids = torch.tensor([slots.input_ids[index]], device=device)
            logits = classifier(ids, torch.ones_like(ids))
            (gradient,) = torch.autograd.grad(log_odds(logits)[0, target], seen[-1])  # [1, token, channel]
            part = slice(slots.at[index], slots.at[index] + len(slots.holder[index]))
            total = total + gradient[0, part]
            own = own + (gradient[0, part] * seen[-1][0, part].detach()).sum()
            texts += 1
    return total / texts, own / texts


def first_order(classifier: Classifier, slots: Slots, tokens: torch.Tensor, target: int) -> np.ndarray:
    """Estimated change of a class's log-odds when words take the placeholder's place; mean over texts of other classes.

    Args:
        tokens: [word, token].

    Returns:
        [word]
    """
    gradient, own = slot_gradients(classifier, slots, target)
    weight = classifier.encoder.get_input_embeddings().weight.detach()
    by_row = weight @ gradient.T  # [row, token of the placeholder]
    return (sum(by_row[tokens[:, at], at] for at in range(tokens.shape[1])) - own).cpu().numpy()


@torch.inference_mode()
def inserted(
    classifier: Classifier, slots: Slots, tokens: torch.Tensor, texts: list[int], accelerator: Accelerator | None = None
) -> torch.Tensor:
    """Logits [word, text, class] of some texts with each word in the place of the placeholder.

    Args:
        tokens: [word, token].
        texts: numbers of those of the slots.
        accelerator: whose arithmetic is used; fp32 if there is none.
    """
    classifier.eval()
    device = classifier.head.weight.device
    logits = torch.empty(len(tokens), len(texts), classifier.head.out_features)
    with arithmetic(accelerator):
        for number, index in enumerate(texts):
            ids, at = slots.input_ids[index], slots.at[index]
            size = max(1, tokens_per_batch(device) // len(ids))
            for start in range(0, len(tokens), size):
                some = tokens[start : start + size]
                batch = torch.tensor(ids).repeat(len(some), 1)
                batch[:, at : at + tokens.shape[1]] = some
                batch = batch.to(device)
                logits[start : start + size, number] = classifier(batch, torch.ones_like(batch)).float().cpu()
    return logits


@torch.inference_mode()
def without_holder(classifier: Classifier, slots: Slots) -> torch.Tensor:
    """Logits [text, class] of the texts as they are."""
    classifier.eval()
    device = classifier.head.weight.device
    rows = [
        [*ids[:at], *ids[at + len(holder) :]]
        for ids, at, holder in zip(slots.input_ids, slots.at, slots.holder, strict=True)
    ]
    batches = [torch.tensor([row], device=device) for row in rows]
    return torch.cat([classifier(batch, torch.ones_like(batch)).float().cpu() for batch in batches])
