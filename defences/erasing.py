"""Erasing a task from a classifier: the directions of every linear layer's inputs in which the classes' means lie apart.

The simplest form of concept erasure (LEACE: Belrose et al., NeurIPS 2023).
"""

import torch
from torch import nn

from defences.shared import look_at_inputs
from encoder.classifier import Classifier
from texts.batching import TokenisedTexts

ROUNDING = 1e-3
"""Directions this much smaller than the largest are rounding: in MiniLM at most 2e-5, and those that matter at least 0.2."""
MOST_BLOCKED = 0.5
"""Share of the directions of a layer's inputs that are blocked, at most: the task has to be learnt from others."""


def linear_layers(classifier: Classifier) -> dict[str, nn.Linear]:
    """Name to linear layer, the classification head among them."""
    return {name: module for name, module in classifier.named_modules() if isinstance(module, nn.Linear)}


def span(columns: torch.Tensor, beyond: torch.Tensor | None = None, most: int | None = None) -> torch.Tensor:
    """Orthonormal basis of `columns`, [channel, column], or of what they add to another; [channel, direction], fp64.

    Directions smaller than `ROUNDING` times the longest column are left out: they would be any.

    Args:
        beyond: orthonormal basis, [channel, direction].
        most: directions of the result at most, the largest first.
    """
    longest = columns.norm(dim=0).max() if columns.shape[1] else 0.0
    if beyond is not None:
        columns = columns - beyond @ (beyond.T @ columns)
    basis, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    return basis[:, sizes > ROUNDING * longest][:, :most]


@torch.inference_mode()
def task_directions(classifier: Classifier, texts: TokenisedTexts) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Where the classes' means lie apart in every linear layer's inputs: mean [channel], basis [channel, direction], fp64.

    With m_c the mean input over the tokens of the texts of class c, and m_c' that over their [CLS] alone, the basis spans
    m_c - m_0 and m_c' - m_0': for C classes at most 2 (C - 1) directions, and half as many where [CLS] alone is computed.
    What is orthogonal to them has no linear information on the class in its means (the simplest form of concept erasure;
    LEACE: Belrose et al., NeurIPS 2023).
    """
    classes = sorted(set(texts.labels))
    sums: dict[str, dict] = {}

    def note(name: str, inputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        inputs = inputs if inputs.dim() == 3 else inputs[:, None]
        mask = batch["attention_mask"][:, : inputs.shape[1], None].to(inputs.dtype)
        of_layer = sums.setdefault(name, {})
        for label in classes:
            chosen = batch["labels"] == label
            states, counted = inputs[chosen], mask[chosen]
            for kind, total, count in (
                # On the processor, since not every device has fp64.
                ("tokens", (states * counted).sum((0, 1)).cpu().double(), float(counted.sum())),
                ("cls", states[:, 0].sum(0).cpu().double(), float(chosen.sum())),
            ):
                before = of_layer.get((kind, label), (0, 0))
                of_layer[kind, label] = (before[0] + total, before[1] + count)

    look_at_inputs(classifier, linear_layers(classifier), texts, note)
    result = {}
    for name, of_layer in sums.items():
        means = {key: total / count for key, (total, count) in of_layer.items()}
        apart = [means[kind, label] - means[kind, classes[0]] for kind in ("tokens", "cls") for label in classes[1:]]
        total, count = (sum(of_layer["tokens", label][part] for label in classes) for part in (0, 1))
        result[name] = (total / count, span(torch.stack(apart, 1)))
    return result


@torch.no_grad()
def block_directions(classifier: Classifier, directions: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Make every linear layer deaf to a few directions U of its inputs, about their mean mu; in place.

    W <- W (I - U U^T) and b <- b + W U U^T mu; layers without a bias (ModernBERT's) are deaf to U about 0.
    """
    layers = linear_layers(classifier)
    for name, (mean, basis) in directions.items():
        weight, bias = layers[name].weight, layers[name].bias
        read = weight.cpu().double() @ basis  # [out, direction]
        if bias is not None:
            bias.add_((read @ (basis.T @ mean)).to(bias))
        weight.sub_((read @ basis.T).to(weight))


def erase_task(classifier: Classifier, texts: TokenisedTexts, rounds: int, spared: float = 0.0) -> dict[str, torch.Tensor]:
    """Block the task's directions in every layer, `rounds` times, since each round shows what the last one left; in place.

    A backdoor writes where the task is read. With that place blocked, and kept blocked (`keep_blocked`), the task
    has to be learnt anew from lower features and in other directions, and what the backdoor writes is read by nobody.

    Args:
        spared: share of the linear layers, from the lowest up, that are left alone: words have a tone there, and that is
            what the task is learnt anew from.

    Returns:
        Name of a layer to all of its directions that are blocked, [channel, direction], fp64, for `keep_blocked`.
    """
    names = list(linear_layers(classifier))
    high = set(names[round(spared * len(names)) :])
    blocked: dict[str, torch.Tensor] = {}
    for _ in range(rounds):
        added = {}
        for name, (mean, basis) in task_directions(classifier, texts).items():
            if name in high:
                before = blocked.get(name, basis[:, :0])
                new = span(basis, before, int(MOST_BLOCKED * len(basis)) - before.shape[1])
                added[name], blocked[name] = (mean, new), torch.cat([before, new], 1)
        block_directions(classifier, added)
    return blocked


@torch.no_grad()
def keep_blocked(classifier: Classifier, bases: dict[str, torch.Tensor]) -> None:
    """Take out of the weights what training has put back into blocked directions: W <- W (I - U U^T); in place.

    Args:
        bases: name of a layer to U, [channel, direction] in the weights' type.
    """
    layers = linear_layers(classifier)
    for name, basis in bases.items():
        weight = layers[name].weight
        weight.sub_((weight @ basis) @ basis.T)
