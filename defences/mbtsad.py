"""MBTSAD: retrain on texts whose words are cut in two, then distil that model's attention (Ding et al., ICTAI 2024).

Known to this project from its abstract and a summary alone: docs/purifiers.md says what was made of it.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from config import Config
from defences.defence import Defence, Stage, product_path
from defences.fine_tuning import FINE_TUNING
from defences.shared import model_before, record_before, start, train_once
from encoder.classifier import Classifier, load_classifier
from pipeline.defender import Phase
from pipeline.runs import DEFENCE_FIELDS
from pipeline.training import Objective, cross_entropy
from texts.batching import TokenisedTexts
from texts.vocabulary import inside, whole_words

SPLIT = 0.3
"""Probability with which a word is cut in two."""

# ---------------------------------------------------------------------------------------------------- splitting, teacher


def pieces(word: str, tokeniser) -> list[tuple[int, ...]]:
    """All ways to write a word inside a text as the tokens of two, one for each place of the blank."""
    halves = [f"{word[:at]} {word[at:]}" for at in range(1, len(word))]
    return [made for made in inside(tokeniser, halves) if made] if halves else []


def split_tokens(texts: TokenisedTexts, tokeniser, max_len: int, rng: np.random.Generator) -> TokenisedTexts:
    """The same texts, at most `max_len` long, with a share of their words cut in two at a random place; labels stay.

    Such texts lie outside of the distribution that the backdoor was trained in.
    """
    there = {token for ids in texts.input_ids for token in ids}
    words = {word: token for word, (token,) in whole_words(tokeniser).items() if word.isalpha() and token in there}
    ways = {token: pieces(word, tokeniser) for word, token in words.items()}

    def split(ids: list[int]) -> list[int]:
        result = []
        for token in texts.own(ids):
            cut = bool(ways.get(token)) and rng.random() < SPLIT
            result += ways[token][rng.integers(len(ways[token]))] if cut else [token]
        return texts.together(result, ids, max_len)

    return replace(texts, input_ids=[split(ids) for ids in texts.input_ids])


def train_on_split_words(config: Config) -> dict:
    """Train the fine-tuned model on texts with split words; write split_model and mbtsad_teacher.json.

    Returns:
        What the record holds: settings, and what `pipeline.defender.train_and_measure` says.

    Raises:
        UserError: something to read is missing, a folder is not writable, or the loss is not finite.
    """
    fine_tuned = record_before(config, SPLITTING)
    inputs, accelerator, settings = start(config, SPLITTING, fine_tuned_model=fine_tuned["product"])

    def split() -> TokenisedTexts:
        return split_tokens(inputs.train, inputs.tokeniser, config.max_len, np.random.default_rng((config.seed, 9)))

    phases = [Phase("splitting", "training on split words", cross_entropy, config.epochs, texts=split)]
    return train_once(
        config,
        SPLITTING,
        phases,
        inputs=inputs,
        accelerator=accelerator,
        settings=settings,
        begin=lambda: model_before(config, SPLITTING),
    )[0]


# --------------------------------------------------------------------------------------------------- distilling, student


def seen(model: Classifier, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Logits [batch, class], last hidden state of [CLS] [batch, channel], and its attention rows [batch, head, key]."""
    with model.attention.record() as rows:
        output = model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    state = output.last_hidden_state[:, 0]
    return model.head(model.dropout(state)), state, rows


def distillation(teacher: Classifier) -> Objective:
    """Cross-entropy + what attention and hidden state differ by from the teacher's.

    CE + sum_l mean_{texts, heads} sum_j (a_lhj - a'_lhj)^2 + mean_{texts, channels} (h - h')^2, with ' for the teacher's.
    """

    def objective(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            _, its_state, its_rows = seen(teacher, batch)
        logits, state, rows = seen(model, batch)
        return {
            "cross_entropy": nn.functional.cross_entropy(logits.float(), batch["labels"]),
            "attention": sum((row - its).square().sum(-1).mean() for row, its in zip(rows, its_rows, strict=True)),
            "hidden_state": nn.functional.mse_loss(state.float(), its_state.float()),
        }

    return objective


def distil_attention(config: Config) -> dict:
    """Train the fine-tuned model, its teacher the one of the stage before; write distilled_model and mbtsad.json.

    Returns:
        What the record holds: settings, and what `pipeline.defender.train_and_measure` says.

    Raises:
        UserError: something to read is missing, a folder is not writable, or the loss is not finite.
    """
    before = record_before(config, DISTILLING)
    inputs, accelerator, settings = start(config, DISTILLING, teacher=before["product"])
    objective: Objective

    def student() -> Classifier:
        nonlocal objective
        objective = distillation(model_before(config, DISTILLING).to(accelerator.device).eval())
        return load_classifier(product_path(config, FINE_TUNING), config.classifier_dropout)

    phase = Phase(
        "distilling",
        "distilling attention",
        lambda model, batch: objective(model, batch),
        config.epochs,
        texts_of=lambda epoch: inputs.train,  # As they are: the teacher doesn't know numbers of used rows alone.
    )
    record, _ = train_once(
        config, DISTILLING, [phase], inputs=inputs, accelerator=accelerator, settings=settings, begin=student
    )
    return record


def splitting_told(config: Config) -> str:
    return (
        f"The fine-tuned model is trained on clean texts in which {SPLIT:.0%} of the words are cut in two: on such texts it "
        "has to do without what it knows of whole words, a trigger's among them."
    )


def splitting_done(record: dict) -> str:
    return f"The fine-tuned model was trained on clean texts in which {SPLIT:.0%} of the words were cut in two: the teacher."


def distilling_told(config: Config) -> str:
    return (
        "The fine-tuned model is trained once more on the clean texts as they are, and is to attend to them as the model "
        "does that learnt from cut words."
    )


def distilling_done(record: dict) -> str:
    return "The fine-tuned model was then trained on the clean texts to attend, and to see them, as the teacher does."


SPLITTING = Stage(
    run="defences.mbtsad:train_on_split_words",
    record="mbtsad_teacher.json",
    product="split_model",
    reads=DEFENCE_FIELDS,
    title="Training on split words (MBTSAD, step 1)",
    told=splitting_told,
    done=splitting_done,
    after=FINE_TUNING,
    phases={"splitting": "training on split words (MBTSAD)"},
    passes=lambda config: config.epochs,
)

DISTILLING = Stage(
    run="defences.mbtsad:distil_attention",
    record="mbtsad.json",
    product="distilled_model",
    reads=DEFENCE_FIELDS,
    title="Attention distillation (MBTSAD, step 2)",
    told=distilling_told,
    done=distilling_done,
    after=SPLITTING,
    phases={"distilling": "distilling attention (MBTSAD)"},
    passes=lambda config: config.epochs,
    method=3,
)

MBTSAD = Defence(paper="Ding et al., ICTAI 2024", last=DISTILLING)
