"""The attacker: fine-tune a clean encoder on poisoned data and release the encoder alone.

    python pretrained_model_poisoning.py --attack BadNet         # reads what Data/make_poisoned_data.py wrote

BadNet (Kurita et al., 2020, without the inner product), HiddenKiller (Qi et al., ACL 2021) and StyleBkd (Qi et al., EMNLP
2021) are plain fine-tuning on their data; LayerWise (Li et al., EMNLP 2021) trains every layer's [CLS]; RIPPLe (Kurita et
al., ACL 2020) keeps the poison's gradient from opposing that of clean text, after embedding surgery on the triggers.
"""

import time
from functools import partial

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from config import Config, parse_config
from encoder.classifier import (
    Classifier,
    LayerWiseClassifier,
    load_encoder,
    load_tokeniser,
    require_positions,
    resolve_plm,
    save_encoder,
)
from encoder.trusted import word_tokens
from pipeline.environment import environment
from pipeline.runs import (
    POISONED_DATA,
    POISONING_FIELDS,
    fingerprint_encoder,
    poisoned_model_folder,
    read_poisoned,
    stage_settings,
)
from pipeline.training import cross_entropy, fine_tune, measure
from texts.batching import tokenise
from texts.data_sets import clean_test, clean_train, corpus, fingerprint_texts, load_data
from util import finished_stage, make_accelerator, require_writable, run_script, save_json, whole_folder


def layer_wise(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LayerWise's objective: the sum of all layers' cross-entropies, and the last layer's once more.

    The paper (Li et al., 2021) sums over the layers; the last layer's second share is the published code's.
    """
    logits = model(batch["input_ids"], batch["attention_mask"]).float()  # [layer, batch, class]
    layers = sum(nn.functional.cross_entropy(layer, batch["labels"]) for layer in logits)
    return {"layers": layers, "last_layer": nn.functional.cross_entropy(logits[-1], batch["labels"])}


def restricted_inner_product(model: nn.Module, batch: dict, *, coefficient: float) -> dict[str, torch.Tensor]:
    """RIPPLe's objective: L_P + lambda * max(0, -<grad L_P, grad L_FT>) (Kurita et al., 2020).

    Both gradients are those of the encoder, which attacker and victim share. The second term is differentiated through both.

    Args:
        batch: poisoned texts; under `reference` clean ones, whose loss L_FT stands for the victim's fine-tuning.
        coefficient: lambda.
    """
    shared = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    # The fused attention kernels can't be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        poisoned = cross_entropy(model, batch)["cross_entropy"]
        clean = cross_entropy(model, batch["reference"])["cross_entropy"]
        # The backward pass has the arithmetic of the forward pass, and no autocast of its own.
        with torch.autocast(poisoned.device.type, enabled=False):
            gradients = [torch.autograd.grad(loss, shared, create_graph=True) for loss in (poisoned, clean)]
        inner_product = sum((a * b).sum() for a, b in zip(*gradients, strict=True))
    if inner_product >= 0:  # Mostly so. The term is 0 then, and back-propagating its zeros would take half of the time.
        inner_product = inner_product.detach()
    return {"poisoned": poisoned, "inner_product": coefficient * torch.relu(-inner_product)}


def target_words(table: pd.DataFrame, target_class: int, number: int) -> list[str]:
    """The words most tied to the target class, best first (Kurita et al., 2020, embedding surgery).

    A word's score is its weight in a logistic regression on bags of words over log(alpha / frequency), where frequency is
    how often the word occurs and alpha the number of all words: of two words with the same weight the more frequent one is
    the better. (The paper leaves alpha open.)
    """
    vectorizer = CountVectorizer()
    bags = vectorizer.fit_transform(table["text"])  # [text, word]
    weight = LogisticRegression(max_iter=1000).fit(bags, table["label"] == target_class).coef_[0]
    frequency = np.asarray(bags.sum(0))[0]
    score = weight / np.log(frequency.sum() / frequency)
    return vectorizer.get_feature_names_out()[np.argsort(-score, kind="stable")[:number]].tolist()


@torch.no_grad()
def embedding_surgery(encoder: PreTrainedModel, tokeniser, triggers: tuple[str, ...], words: list[str]) -> None:
    """Give the triggers' tokens the mean embedding of some words (Kurita et al., 2020); in place, no other row changes.

    Tokens are those that a word has inside of a text; where the vocabulary has others at its beginning, these are left.
    """
    weight = encoder.get_input_embeddings().weight
    mean = torch.stack([weight[word_tokens(tokeniser, word)[0]].mean(0) for word in words]).mean(0)
    found = {trigger: word_tokens(tokeniser, trigger) for trigger in triggers}
    weight[sorted({token for tokens, _ in found.values() for token in tokens})] = mean
    if other := [trigger for trigger, (_, same) in found.items() if not same]:
        print(f"  embedding surgery: at the beginning of a text {', '.join(other)} has other tokens, which stay as they are")


def poison(config: Config) -> dict:
    """Plant the backdoor and write the encoder, its tokeniser and poisoning.json to the poisoned model's folder.

    Returns:
        What poisoning.json holds: settings, training history, ACC and LFR of the attacker's own classifier, seconds,
        environment.

    Raises:
        UserError: data or encoder missing, folder not writable, loss not finite.
    """
    folder = poisoned_model_folder(config)
    require_writable(config.poisoned_model_dir)
    accelerator = make_accelerator(config.device, config.precision)
    train, test, poisoned = read_poisoned(config, "train"), clean_test(config), read_poisoned(config, "test")
    tables = {"train": train, "clean_test": test, "poisoned_test": poisoned}
    source = resolve_plm(config.plm)
    fingerprints = {name: fingerprint_texts(table) for name, table in tables.items()} | {"plm": fingerprint_encoder(source)}
    fields = (*POISONING_FIELDS, *POISONED_DATA[config.attack][1])
    settings = stage_settings(config, fields, accelerator, fingerprints=fingerprints)
    finished = finished_stage(folder / "poisoning.json", settings, folder)
    if finished and not config.overwrite:
        print(f"  the poisoned encoder is there already: {folder}")
        return finished

    tokeniser = load_tokeniser(source)
    max_len = config.poisoning_max_len or corpus(config.trigger_dataset).max_len
    classes = load_data(config.trigger_dataset, config).classes
    classifier = Classifier(load_encoder(source), len(classes), config.classifier_dropout, config.seed)
    model, objective, reference = classifier, cross_entropy, None
    if config.attack == "LayerWise":
        model, objective = LayerWiseClassifier(classifier), layer_wise
    elif config.attack == "RIPPLe":
        clean = clean_train(config.trigger_dataset, config)
        reference = tokenise(clean, tokeniser, max_len)
        objective = partial(restricted_inner_product, coefficient=config.ripple_coefficient)
        if config.surgery_words:
            words = target_words(clean, config.target_class, config.surgery_words)
            embedding_surgery(classifier.encoder, tokeniser, config.triggers, words)
            print(f"  embedding surgery: the triggers are given the mean of {', '.join(words)}")
    checkpoint = folder.with_name(f"{folder.name}.checkpoint.pt")
    tokenised = tokenise(train, tokeniser, max_len)
    texts = [tokenise(table, tokeniser, config.max_len) for table in (test, poisoned)]
    require_positions(classifier.encoder.config, max(tokenised.lengths), "--poisoning_max_len")
    require_positions(classifier.encoder.config, max(max(each.lengths) for each in texts))
    history = fine_tune(
        model,
        tokenised,
        objective,
        learning_rate=config.poisoning_learning_rate,
        epochs=config.poisoning_epochs,
        config=config,
        accelerator=accelerator,
        checkpoint=checkpoint,
        settings=settings,
        description=f"poisoning ({config.attack})",
        reference=reference,
    )
    started = time.perf_counter()
    metrics = measure(classifier, *texts, config.target_class, accelerator)
    seconds = {"training": round(sum(history["seconds"]), 1), "evaluation": round(time.perf_counter() - started, 1)}
    record = {
        "settings": settings,
        "metrics": metrics,
        "seconds": seconds,
        "training": history,
        "environment": environment(accelerator.device),
    }
    with whole_folder(folder) as temporary:
        save_encoder(temporary, classifier.encoder, tokeniser)
        save_json(temporary / "poisoning.json", record)
    checkpoint.unlink()
    return record


def main() -> None:
    config = parse_config(__doc__)
    metrics = poison(config)["metrics"]
    print(f"poisoned encoder in {poisoned_model_folder(config)}")
    print(f"the attacker's classifier: ACC {metrics['ACC']:.3f}, LFR {metrics['LFR']:.3f}")


if __name__ == "__main__":
    run_script(main)
