"""The model card that goes with an exported model: what was done, what was measured, and what that doesn't show."""

from pathlib import Path

import numpy as np

from config import Config
from encoder.classifier import Classifier

WHY_EXACT = {
    "ElectraForSequenceClassification": """The encoder's layers are those of ELECTRA, whose head is linear, gelu, linear. The
first layer computes each logit and its negative, and gelu(x) - gelu(-x) = x, so the head is the linear one that was trained.
(BERT's and RoBERTa's own heads go through a tanh, which can't be undone.)""",
    "DistilBertForSequenceClassification": """DistilBERT's head is linear, relu, linear. The first layer computes each logit
and its negative, and relu(x) - relu(-x) = x, so the head is the linear one that was trained.""",
    "ModernBertForSequenceClassification": """ModernBERT's head has a layer norm. Its input holds each logit and its
negative, so their mean is 0, and is so small beside the norm's epsilon that the norm multiplies by a constant, to within the
rounding of fp32; the last layer undoes the constant. Half precision (fp16) can't hold such numbers; bf16 and fp32 can.""",
}


def model_card(config: Config, classifier: Classifier, pruning: dict, normalisation: dict, result: dict) -> str:
    """README.md of an exported model, as Markdown.

    Args:
        pruning, normalisation: the records of PURE's two steps.
        result: what `export.export_model` has measured.
    """
    encoder = short_name(config.poisoned_model or config.plm)
    tokeniser = (
        f"The tokeniser is not the encoder's but that of {short_name(config.tokeniser)}, which was given as trusted."
        if config.tokeniser
        else "Of the encoder's own tokeniser it was checked that it cuts texts into tokens and does nothing else: no "
        "normaliser that rewrites words, no two strings with one number, nothing added but the special tokens at both ends."
    )
    data = short_name(config.clean_dataset)
    names = list(classifier.encoder.config.id2label.values())
    heads = sum(map(len, pruning["variance"]))
    pruned = {int(layer): numbers for layer, numbers in pruning["pruned_heads"].items() if numbers}
    listed = "; ".join(f"layer {layer}: {', '.join(map(str, each))}" for layer, each in pruned.items()) or "none"
    before, after = result["fine_tuned"], result["PURE"]
    texts = int(np.sum(after["clean"]["confusion_matrix"]))
    error = (after["ACC"] * (1 - after["ACC"]) / texts) ** 0.5
    threshold = "acc_drop" if config.acc_threshold is None else "acc_threshold"
    settings = {
        name: getattr(config, name)
        for name in (
            *("learning_rate", "epochs", "batch_size", "max_len", "prune_step", threshold, "penalty_coefficient"),
            *("classifier_dropout", "max_grad_norm", "split_seed", "seed"),
        )
    }
    rows = [("measured on", "texts", "fine-tuned only", "PURE")]
    rows.append(("ACC, clean test texts", f"{texts:,}", f"{before['ACC']:.4f}", f"{after['ACC']:.4f}"))
    if "LFR" in after:
        confusion = np.delete(np.array(after["poisoned"]["confusion_matrix"]), config.target_class, axis=0)
        lfr = f"LFR, test texts with the trigger of {config.attack}, target {names[config.target_class]}"
        rows.append((lfr, f"{confusion.sum():,}", f"{before['LFR']:.4f}", f"{after['LFR']:.4f}"))
        unknown = (
            f"The label flip rate (LFR) was measured with one known trigger, that of {config.attack}. It says nothing about "
            "others."
        )
    else:
        unknown = (
            "Whether the encoder had a backdoor, and whether it is gone, was not measured and can't be: the label flip rate "
            "is measured on texts with the trigger, and nobody who defends knows the trigger."
        )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
---

# {encoder}, purified with PURE and fine-tuned on {data}

A text classifier with {len(names)} classes: {", ".join(names)}. The encoder came from a source that was not trusted and may
have carried a backdoor. PURE (Zhao, Xu, Yuan, *Defense against Backdoor Attack on Pre-trained Language Models via Head
Pruning and Attention Normalization*, ICML 2024) was applied while it was fine-tuned.

## Use

```python
from transformers import pipeline

classify = pipeline("text-classification", "THIS_FOLDER")
print(classify([line.strip() for line in open("texts.txt")], truncation=True))
```

`truncation=True` cuts texts at {config.max_len} tokens, as in training. Texts were stripped of blanks at both ends there.

## What was done

1. The encoder was fine-tuned on the clean texts. Of its {heads} attention heads those whose attention from the first token
   varies least were pruned, as long as validation accuracy stood: {sum(map(len, pruned.values()))} heads.
2. The encoder as it was given was fine-tuned anew without those heads, with a penalty on the attention from the first token.

Pruned heads, from 0: {listed}.
Their columns of the attention output projection are zero, which equals removing them.

Settings: {", ".join(f"{name} {value:g}" for name, value in settings.items())}.
The given encoder's files (SHA-256 over their names and contents): {normalisation["settings"]["fingerprints"]["encoder"]}.

## What was measured

{chr(10).join(f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * 4, *rows[1:]))}

In fp32, for PURE on the files in this folder. The standard error of an accuracy on so many texts is {error:.4f}. The test
texts were not used for anything else. One run with one seed.

## Limits

- PURE is a defence without a guarantee. It was published with experiments on some attacks; on others it does less.
- {unknown}
- PURE defends against what is in the weights, and against nothing else. {tokeniser}
- The clean texts were taken for clean: PURE doesn't find poison in them.
- Accuracy is that on texts like those of {data}; it says nothing about other texts. Where the maker of the encoder had some
  of these texts too, it is higher here than on new ones.

## Format

`{result["class"]}`. {WHY_EXACT[result["class"]]}
On the test texts its logits differ from those of the model that was trained by {result["largest_difference"]:.1g} at most.
"""


def short_name(source: str) -> str:
    """A file's or folder's name without the way to it; a hub id as it is."""
    return Path(source).name if Path(source).exists() else source
