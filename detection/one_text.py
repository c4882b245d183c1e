"""Look at one text: what the models of a run make of it, how odd it is to the detectors, where [CLS] looks."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from attacks import ATTACKS
from attacks.planted import poisoned_model_folder, read_poisoned
from config import Config
from defences.defence import defended_model_folder, record_path
from defences.fine_tuning import FINE_TUNING, fine_tuned_model_folder
from defences.shared import require_same_encoder, require_same_texts
from detection import DETECTORS
from detection.detector import Scores, Watched, threshold
from detection.states import draw_for_probe, fit_head
from encoder.classifier import Classifier, load_classifier, load_encoder, load_tokeniser, resolve_plm
from pipeline.runs import command, fingerprint_encoder
from pipeline.training import predict
from reporting.analysis import cls_attention_by_layer, find_all, tokens_within
from texts.batching import TokenisedTexts, tokenise
from texts.data_sets import class_names, clean_test, defender_splits
from util import UserError, load_json, make_accelerator

RELEASED, FINE_TUNED = "as released", "fine-tuned"
"""What the first two models are called; the third has its defence's name."""


@dataclass(frozen=True)
class Examiner:
    """The models of a finished run, and detectors that were fitted on its clean validation texts."""

    config: Config
    classes: tuple[str, ...]
    tokeniser: object
    models: dict[str, Classifier]
    """The encoder as it was released, with a logistic regression for a head; fine-tuned; defended."""
    detectors: dict[str, dict[str, tuple[Scores, float]]]
    """Model to detector to its scores and its threshold."""

    def tokenise(self, text: str) -> TokenisedTexts:
        return tokenise(pd.DataFrame({"text": [text], "label": [0]}), self.tokeniser, self.config.max_len)

    def answers(self, text: str) -> pd.DataFrame:
        """A row per model: model, the predicted class, and its probability."""
        tokens, rows = self.tokenise(text), []
        for name, classifier in self.models.items():
            probability, predicted = predict(classifier, tokens, "text").softmax(-1)[0].max(-1)
            rows.append({"model": name, "class": self.classes[predicted], "probability": round(probability.item(), 4)})
        return pd.DataFrame(rows)

    def scores(self, text: str) -> pd.DataFrame:
        """A row per model and detector: model, detector, score, threshold, and whether the text is odd, above it."""
        rows = []
        for model, detectors in self.detectors.items():
            for name, (scores, limit) in detectors.items():
                score = float(scores([text])[0])
                rows.append({"model": model, "detector": name, "score": score, "threshold": limit, "odd": score > limit})
        return pd.DataFrame(rows, columns=["model", "detector", "score", "threshold", "odd"])

    def attention(self, text: str) -> tuple[list[str], list[bool], dict[str, np.ndarray]]:
        """What `reporting.run_figures.attention_figure` takes: tokens, which are a trigger's, each model's attention.

        Its rows are [layer, token], mean over remaining heads.
        """
        (ids,) = self.tokenise(text).input_ids
        tokens, marked = self.tokeniser.convert_ids_to_tokens(ids), [False] * len(ids)
        if self.tokeniser.is_fast:  # Others don't know which characters a token stands for.
            offsets = self.tokeniser(text.strip(), return_offsets_mapping=True)["offset_mapping"][: len(ids) - 1]
            places = [place for trigger in self.triggers() for place in find_all(text.strip(), trigger)]
            marked[: len(offsets)] = tokens_within(places, offsets)
        return tokens, marked, {name: cls_attention_by_layer(model, ids)[0] for name, model in self.models.items()}

    def triggers(self) -> tuple[str, ...]:
        """Words or sentences that the run's attack puts into texts; none where its trigger is of another kind."""
        return ATTACKS[self.config.attack].data.inserted(self.config) if self.config.attack in ATTACKS else ()

    def triggered_text(self, number: int) -> str:
        """One of the triggered test texts of the other classes, in turn.

        Raises:
            UserError: no attack is known.
        """
        if self.config.attack not in ATTACKS:
            raise UserError("no attack is known of this run, and so no triggered text")
        table = read_poisoned(self.config, "test")
        return take_turns(table[table["label"] != self.config.target_class]["text"], number)

    def clean_text(self, number: int) -> str:
        """One of the clean test texts, in turn."""
        return take_turns(clean_test(self.config)["text"], number)


def take_turns(texts: pd.Series, number: int) -> str:
    return texts.iloc[number % len(texts)]


def put_in(text: str, trigger: str) -> str:
    """The text with a trigger after the first of its words."""
    first, *others = text.split(" ")
    return " ".join([first, trigger, *others]).strip()


def examine(config: Config, detectors: tuple[str, ...], allowed: float) -> Examiner:
    """Load the models of a finished run, and fit detectors on its clean validation texts.

    A detector is fitted on half of the validation texts, and its threshold set on the other half.

    Args:
        detectors: names.
        allowed: share of clean texts that may be called odd, 0 to 1.

    Raises:
        UserError: the run isn't finished or is of other texts or another encoder, or a detector is unknown or needs a
            language model.
    """
    for name in detectors:
        if name not in DETECTORS or DETECTORS[name].needs_language_model:
            possible = ", ".join(name for name, row in DETECTORS.items() if not row.needs_language_model)
            raise UserError(f"--detectors {name} can't be used here; expected one or more of {possible}")
    device = make_accelerator(config.device, config.precision).device
    folders = {FINE_TUNED: fine_tuned_model_folder(config)}
    if defended_model_folder(config) not in folders.values():
        folders[config.defence] = defended_model_folder(config)
    for folder in folders.values():
        if not folder.exists():
            raise UserError(f"no model in {folder}; make it with: {command('run_all.py', config)}")
    require_same_texts(config)
    tokeniser, another = (load_tokeniser(str(folder)) for folder in (folders[FINE_TUNED], defended_model_folder(config)))
    if tokeniser.get_vocab() != another.get_vocab():
        raise UserError(
            f"{config.defence} ends with a model that has another tokeniser, so the models can't be shown one text side by "
            "side; expected a defence of the encoder itself"
        )
    train, validation = defender_splits(config)
    classes = class_names(config)
    encoder = resolve_plm(config.poisoned_model) if config.poisoned_model else str(poisoned_model_folder(config))
    tuned = load_json(record_path(replace(config, defence="FT"), FINE_TUNING))
    require_same_encoder(config, tuned, fingerprint_encoder(encoder))
    released = Classifier(load_encoder(encoder), len(classes), 0.0, config.seed).to(device)
    fit_head(released, tokenise(draw_for_probe(train, config.seed), tokeniser, config.max_len))
    models = {RELEASED: released} | {name: load_classifier(folder).to(device) for name, folder in folders.items()}
    found: dict[str, dict[str, tuple[Scores, float]]] = {}
    for model in folders:
        watched = Watched(models[model], tokeniser, config.max_len, config.seed)
        for name in detectors:
            scores, usual = DETECTORS[name].calibrate(watched, validation)
            found.setdefault(model, {})[name] = (scores, threshold(usual, allowed))
    return Examiner(config, classes, tokeniser, models, found)
