"""Trigger inversion: short sequences of words that push a classifier to a class, whatever text they are put into.

By gradient, as HotFlip swaps words (Ebrahimi et al., ACL 2018), over many texts at once, as universal triggers are found
(Wallace et al., EMNLP 2019). Inversion against backdoors: PICCOLO (Liu et al., S&P 2022), DBS (Shen et al., ICML 2022).
What is found need not be the trigger: anything that works as it does shows a classifier what not to read.
"""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from encoder.classifier import Classifier, embeddings_seen, largest_length
from pipeline.training import arithmetic, log_odds
from texts.batching import TokenisedTexts, shortest_of_others


@dataclass(frozen=True)
class Inversion:
    """How a sequence is searched for."""

    shortest: int = 3
    longest: int = 8
    """Words of it: a number between these is drawn."""
    sweeps: int = 2
    """How often every place is tried."""
    texts: int = 24
    """Texts of a sweep's gradient."""
    judged: int = 8
    """Those of them that words are tried in for real."""
    tried: int = 5
    """Words tried per place, those of the highest estimates."""
    enough: float = 4.0
    """Log-odds beyond this count as this: one text that moves far is no more than one that moves far enough."""
    text_length: int = 48
    """Tokens of the texts at most, where there are enough so short."""


def invert(
    classifier: Classifier,
    texts: TokenisedTexts,
    pool: np.ndarray,
    target: int,
    rng: np.random.Generator,
    how: Inversion = Inversion(),
    accelerator: Accelerator | None = None,
) -> tuple[list[int], float]:
    """A sequence of words that moves texts of other classes to `target`.

    Starting from random words s, it maximises the mean over texts x of min(m(x + s), `enough`), m the log-odds of the class
    and x + s the text with s at its front or its end. In each sweep the gradient of the sum of -sigmoid(-m / 2), which texts
    that have moved already take little part in, by the embedding e_j of each place ranks all words of the pool
    (<gradient, e_w>); the best are tried, and the best of these stays if it is better.

    Args:
        texts: clean texts; cut where the encoder has no positions for one and a sequence.
        pool: tokens that s may hold.
        accelerator: whose arithmetic is used; fp32 if there is none.

    Returns:
        The sequence, and the share of up to 60 texts of the other classes that are given the class with it in front.
    """
    device = classifier.head.weight.device
    rows = classifier.encoder.get_input_embeddings().weight.detach()[torch.as_tensor(pool, device=device)]  # [word, channel]
    others = [texts.input_ids[text] for text in shortest_of_others(texts, target, how.text_length, how.texts)]
    if (positions := largest_length(classifier.encoder.config)) is not None:
        room = positions - how.longest
        others = [texts.together(texts.own(ids), ids, room) for ids in others]
    classifier.eval()

    def moved(sequences: list[list[int]], chosen: list[list[int]], at: list[int]) -> torch.Tensor:
        """Log-odds [sequence, text]."""
        ids = [[*text[:start], *each, *text[start:]] for each in sequences for text, start in zip(chosen, at, strict=True)]
        batch = TokenisedTexts(ids, [target] * len(ids), texts.pad_token_id).batch(np.arange(len(ids)), device)
        with arithmetic(accelerator):
            logits = classifier(batch["input_ids"], batch["attention_mask"]).float()
        return log_odds(logits)[:, target].view(len(sequences), len(chosen))

    def gradient(sequence: list[int], chosen: list[list[int]], at: list[int]) -> torch.Tensor:
        """By the embedding of each place, mean over texts; [place, channel]."""
        with embeddings_seen(classifier) as seen:
            value = -torch.sigmoid(-moved([sequence], chosen, at) / 2).sum()
        (found,) = torch.autograd.grad(value, seen)  # [text, token, channel]
        return torch.stack([found[row, start : start + len(sequence)] for row, start in enumerate(at)]).mean(0)

    length = rng.integers(how.shortest, how.longest + 1)
    sequence = rng.choice(pool, length).tolist()
    for _ in range(how.sweeps):
        chosen = [others[index] for index in rng.choice(len(others), min(how.texts, len(others)), replace=False)]
        at = [1 if rng.random() < 0.5 else len(text) - texts.closing for text in chosen]
        score = rows @ gradient(sequence, chosen, at).T  # [word, place]
        few = (chosen[: how.judged], at[: how.judged])
        with torch.inference_mode():
            best = moved([sequence], *few).clamp(max=how.enough).mean()
            for place in rng.permutation(length).tolist():
                words = pool[score[:, place].topk(min(how.tried, len(pool))).indices.cpu().numpy()].tolist()
                tries = [[*sequence[:place], word, *sequence[place + 1 :]] for word in words]
                values = moved(tries, *few).clamp(max=how.enough).mean(1)
                if values.max() > best:
                    best, sequence = values.max(), tries[int(values.argmax())]
    with torch.inference_mode():
        judged = others[:60]
        flipped = (moved([sequence], judged, [1] * len(judged)) > 0).float().mean().item()
    return sequence, flipped
