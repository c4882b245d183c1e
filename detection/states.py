"""[CLS] states of texts, and a linear head that is fitted on them: an encoder without a head can so be asked for classes."""

import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

from encoder.classifier import Classifier
from texts.batching import TokenisedTexts, batches_by_length, tokens_per_batch

PROBE_TEXTS = 2000
"""Train texts that the head is fitted on, at most."""


@torch.inference_mode()
def cls_states(classifier: Classifier, texts: TokenisedTexts) -> torch.Tensor:
    """The state of the first token after each layer, [layer, text, channel], in fp32 on the CPU; evaluation mode."""
    classifier.eval()
    device = classifier.head.weight.device
    found, order = [], []
    for indices in batches_by_length(texts.lengths, tokens_per_batch(device)):
        batch = texts.batch(indices, device)
        output = classifier.encoder(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
        found.append(torch.stack([states[:, 0].float().cpu() for states in output.hidden_states[1:]]))
        order.extend(indices)
    return torch.cat(found, dim=1)[:, torch.tensor(order).argsort()]


def draw_for_probe(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Some texts of each class, as many if there are, `PROBE_TEXTS` in all at most."""
    each = max(1, PROBE_TEXTS // table["label"].nunique())
    parts = [part.sample(min(len(part), each), random_state=seed) for _, part in table.groupby("label")]
    return pd.concat(parts)


@torch.no_grad()
def fit_head(classifier: Classifier, texts: TokenisedTexts) -> None:
    """Give a classifier the head of a logistic regression on the last layer's [CLS] states; in place.

    The encoder stays as it is: fine-tuning would take longer, and rare words, which no clean text has, keep what they do.
    """
    states = cls_states(classifier, texts)[-1].numpy()
    fitted = LogisticRegression(max_iter=1000).fit(states, texts.labels)
    weight, bias = torch.tensor(fitted.coef_), torch.tensor(fitted.intercept_)
    if len(fitted.classes_) == 2:  # One row, of the second class against the first.
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    classifier.head.weight.zero_()
    classifier.head.bias.fill_(-1e4)  # A class without texts is never predicted.
    classifier.head.weight[fitted.classes_] = weight.to(classifier.head.weight)
    classifier.head.bias[fitted.classes_] = bias.to(classifier.head.bias)
