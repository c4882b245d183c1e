"""The model card that goes with an exported model: what was done, what was measured, and what that doesn't show."""

import dataclasses
from pathlib import Path

import numpy as np

from config import Config
from defences import DEFENCES
from encoder.classifier import Classifier
from experiments.results_table import as_markdown
from pipeline.training import flipped, guessing

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


def model_card(
    config: Config, classifier: Classifier, done: list[str], read: dict, result: dict, python_only: bool = False
) -> str:
    """README.md of an exported model, as Markdown.

    Args:
        done: what each stage did.
        read: the settings of the last stage.
        result: what `export.export_model` has measured.
        python_only: whether the tokeniser can't be looked into (`encoder.trusted.is_python_only`).
    """
    from scipy.stats import binomtest  # A second to import, which a finished run needs none of.

    defence = DEFENCES[config.defence]
    # A folder, a file and a class may have any name, and the card is published.
    given = as_markdown(short_name(config.poisoned_model or config.plm))
    encoder = as_markdown(short_name(config.clean_encoder)) if defence.puts_aside else given
    data = as_markdown(short_name(config.clean_dataset))
    names = [as_markdown(name) for name in classifier.encoder.config.id2label.values()]
    if defence.puts_aside:
        tokeniser = f"The tokeniser is that of {encoder}, trusted as this is."
    elif config.tokeniser:
        trusted = as_markdown(short_name(config.tokeniser))
        tokeniser = f"The tokeniser is not the encoder's but that of {trusted}, which was given as trusted."
    elif python_only:
        tokeniser = (
            "The encoder's own tokeniser is Python through and through, so that nobody can look into what it does to texts. "
            "It was checked alone that it added nothing to a few of them but the special tokens at both ends."
        )
    else:
        tokeniser = (
            "Of the encoder's own tokeniser it was checked that it cuts texts into tokens and does nothing else: no "
            "normaliser that rewrites words, no word for what it doesn't know, no two strings with one number, nothing "
            "added but the special tokens at both ends."
        )
    before, after = result["fine_tuned"], result["defended"]
    confusion = np.array(after["clean"]["confusion_matrix"])
    texts = int(confusion.sum())
    interval = binomtest(int(confusion.trace()), texts).proportion_ci(method="wilson")
    said = guessing(confusion)
    guessed = f"\n**{said}**\n" if said else ""
    doubtful = "".join(f"- {doubt}\n" for doubt in result["doubts"])
    unused = "acc_threshold" if config.acc_threshold is None else "acc_drop"
    fields = [field.name for field in dataclasses.fields(config) if field.name in defence.reads() - {unused}]
    values = {name: getattr(config, name) for name in fields if name != "clean_dataset"}
    values |= {name: short_name(values[name]) for name in ("clean_encoder", "tokeniser") if values.get(name)}
    settings = as_markdown(", ".join(f"{name} {value}" for name, value in values.items()))
    rows = [("measured on", "texts", "fine-tuned only", config.defence)]
    rows.append(("ACC, clean test texts", f"{texts:,}", f"{before['ACC']:.4f}", f"{after['ACC']:.4f}"))
    if "LFR" in after:
        lfr = f"LFR, test texts with the trigger of {config.attack}"
        lfr += ", mean over triggers" if "triggers" in after else f", target {names[config.target_class]}"
        total = flipped(after, config.target_class)[1]
        rows.append((lfr, f"{total:,}", f"{before['LFR']:.4f}", f"{after['LFR']:.4f}"))
        unknown = (
            f"The label flip rate (LFR) was measured with what {config.attack} plants. It says nothing about other triggers."
        )
    else:
        unknown = (
            "Whether the encoder had a backdoor, and whether it is gone, was not measured and can't be: the label flip rate "
            "is measured on texts with the trigger, and nobody who defends knows the trigger."
        )
    title = f"{encoder}, purified with {config.defence} and fine-tuned on {data}"
    source, files = "The encoder came from a source that was not trusted and may have carried a backdoor.", "given"
    applied = f"{config.defence} ({defence.paper}) was applied while it was fine-tuned."
    limit = f"{config.defence} is a defence without a guarantee: on some attacks it does less than on others."
    if config.defence == "FT":
        title = f"{encoder}, fine-tuned on {data} without a defence"
        applied = "It was fine-tuned, and nothing was done against a backdoor."
        limit = "Fine-tuning alone leaves most backdoors in."
    if defence.puts_aside:
        title = f"{encoder}, fine-tuned on {data} in place of {given}"
        source = f"The encoder is {encoder}, which was given as trusted; {given}, which was not, was put aside."
        applied, files = "It was fine-tuned, and nothing else was done.", "trusted"
        limit = f"A backdoor in {encoder}, if it has one, is there still: nobody looked for it."
    oddness = """
`predict.py` writes no score of how odd a text is for this model: there were too few validation texts to fit one, or
transformers' own states differ from those that it would be fitted to.
"""
    if odd := result.get("oddness"):
        oddness = f"""
## Odd texts

`oddness.safetensors` holds what tells how far a text is from the clean texts of every class, by the states of [CLS] in every
layer of this model (DAN: Chen et al., Findings of EMNLP 2022). The project's `predict.py` writes that score beside each
prediction. Above {odd["threshold"]:.4f}, where {odd["allowed"]:.0%} of held-out clean texts were to be, are
{odd["FRR"]:.1%} of the clean test texts. A text that is odd may carry a trigger or only be unusual; that one isn't odd
proves nothing.
"""
    return f"""---
library_name: transformers
pipeline_tag: text-classification
---

# {title}

A text classifier with {len(names)} classes: {", ".join(names)}. {source}
{applied}

## Use

```python
from transformers import pipeline

classify = pipeline("text-classification", "THIS_FOLDER")
print(classify([line.strip() for line in open("texts.txt")], truncation=True))
```

`truncation=True` cuts texts at {config.max_len} tokens, as in training. Texts were stripped of blanks at both ends there,
and HTML line breaks (`<br />`) were blanks.

## What was done

{chr(10).join(f"{number}. {text}" for number, text in enumerate(done, 1))}

Settings: {settings}.
The {files} encoder's files (SHA-256 over their names and contents): {as_markdown(read["fingerprints"]["encoder"])}.

## What was measured

{chr(10).join(f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * 4, *rows[1:]))}

In fp32, for {config.defence} on the files in this folder. The 95 % interval of this accuracy (Wilson) is
{interval.low:.4f} to {interval.high:.4f}. The test texts were not used for anything else. One run with one seed.
{guessed}{oddness}
## Limits

- {limit}
- {unknown}
- A defence here is against what is in the weights, and against nothing else. {tokeniser}
- The clean texts were taken for clean: no poison is looked for in them.
- Accuracy is that on texts like those of {data}; it says nothing about other texts. Where the maker of the encoder had some
  of these texts too, it is higher here than on new ones.
{doubtful}
## Format

`{result["class"]}`. {WHY_EXACT[result["class"]]}
On the test texts its logits differ from those of the model that was trained by {result["largest_difference"]:.1g} at most.
"""


def short_name(source: str) -> str:
    """A file's or folder's name without the way to it; a hub id as it is."""
    return Path(source).name if Path(source).exists() else source
