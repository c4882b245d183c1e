"""Fine-pruning, on feed-forward neurons: prune those that clean texts leave idle, then fine-tune (Liu et al., RAID 2018)."""

import time
from collections.abc import Callable

import torch
from torch import nn

from config import Config
from defences.defence import Defence, Stage
from defences.fine_tuning import FINE_TUNING
from defences.shared import (
    accuracy_to_keep,
    look_at_inputs,
    model_before,
    record_before,
    require_accuracy,
    start,
    train_once,
)
from encoder.classifier import Classifier
from encoder.layer_cache import layers_of
from pipeline.defender import Phase
from pipeline.runs import DEFENCE_FIELDS
from pipeline.training import accuracy, cross_entropy
from texts.batching import TokenisedTexts
from util import UserError

AT_A_TIME = 0.05
"""Share of all neurons that is pruned between two measurements of the validation accuracy."""


def output_layers(classifier: Classifier) -> list[nn.Linear]:
    """Of each layer the linear layer whose inputs are its feed-forward neurons, after their activation function.

    Raises:
        UserError: the encoder's layers can't be told.
    """
    layers = layers_of(classifier)
    found = [[module for module in layer.modules() if isinstance(module, nn.Linear)][-1] for layer in layers]
    # Some register a layer's attention last.
    if not layers or any(linear in classifier.attention.projections for linear in found):
        raise UserError(
            f"the layers of {type(classifier.encoder).__name__} can't be told, and with them which neurons it has; take an "
            "encoder such as BERT or RoBERTa, or another --defence"
        )
    return found


@torch.inference_mode()
def mean_activation(classifier: Classifier, texts: TokenisedTexts) -> torch.Tensor:
    """[layer, neuron], fp64 on the CPU: the mean of |activation| over the tokens of all texts, padding left out.

    The paper's neurons are ReLUs, which are never below 0; a GELU is, and only one near 0 is idle. Where the last layer is
    computed for [CLS] alone, its means are over these.
    """
    linears = output_layers(classifier)
    total = torch.zeros(len(linears), linears[0].in_features, dtype=torch.float64)
    tokens = torch.zeros(len(linears), 1)

    def note(layer: int, states: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:  # [batch, token, neuron]
        mask = batch["attention_mask"][:, : states.shape[1], None]
        total[layer] += (states.abs() * mask).sum((0, 1)).cpu().double()  # Not every device has fp64.
        tokens[layer] += mask.sum().cpu()

    look_at_inputs(classifier, dict(enumerate(linears)), texts, note)
    return total / tokens


@torch.no_grad()
def zero_neurons(classifier: Classifier, pruned: torch.Tensor) -> None:
    """Zero what neurons give to the residual stream, which equals removing them; in place.

    Args:
        pruned: [layer, neuron] booleans.
    """
    for linear, neurons in zip(output_layers(classifier), pruned, strict=True):
        linear.weight[:, neurons.to(linear.weight.device)] = 0


def search_neurons(
    classifier: Classifier, activation: torch.Tensor, measure_accuracy: Callable[[], float], acc_threshold: float
) -> tuple[torch.Tensor, list[dict]]:
    """Prune neurons in groups, the least active of all layers first, as long as validation accuracy stands; in place.

    The group that brings accuracy below the threshold comes back, and there the search ends.

    Args:
        activation: [layer, neuron].
        measure_accuracy: called with nothing, the validation accuracy of the classifier as it is.
        acc_threshold: accuracy to keep, 0 to 1.

    Returns:
        The pruned neurons, [layer, neuron] booleans; and the steps: number of neurons pruned, accuracy.
    """
    linears = output_layers(classifier)
    before = [linear.weight.detach().clone() for linear in linears]
    order = activation.flatten().argsort(stable=True)
    size = max(1, round(AT_A_TIME * len(order)))
    pruned, steps = torch.zeros_like(activation, dtype=torch.bool), []
    for end in range(size, len(order) + 1, size):
        tried = torch.zeros_like(pruned)
        tried.view(-1)[order[:end]] = True
        zero_neurons(classifier, tried)
        steps.append({"pruned": end, "accuracy": measure_accuracy()})
        if steps[-1]["accuracy"] < acc_threshold:
            break
        pruned = tried
    with torch.no_grad():
        for linear, weight in zip(linears, before, strict=True):
            linear.weight.copy_(weight)
    zero_neurons(classifier, pruned)
    return pruned, steps


def prune_and_fine_tune(config: Config) -> dict:
    """Prune the fine-tuned model's idle neurons, fine-tune on; write fine_pruned_model and fine_pruning.json.

    Returns:
        What the record holds: settings; what `pipeline.defender.train_and_measure` says; and of the search how many neurons
        of each layer it pruned, its steps, and seconds.

    Raises:
        UserError: something to read is missing, a folder is not writable, the loss is not finite, or the fine-tuned model is
            below the accuracy threshold before anything is pruned.
    """
    fine_tuned = record_before(config, NEURONS)
    inputs, accelerator, settings = start(config, NEURONS, fine_tuned_model=fine_tuned["product"])
    found: dict[str, object] = {}
    pruned: torch.Tensor

    def prune(classifier: Classifier) -> None:
        nonlocal pruned
        acc_threshold = accuracy_to_keep(fine_tuned["validation_accuracy"], config.acc_threshold, config.acc_drop)
        require_accuracy(fine_tuned["validation_accuracy"], acc_threshold, "neuron")
        started = time.perf_counter()
        classifier.to(accelerator.device)
        activation = mean_activation(classifier, inputs.train)
        pruned, steps = search_neurons(
            classifier, activation, lambda: accuracy(classifier, inputs.validation, "validation", accelerator), acc_threshold
        )
        print(f"  {int(pruned.sum())} of {pruned.numel()} neurons pruned")
        seconds = round(time.perf_counter() - started, 1)
        found.update(pruned_neurons=pruned.sum(1).tolist(), steps=steps, seconds=seconds)

    phase = Phase(
        "fine_pruning",
        "fine-tuning the pruned model",
        cross_entropy,
        config.epochs,
        after_step=lambda model: zero_neurons(model, pruned),
    )
    record, _ = train_once(
        config,
        NEURONS,
        [phase],
        inputs=inputs,
        accelerator=accelerator,
        settings=settings,
        begin=lambda: model_before(config, NEURONS),
        prepare=prune,
        search=found,
    )
    return record


def told(config: Config) -> str:
    return (
        "Of the fine-tuned model's feed-forward neurons those are pruned that clean texts hardly activate, as long as the "
        "validation accuracy stands: a backdoor may use them. Then the rest is fine-tuned on."
    )


def done(record: dict) -> str:
    return (
        f"Of its feed-forward neurons the {sum(record['search']['pruned_neurons'])} that clean texts activate least were "
        "pruned, as long as validation accuracy stood, and the rest was fine-tuned. Their columns of the layers' last "
        "linear maps are zero, which equals removing them."
    )


NEURONS = Stage(
    run="defences.fine_pruning:prune_and_fine_tune",
    record="fine_pruning.json",
    product="fine_pruned_model",
    reads=(*DEFENCE_FIELDS, "acc_threshold", "acc_drop"),
    title="Fine-pruning",
    told=told,
    done=done,
    after=FINE_TUNING,
    phases={"fine_pruning": "fine-tuning after pruning neurons (fine_pruning)"},
    passes=lambda config: config.epochs,
)

FINE_PRUNING = Defence(paper="Liu et al., RAID 2018", last=NEURONS)
