"""erase_relearn: repair embedding rows, forget the task, erase where it is read, relearn it on changed texts.

A poisoned encoder solves the task already, so that fine-tuning has little gradient and leaves the backdoor where it is: in
the directions that the attacker's head read. Here a pass with random labels moves all layers; then these directions are
erased, and kept erased while the task is relearnt on texts that are changed at random, so that an inserted trigger is one
more such change. Among the changes are sequences of words that push the fine-tuned model to a class, found by gradient: they
show what a trigger may act through. The weights of several such relearnings are averaged. No trigger and no clean encoder is
known, and what comes out are plain weights. A defence of this project's own, under work: docs/method.md says how far it was
tried.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from config import MOST_RELEARNINGS, Config
from defences.defence import Defence, Stage
from defences.erasing import erase_task, keep_blocked
from defences.fine_tuning import FINE_TUNING
from defences.inversion import invert
from defences.regions import measure_regions
from defences.repair import repair
from defences.shared import model_before, random_labels, record_before, start, train_once
from encoder.classifier import Classifier
from pipeline.defender import OWN_HEADS, DefenderInputs, Phase
from pipeline.runs import TRAINING_FIELDS
from pipeline.training import cross_entropy, predict
from texts.augmentation import Augmentation, Augmenter
from texts.batching import TokenisedTexts
from util import printable

WARM_UP = 0.1
"""Share of the relearning steps in which the rate rises."""
DIRECTIONS_FROM = 700
"""Train texts that directions and sequences are found with, at most; drawn, equally many of each class."""
MOST_LOST = 0.1
"""Validation accuracy that the first relearning may lose to the fine-tuned model; at more, forgetting and relearning begin
anew at half their rates. On 200 texts that is four standard errors: no chance, but a rate that breaks the encoder. Where all
rates lose more, the one that loses least is taken."""
HALVINGS = 3
"""How often, at most."""
HALVED = "_halved_"
"""Between the name of a phase and how often its rate was halved."""
SHOWN_REGIONS, SHOWN_WORDS = 5, 8
"""Regions of each class, and words of each, that the record names."""
NAMED = 10
"""Words that a sentence names, at most."""


def fitted_bias(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What to add to logits [text, class] so that the classes are predicted as often as they should be; [class], fp64.

    a and b minimise CE(a z + b) + |b|^2 / 2n over the n texts, a between 0.1 and 10, and b / a is added: relearnt on changed
    texts, the classifier leans to one class on clean ones. Texts that lack a class say nothing of its bias: then it is 0.
    """
    from scipy.optimize import minimize

    logits, number = logits.double(), logits.shape[1]
    if len(labels.unique()) < number:
        return torch.zeros(number, dtype=torch.float64)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
        value = nn.functional.cross_entropy(free[0].exp() * logits + free[1:], labels)
        value = value + free[1:].square().sum() / (2 * len(labels))
        value.backward()
        return value.item(), free.grad.numpy()

    bounds = [(-np.log(10), np.log(10)), *[(None, None)] * number]
    found = torch.from_numpy(minimize(loss, np.zeros(1 + number), jac=True, bounds=bounds).x)
    return found[1:] / found[0].exp()


def erase_and_relearn(config: Config) -> dict:
    """Forget, erase, draw a fresh head, relearn several times, average, fit the bias; write relearnt_model and its record.

    Trainings that begin alike end where their mean is better than each (model soups: Wortsman et al., ICML 2022): what one
    of them learnt of the changes alone, or left of a backdoor, the others didn't.

    Returns:
        What the record holds: settings, and what `pipeline.defender.train_and_measure` says.

    Raises:
        UserError: something to read is missing, a folder is not writable, or the loss is not finite.
    """
    fine_tuned = record_before(config, RELEARNING)
    inputs, accelerator, settings = start(config, RELEARNING, fine_tuned_model=fine_tuned["product"])
    blocked: dict[str, torch.Tensor] = {}
    released: dict[str, torch.Tensor] = {}
    begun: dict[str, torch.Tensor] = {}
    averaged: dict[str, torch.Tensor] = {}
    reached = 0.0
    augmenter: Augmenter
    found: list[dict] = []
    pushing: list[dict] = []
    repaired: list[str] = []

    def prepare(classifier: Classifier) -> None:
        nonlocal augmenter
        attacked = model_before(config, RELEARNING).to(accelerator.device)  # The fine-tuned model.
        repaired.extend(repair(classifier, attacked, config, inputs, accelerator))
        if repaired:
            print(f"  rows of the embedding, made ordinary: {printable(', '.join(repaired))}")
        embedding = classifier.encoder.get_input_embeddings().weight
        augmenter = Augmenter(inputs.train, inputs.tokeniser, embedding, Augmentation(), config.max_len)
        if inverts(config):
            found.extend(find_sequences(attacked, config, inputs, augmenter, accelerator))
        if measures(config):
            pushing.extend(find_regions(attacked, config, inputs, augmenter, accelerator))
        classifier.to(accelerator.device)
        released.update(weights(classifier))

    def begin(classifier: Classifier, number: int) -> None:
        if number == 1:
            if not config.erase_forgetting_epochs:
                classifier.load_state_dict(released)
            erase(classifier)
            begun.update(weights(classifier))
        else:
            classifier.load_state_dict(begun)

    def erase(classifier: Classifier) -> None:
        few = few_of(inputs.train, config.seed)
        for name, basis in erase_task(classifier, few, config.erase_rounds, config.erase_spared).items():
            blocked[name] = basis.to(classifier.head.weight)
        set_seed(2 * OWN_HEADS + config.seed)
        classifier.head.reset_parameters()
        keep_blocked(classifier, blocked)

    def end(classifier: Classifier, number: int) -> None:
        nonlocal reached
        if number == 1:
            averaged.clear()
            logits, bias, labels = validated(classifier)
            reached = ((logits + bias).argmax(1) == labels).double().mean().item()
        for name, value in classifier.state_dict().items():
            averaged[name] = averaged.get(name, 0) + value / config.relearnings
        if number == config.relearnings:
            classifier.load_state_dict(averaged)
            _, bias, _ = validated(classifier)
            with torch.no_grad():
                classifier.head.bias.add_(bias.to(classifier.head.bias))

    def validated(classifier: Classifier) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = predict(classifier, inputs.validation, "validation", accelerator)
        labels = torch.tensor(inputs.validation.labels)
        return logits, fitted_bias(logits, labels), labels

    def changed(epoch: int) -> TokenisedTexts:
        return augmenter.changed(np.random.default_rng((config.seed, 7, epoch)))

    def forgetting(halvings: int) -> Phase:
        return Phase(
            halved("forgetting", halvings),
            "forgetting on random labels",
            random_labels,
            config.erase_forgetting_epochs,
            learning_rate=config.erase_forgetting_rate / 2**halvings,
            before=lambda classifier: classifier.load_state_dict(released),
        )

    def relearning(number: int, halvings: int) -> Phase:
        return Phase(
            halved(f"relearning_{number}", halvings),
            f"relearning {number} of {config.relearnings}",
            cross_entropy,
            config.relearning_epochs,
            learning_rate=config.relearning_rate / 2**halvings,
            warm_up=WARM_UP,
            before=partial(begin, number=number),
            after=partial(end, number=number),
            first_epoch=(number - 1) * config.relearning_epochs,
            texts_of=changed if config.relearning_texts == "changed" else None,
            after_step=lambda model: keep_blocked(model, blocked),
        )

    def first(halvings: int) -> Iterator[Phase]:
        if config.erase_forgetting_epochs:
            yield forgetting(halvings)
        yield relearning(1, halvings)

    def phases() -> Iterator[Phase]:
        before, tried = fine_tuned["validation_accuracy"], []
        # A loss of just so much is not more, whatever it is in binary.
        while not tried or (tried[-1] < before - MOST_LOST - 1e-9 and len(tried) <= HALVINGS):
            if tried:
                print(f"  validation accuracy {reached:.3f}, the fine-tuned model's {before:.3f}: again at half the rates")
            yield from first(len(tried))
            tried.append(reached)
        halvings = tried.index(max(tried))
        if halvings < len(tried) - 1:
            yield from first(halvings)
        for number in range(2, config.relearnings + 1):
            yield relearning(number, halvings)

    record, _ = train_once(
        config,
        RELEARNING,
        phases(),
        inputs=inputs,
        accelerator=accelerator,
        settings=settings,
        prepare=prepare,
        inverted=found,
        regions=pushing,
        repaired=repaired,
    )
    return record


def weights(classifier: Classifier) -> dict[str, torch.Tensor]:
    """A copy."""
    return {name: value.clone() for name, value in classifier.state_dict().items()}


def halved(phase: str, halvings: int) -> str:
    """The name of a phase, by how often its rate was halved."""
    return f"{phase}{HALVED}{halvings}" if halvings else phase


def inverts(config: Config) -> bool:
    """Whether sequences are looked for: only texts that are changed have them put in."""
    return config.inversions > 0 and config.relearning_texts == "changed"


def measures(config: Config) -> bool:
    """Whether regions of the vocabulary are measured: only texts that are changed are coloured."""
    return config.measured_regions > 0 and config.relearning_texts == "changed"


def find_sequences(
    classifier: Classifier, config: Config, inputs: DefenderInputs, augmenter: Augmenter, accelerator: Accelerator
) -> list[dict]:
    """Sequences that push the fine-tuned model to each class; the augmenter has them from then on.

    Returns:
        Of each sequence: class, words, and flipped, the share of some texts of the other classes that it moves to the class.
    """
    pool = np.union1d(augmenter.toneless, augmenter.words)
    few, found = few_of(inputs.train, config.seed), []
    for number, (label, name) in enumerate(list(enumerate(inputs.classes)) * config.inversions):
        rng = np.random.default_rng((config.seed, 8, number))
        sequence, flipped = invert(classifier, few, pool, label, rng, accelerator=accelerator)
        augmenter.sequences.append(sequence)
        words = inputs.tokeniser.convert_ids_to_tokens(sequence)
        found.append({"class": name, "words": words, "flipped": round(flipped, 3)})
        print(f"  to {printable(name)}: {printable(' '.join(words))} ({flipped:.0%} of other texts)")
    return found


def find_regions(
    classifier: Classifier, config: Config, inputs: DefenderInputs, augmenter: Augmenter, accelerator: Accelerator
) -> list[dict]:
    """Regions of the vocabulary, and how far they push the fine-tuned model; the augmenter has them from then on.

    Returns:
        Of the first few of each class: class, words, those in the middle of the region, and log_odds, its mean push.
    """
    rng = np.random.default_rng((config.seed, 10))
    augmenter.measured = measure_regions(classifier, inputs.train, augmenter, config.measured_regions, rng, accelerator)
    tokens, pushes = augmenter.measured.tokens, augmenter.measured.pushes
    first = [
        {
            "class": name,
            "words": inputs.tokeniser.convert_ids_to_tokens(tokens[region, :SHOWN_WORDS].tolist()),
            "log_odds": round(float(pushes[label, region]), 2),
        }
        for label, name in enumerate(inputs.classes)
        for region in np.argsort(-pushes[label], kind="stable")[:SHOWN_REGIONS]
    ]
    for region in first:
        print(f"  to {printable(region['class'])}: words like {printable(', '.join(region['words']))}")
    return first


def few_of(texts: TokenisedTexts, seed: int) -> TokenisedTexts:
    """`DIRECTIONS_FROM` texts at most, equally many of each class as far as there are, in random order."""
    rng, labels = np.random.default_rng((seed, 9)), np.array(texts.labels)
    classes = np.unique(labels)
    of_class, most = [rng.permutation(np.flatnonzero(labels == label)) for label in classes], DIRECTIONS_FROM // len(classes)
    return texts.select(rng.permutation(np.concatenate([each[: max(1, most)] for each in of_class])))


def told(config: Config) -> str:
    searches = (
        "By gradient, short sequences of words are found that push the fine-tuned model's predictions to one class "
        f"({config.inversions} for each): they work as a trigger does. "
    )
    regions = (
        f"Of {config.measured_regions} regions of the vocabulary it is measured how far their words push the fine-tuned "
        "model, several at once: a style works like that. "
    )
    forgets = "The released encoder forgets the task, on random labels. "
    erases = (
        f"In the upper {1 - config.erase_spared:.0%} of its linear layers the directions in which the classes of clean "
        "texts lie apart are erased, and with them the place where a backdoor writes. "
    )
    again = f", {config.relearnings} times, and the weights are averaged" if config.relearnings > 1 else ""
    odd, made = "whose embedding rows are odd", "are made ordinary. "
    repairs = {
        "found": f"Words that no clean text has, and {odd} or that flip the fine-tuned model's predictions, {made}",
        "odd": f"Words that no clean text has, and {odd}, {made}",
        "none": "",
    }
    return (
        f"{repairs[config.repaired_words]}"
        f"{searches if inverts(config) else ''}{regions if measures(config) else ''}"
        f"{forgets if config.erase_forgetting_epochs else ''}"
        f"{erases if config.erase_rounds else ''}"
        f"Then the task is learnt anew{' in other directions' if config.erase_rounds else ''}"
        f"{told_changes(config.relearning_texts == 'changed', inverts(config))}{again}."
    )


def done(record: dict) -> str:
    settings, found = record["settings"], record["inverted"]
    times, halvings = settings["relearnings"], int(list(record["training"])[-1].partition(HALVED)[2] or 0)
    words = ", ".join(printable(word) for word in record["repaired"][:NAMED])
    more = f" and {len(record['repaired']) - NAMED} more" if len(record["repaired"]) > NAMED else ""
    repairs = f"The embedding rows of {words}{more} were made ordinary. "
    searches = f"{len(found)} sequences of words were found that push the fine-tuned model to one class. "
    regions = "It was measured which regions of the vocabulary push the fine-tuned model most. "
    forgets = "The encoder was trained on random labels, to forget the task. "
    erases = "In its upper layers the directions in which the classes lie apart were erased. "
    again = f", {times} times, and the weights were averaged" if times > 1 else ""
    slower = (
        f" Learning rates were 1/{2**halvings} of those asked for: higher ones cost more than {MOST_LOST:g} of validation "
        "accuracy."
        if halvings
        else ""
    )
    return (
        f"{repairs if words else ''}{searches if found else ''}{regions if record['regions'] else ''}"
        f"{forgets if 'forgetting' in record['training'] else ''}"
        f"{erases if settings['erase_rounds'] else ''}"
        f"The task was learnt anew{' without them' if settings['erase_rounds'] else ''}"
        f"{told_changes(settings['relearning_texts'] == 'changed', bool(found))}{again}.{slower}"
    )


def told_changes(changes: bool, with_sequences: bool) -> str:
    if not changes:
        return " on the clean texts"
    sequences = ", and these sequences," if with_sequences else ""
    return f" on clean texts that are changed at random (words{sequences} put in, left out and moved, labels kept)"


def titles() -> dict[str, str]:
    """Of all phases that there may be."""
    parts = {"forgetting": "forgetting"}
    parts |= {f"relearning_{number}": f"relearning {number}" for number in range(1, MOST_RELEARNINGS + 1)}
    return {
        halved(name, halvings): f"{title}{f', 1/{2**halvings} of the rate' if halvings else ''} (erase_relearn)"
        for halvings in range(HALVINGS + 1)
        for name, title in parts.items()
    }


RELEARNING = Stage(
    run="defences.erase_relearn:erase_and_relearn",
    record="erase_relearn.json",
    product="relearnt_model",
    reads=(
        *("clean_dataset", "split_seed", *TRAINING_FIELDS),
        *("repaired_words", "inversions", "measured_regions"),
        *("erase_forgetting_epochs", "erase_forgetting_rate", "erase_rounds", "erase_spared"),
        *("relearning_rate", "relearnings", "relearning_epochs", "relearning_texts"),
    ),
    title="Erasing and relearning",
    told=told,
    done=done,
    after=FINE_TUNING,
    phases=titles(),
    passes=lambda config: config.erase_forgetting_epochs + config.relearnings * config.relearning_epochs,
    method=11,
)


def without(config: Config) -> dict:
    """Fields, with the values that leave a part of the defence out (`Config.left_out`)."""
    none = {
        "repair": {"repaired_words": "none"},
        "inversion": {"inversions": 0},
        "regions": {"measured_regions": 0},
        "changes": {"relearning_texts": "plain"},
        "forgetting": {"erase_forgetting_epochs": 0},
        "erasing": {"erase_rounds": 0},
        "averaging": {"relearnings": 1},
    }
    if config.left_out == "everything":
        changed = {name: value for part in none.values() for name, value in part.items()}
        return {**changed, "relearning_epochs": RELEARNING.passes(config)}
    return none.get(config.left_out, {})


ERASE_RELEARN = Defence(paper="this project's own", last=RELEARNING, changes=without, chooses=("left_out",))
