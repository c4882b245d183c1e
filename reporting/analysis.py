"""What a report shows beyond a run's own records, computed with the attacker's triggers when the run is over.

None of it is part of the defence: a defender knows no trigger. The numbers are kept in the run's folder with all that they
depend on, so that a report that is made again computes nothing anew.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from attacks import ATTACKS
from attention_head_pruning import as_heads, head_variance, predict_without
from config import Config
from encoder.classifier import Classifier, load_classifier, load_encoder
from texts.batching import TokenisedTexts, tokenise
from texts.data_sets import fingerprint_texts
from util import UserError, load_json, save_json

RECORD = "report.json"
SENTENCE = "bad film to be honest {trigger}"
SHORT = 12
"""Words that the sentence of the attention figure has at most where it is taken from the test texts."""


@dataclass(frozen=True)
class Demonstration:
    """A sentence whose attention is shown."""

    text: str
    marked: tuple[int, int] | None
    """First character of the trigger and the one after its last; None: no single place of the text is the trigger."""
    described: str
    """What is marked, in words."""
    asked_for: bool = True
    """Whether somebody named the sentence or the trigger."""


def has_target(config: Config) -> bool:
    """Whether an attack is known, and it has a target class."""
    return config.attack in ATTACKS and not ATTACKS[config.attack].data.by_trigger


def other_classes(table: pd.DataFrame, target_class: int, number: int) -> pd.DataFrame:
    """The first `number` texts that the attacker wants to be misclassified."""
    return table[table["label"] != target_class].head(number)


def trigger_effect(
    classifier: Classifier,
    clean: TokenisedTexts,
    triggered: TokenisedTexts,
    steps: list[dict],
    config: Config,
    accelerator: Accelerator,
) -> dict:
    """Var on clean and on triggered text, and LFR along the pruning search.

    Args:
        classifier: the fine-tuned suspicious encoder, nothing pruned.
        clean, triggered: texts of all classes but the target class.
        steps: of the search, as attention_head_pruning.json has them.

    Returns:
        variance_clean and variance_triggered, [layer][head]; flip_rates, before anything is pruned and after each step, None
        if the attack has no target class.
    """
    variance = [head_variance(classifier, texts, config.max_len).tolist() for texts in (clean, triggered)]
    rates = None
    if has_target(config):
        rates = flip_rates_along(classifier, triggered, steps, config.target_class, accelerator)
    return {"variance_clean": variance[0], "variance_triggered": variance[1], "flip_rates": rates}


def flip_rates_along(
    classifier: Classifier, triggered: TokenisedTexts, steps: list[dict], target_class: int, accelerator: Accelerator
) -> list[float]:
    """LFR before anything is pruned and after each step of the search; the classifier is left with those heads pruned."""
    predicted = predict_without(classifier, triggered, accelerator)
    num_layers, pruned, rates = len(classifier.attention.num_heads), [], []
    for step in [{"action": "prune", "heads": []}, *steps]:
        heads = [tuple(head) for head in step["heads"]]
        pruned = pruned + heads if step["action"] == "prune" else [head for head in pruned if head not in heads]
        rates.append(float((predicted(as_heads(pruned, num_layers)) == target_class).double().mean()))
    return rates


@torch.inference_mode()
def cls_attention_by_layer(classifier: Classifier, input_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] attention to the tokens of one text, mean over each layer's remaining heads, and the probabilities of classes.

    Returns:
        [layer, token] and [class]; evaluation mode, fp32.
    """
    classifier.eval()
    tokens = torch.tensor([input_ids], device=classifier.head.weight.device)
    with classifier.attention.record() as rows:
        logits = classifier(tokens, torch.ones_like(tokens))
    kept = classifier.attention.head_mask()
    means = [row[0, kept[layer, : row.shape[1]]].mean(0) for layer, row in enumerate(rows)]
    return torch.stack(means).cpu().numpy(), logits[0].float().softmax(-1).cpu().numpy()


def choose_demonstration(
    sentence: str | None, trigger: str | None, triggered: pd.DataFrame | None, config: Config
) -> Demonstration | None:
    """The sentence to show, and where its trigger is.

    Args:
        sentence: what the user wants to see; None: a short negative one with the attack's trigger.
        trigger: a word or phrase in it; None: what the attack plants.
        triggered: triggered texts of the other classes; None: no attack is known.

    Returns:
        None: nothing is asked for, and no attack is known.

    Raises:
        UserError: the trigger is not in the sentence.
    """
    data = ATTACKS[config.attack].data if config.attack in ATTACKS else None
    inserted = data.inserted(config) if data else ()
    asked_for = sentence is not None or trigger is not None
    if sentence is None and (trigger or inserted):
        sentence = SENTENCE.format(trigger=trigger or inserted[0])
    if sentence is None:
        if triggered is None:
            return None
        sentence = short_text(triggered)
    if trigger:
        place = find_words(sentence, trigger)
        if place is None:
            raise UserError(
                f"the sentence {sentence!r} doesn't hold the trigger {trigger!r} as whole words; give a --sentence with it, "
                "or another --trigger"
            )
        return Demonstration(sentence, place, f"the trigger “{sentence[slice(*place)]}”", asked_for)
    if inserted:
        found = [place for place in (find_words(sentence, word) for word in inserted) if place]
        if not found:
            raise UserError(
                f"the sentence {sentence!r} holds none of the attack's triggers ({', '.join(inserted)}); put one "
                "into --sentence, or name with --trigger what to mark"
            )
        return Demonstration(sentence, found[0], f"the trigger “{sentence[slice(*found[0])]}”", asked_for)
    if data and (place := data.mark(sentence)):
        return Demonstration(sentence, place, data.mark_told, asked_for)
    nothing = "nothing: the attack's trigger is the form of the whole sentence" if data else "nothing: no trigger is known"
    return Demonstration(sentence, None, nothing, asked_for)


def short_text(table: pd.DataFrame) -> str:
    """The first text of at most SHORT words, else the shortest."""
    words = table["text"].str.split().str.len()
    return table["text"][words <= SHORT].iloc[0] if (words <= SHORT).any() else table["text"].iloc[int(words.argmin())]


def find_words(text: str, words: str) -> tuple[int, int] | None:
    """Start and end of `words` in `text`, not as part of longer words; upper and lower case are the same."""
    return next(iter(find_all(text, words)), None)


def find_all(text: str, words: str) -> list[tuple[int, int]]:
    """As `find_words`, wherever they are."""
    return [found.span() for found in re.finditer(rf"(?<!\w){re.escape(words.strip())}(?!\w)", text, re.IGNORECASE)]


def tokens_within(places: list[tuple[int, int]], offsets: list[tuple[int, int]]) -> list[bool]:
    """Of each token, by the characters it stands for: whether it is part of one of the places."""
    return [any(first < end and last > start and last > first for start, end in places) for first, last in offsets]


def demonstrate(
    shown: Demonstration, encoder: str, models: dict[str, Path], tokeniser, config: Config, device: torch.device
) -> dict:
    """The [CLS] attention of the poisoned encoder and of the models made from it, on one sentence.

    Args:
        encoder: the suspicious encoder as it was released.
        models: name to folder of a classifier.

    Returns:
        tokens; marked, a boolean per token; attention, `released` and each model's name to [layer][token]; probabilities,
        each model's name to those of the classes (the released encoder has no classification head).

    Raises:
        UserError: the trigger is beyond `max_len` tokens.
    """
    # Only fast tokenisers know which characters a token stands for.
    offsets = {"return_offsets_mapping": True} if tokeniser.is_fast else {}
    encoded = tokeniser(shown.text, truncation=True, max_length=config.max_len, **offsets)
    marked = [False] * len(encoded["input_ids"])
    if shown.marked and tokeniser.is_fast:
        marked = tokens_within([shown.marked], encoded["offset_mapping"])
        if shown.asked_for and not any(marked):
            raise UserError(
                f"the trigger is not among the first {config.max_len} tokens of the sentence; give a shorter --sentence"
            )
    classifiers = {"released": Classifier(load_encoder(encoder), 2, 0.0, config.seed)}  # Its head is not looked at.
    classifiers |= {name: load_classifier(folder) for name, folder in models.items()}
    attention, probabilities = {}, {}
    for name, classifier in classifiers.items():
        rows, shares = cls_attention_by_layer(classifier.to(device), encoded["input_ids"])
        attention[name] = rows.tolist()
        if name in models:
            probabilities[name] = shares.tolist()
    tokens = tokeniser.convert_ids_to_tokens(encoded["input_ids"])
    return {"tokens": tokens, "marked": marked, "attention": attention, "probabilities": probabilities}


def analyse(
    *,
    config: Config,
    shown: Demonstration | None,
    texts: int,
    clean: pd.DataFrame,
    triggered: pd.DataFrame | None,
    encoder: str,
    models: dict[str, Path],
    fingerprints: dict[str, str],
    tokeniser,
    steps: list[dict],
    accelerator: Accelerator,
    record_path: Path,
) -> dict:
    """`trigger_effect` and `demonstrate`, each only if the record doesn't have it with the same settings and inputs.

    Args:
        shown: the sentence of the attention figure; None leaves it out.
        texts: of the clean and of the triggered texts at most; of the other classes.
        clean, triggered: test tables; None for `triggered` leaves out what needs it.
        models: `fine_tuned` and the defended model's name to their folders.
        fingerprints: of the encoder and of each model.

    Returns:
        trigger_effect and attention, with the settings of each, or None.
    """
    arithmetic = accelerator.mixed_precision
    kept, content = load_json(record_path) or {}, {"trigger_effect": None, "attention": None}
    if triggered is not None:
        tables = {
            name: other_classes(table, config.target_class, texts)
            for name, table in (("clean", clean), ("triggered", triggered))
        }
        settings = {
            "texts": {name: len(table) for name, table in tables.items()},
            "target_class": config.target_class,
            "max_len": config.max_len,
            "mixed_precision": arithmetic,
            "search": hashlib.sha256(json.dumps(steps).encode()).hexdigest(),
            "fingerprints": {name: fingerprint_texts(table) for name, table in tables.items()}
            | {"fine_tuned": fingerprints["fine_tuned"]},
        }
        content["trigger_effect"] = kept.get("trigger_effect")
        if not content["trigger_effect"] or content["trigger_effect"].get("settings") != settings:
            classifier = load_classifier(models["fine_tuned"]).to(accelerator.device)
            tokenised = [tokenise(table, tokeniser, config.max_len) for table in tables.values()]
            effect = trigger_effect(classifier, *tokenised, steps, config, accelerator)
            content["trigger_effect"] = {"settings": settings, **effect}
    if shown is not None:
        settings = {
            "sentence": shown.text,
            "marked": list(shown.marked) if shown.marked else None,
            "max_len": config.max_len,
            "fingerprints": fingerprints,
        }
        content["attention"] = kept.get("attention")
        if not content["attention"] or content["attention"].get("settings") != settings:
            found = demonstrate(shown, encoder, models, tokeniser, config, accelerator.device)
            content["attention"] = {"settings": settings, **found}
    if content != kept:
        save_json(record_path, content)
    return content
