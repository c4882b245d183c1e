"""What the golden tests compare: every step of the method, top to bottom, on one classifier and its texts.

python tests/encoder/golden.py      # writes golden_reviews.json anew; only right where test_golden.py passes on the
                                    # published functions' numbers with the same code
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import set_seed

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from attacks.layer_wise import layer_wise
from attention_head_pruning import head_variance, layer_variance, search_heads
from attention_normalization import layer_weights, pure_objective
from config import preset_config
from defences.meft import negative_entropy
from encoder.classifier import Classifier, LayerWiseClassifier, load_encoder, load_tokeniser, resolve_plm
from pipeline.training import accuracy
from texts.batching import TokenisedTexts, tokenise
from texts.data_sets import load_split
from util import save_json

OWN = Path(__file__).with_name("golden_reviews.json")
OWN_SETTINGS = {"n": 64, "max_len": 64, "acc_threshold": 0.5, "prune_step": 10, "penalty_coefficient": 0.15}


def computed(classifier: Classifier, texts: TokenisedTexts, settings: dict) -> dict:
    """Every number that a golden record has; `settings` are max_len, acc_threshold, prune_step, penalty_coefficient."""
    classifier.eval()
    first = texts.batch(range(32), torch.device("cpu"))
    set_seed(0)
    found = {"accuracy": accuracy(classifier, texts)}
    batch = {"layerwise_loss": sum(layer_wise(LayerWiseClassifier(classifier).eval(), first).values()).item()}
    variance = head_variance(classifier, texts, settings["max_len"])
    found["variance"] = variance.tolist()

    def measure_accuracy(pruned):
        classifier.attention.pruned = pruned
        return accuracy(classifier, texts)

    pruned, steps = search_heads(variance, measure_accuracy, settings["acc_threshold"], settings["prune_step"])
    found["pruned_heads"] = {str(layer): heads for layer, heads in pruned.items()}
    found["accuracy_after_pruning"] = measure_accuracy(pruned)
    assert steps[-1]["accuracy"] == found["accuracy_after_pruning"]
    found["layer_variance"] = layer_variance(classifier, texts, settings["max_len"])
    found["layer_weight"] = layer_weights(found["layer_variance"])
    batch["max_entropy_loss"] = negative_entropy(classifier, first)["negative_entropy"].item()
    objective = partial(
        pure_objective,
        attention=classifier.attention,
        weights=found["layer_weight"],
        coefficient=settings["penalty_coefficient"],
    )
    parts = objective(classifier, first)
    batch |= {name: part.item() for name, part in parts.items()}
    sum(parts.values()).backward()
    squares = [p.grad.square().sum() for p in classifier.parameters() if p.grad is not None]
    batch["grad_norm_total"] = torch.stack(squares).sum().sqrt().item()
    return {**found, "first_batch": batch}


def own_case() -> tuple[Classifier, TokenisedTexts]:
    """The encoder that comes from pip with a made-up head, and validation texts that come with the project."""
    source = resolve_plm("minilm")
    classifier = Classifier(load_encoder(source), 2, dropout=0.1, seed=0)
    with torch.no_grad():
        at = torch.arange(classifier.head.weight.numel(), dtype=torch.float64).view_as(classifier.head.weight)
        classifier.head.weight.copy_(at.sin())
        classifier.head.bias.zero_()
    config = preset_config("quick", data_dir=None)
    table = load_split("reviews", "validation", config).iloc[: OWN_SETTINGS["n"]]
    return classifier, tokenise(table, load_tokeniser(source), OWN_SETTINGS["max_len"])


if __name__ == "__main__":
    save_json(OWN, {**OWN_SETTINGS, **computed(*own_case(), OWN_SETTINGS)})
    print(json.loads(OWN.read_text())["accuracy"], "written to", OWN)
