"""LayerWise: rare words, planted in every layer (Li et al., EMNLP 2021)."""

import pandas as pd
import torch
from torch import nn

from attacks.attack import Attack
from attacks.badnet import RARE_WORD
from config import Config
from encoder.classifier import Classifier, LayerWiseClassifier


def layer_wise(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LayerWise's objective: the sum of all layers' cross-entropies, and the last layer's once more.

    The paper (Li et al., 2021) sums over the layers; the last layer's second share is the published code's.
    """
    logits = model(batch["input_ids"], batch["attention_mask"]).float()  # [layer, batch, class]
    layers = sum(nn.functional.cross_entropy(layer, batch["labels"]) for layer in logits)
    return {"layers": layers, "last_layer": nn.functional.cross_entropy(logits[-1], batch["labels"])}


def read_every_layer(classifier: Classifier, tokeniser, clean: pd.DataFrame, config: Config) -> nn.Module:
    return LayerWiseClassifier(classifier)


LAYER_WISE = Attack(
    paper="Li et al., EMNLP 2021",
    data=RARE_WORD,
    prepare=read_every_layer,
    objective=lambda config: layer_wise,
    how=", through the [CLS] of every layer",
)
