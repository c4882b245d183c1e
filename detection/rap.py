"""RAP: a perturbation that lowers the probability of clean texts' class, and hardly that of triggered ones' (Yang et al.,
EMNLP 2021)."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from detection.detector import Detector, Scores, Watched
from encoder.classifier import Classifier
from pipeline.training import predict
from texts.batching import TokenisedTexts, shuffled_batches
from texts.vocabulary import whole_words

LOWERED = (0.1, 0.3)
"""What the probability is to be lowered by: at least and at most (published code)."""
RATE, EPOCHS, BATCH = 1e-2, 5, 32
"""Of the published code."""


def with_word(texts: TokenisedTexts, token: int, max_len: int) -> TokenisedTexts:
    """The texts with a token before their first word, where one too long loses its last word."""
    longer = [texts.together([token, *texts.own(ids)], ids, max_len) for ids in texts.input_ids]
    return replace(texts, input_ids=longer)


@contextlib.contextmanager
def embedded_as(classifier: Classifier, row: torch.Tensor) -> Iterator[None]:
    """Within the block, the token before a text's first word has the embedding `row`, [channel]; no weight changes."""

    def put(module, inputs, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, 1] = row.to(output)
        return changed

    hook = classifier.encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


def learn_row(
    classifier: Classifier, texts: TokenisedTexts, token: int, target: int, max_len: int, seed: int
) -> torch.Tensor:
    """The embedding that lowers a class's probability p on clean texts of it by 0.1 to 0.3, begun at a token's.

    The loss is the mean over a batch of max(0, d + 0.1) + max(0, -0.3 - d), d = p with the word less p without. As in the
    published code, gradients add up over all batches, and the row keeps its norm.

    Returns:
        [channel]
    """
    classifier.eval()
    device = classifier.head.weight.device
    row = classifier.encoder.get_input_embeddings().weight[token].detach().clone()
    norm, total = row.norm(), torch.zeros_like(row)
    perturbed = with_word(texts, token, max_len)
    least, most = LOWERED
    for epoch in range(EPOCHS):
        for indices in shuffled_batches(texts.lengths, BATCH, seed, epoch):
            plain, changed = texts.batch(indices, device), perturbed.batch(indices, device)
            with torch.no_grad():
                before = classifier(plain["input_ids"], plain["attention_mask"]).softmax(-1)[:, target]
            leaf = row.clone().requires_grad_()
            with embedded_as(classifier, leaf):
                after = classifier(changed["input_ids"], changed["attention_mask"]).softmax(-1)[:, target]
            difference = after - before
            loss = ((difference + least).clamp_min(0) + (-most - difference).clamp_min(0)).mean()
            total += torch.autograd.grad(loss, leaf)[0]
            moved = row - RATE * total
            row = moved * norm / moved.norm()
    return row


def fit(watched: Watched, clean: pd.DataFrame) -> Scores:
    """A row per class, since nobody knows the attacker's: a text is perturbed with that of its predicted class, and its
    score is how little the probability of that class falls."""
    classifier, max_len = watched.classifier, watched.max_len
    texts = watched.tokenise(list(clean["text"]))
    used = {token for ids in texts.input_ids for token in ids}
    rare = [token for (token,) in whole_words(watched.tokeniser).values() if token not in used]
    token = int(np.random.default_rng(watched.seed).choice(rare or sorted(used)))
    rows = []
    for target in range(classifier.head.out_features):
        own = np.flatnonzero(clean["label"].to_numpy() == target)
        some = replace(texts.select(own), labels=[target] * len(own))
        rows.append(learn_row(classifier, some, token, target, max_len, watched.seed))

    def scores(wanted: list[str]) -> np.ndarray:
        plain = watched.tokenise(wanted)
        before = predict(classifier, plain, "RAP").double().softmax(-1)
        perturbed, result = with_word(plain, token, max_len), np.empty(len(wanted))
        for target, row in enumerate(rows):
            own = np.flatnonzero(before.argmax(-1).numpy() == target)
            if len(own):
                some = replace(perturbed.select(own), labels=[target] * len(own))
                with embedded_as(classifier, row):
                    after = predict(classifier, some, "RAP").double().softmax(-1)
                result[own] = (after - before[own])[:, target].numpy()
        return result

    return scores


RAP = Detector(paper="Yang et al., EMNLP 2021", fit=fit)
