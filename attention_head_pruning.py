"""PURE, step 1: fine-tune the suspicious encoder on clean data and prune the heads whose [CLS] attention varies least.

    python attention_head_pruning.py --attack BadNet             # reads what pretrained_model_poisoning.py wrote
    python attention_head_pruning.py --attack BadNet --poisoned_model FOLDER_OR_HUB_ID

The fine-tuned model is the baseline FT; if it is there already, it is not trained again. `--pruning_criterion` compares
PURE's choice of heads with others, on the same search.
"""

# Before torch, which reads when it is loaded how its threads are to wait.
from util import UserError, load_json, make_accelerator, run_script

# isort: split
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from tqdm import tqdm

from attacks import ATTACKS
from config import Config, parse_config
from defences import DEFENCES
from defences.defence import as_defence, product_path, record_path
from defences.fine_tuning import FINE_TUNING, fine_tune_clean
from defences.pure import PRUNING
from defences.shared import accuracy_to_keep, defender_settings, load_defender_inputs, require_accuracy
from encoder.classifier import Classifier, load_classifier
from encoder.cls_attention import Heads, cls_entropy, cls_variance
from encoder.layer_cache import LayerCache
from pipeline.defender import DefenderInputs
from pipeline.runs import command
from pipeline.stage import run_once
from pipeline.training import predict
from texts.batching import TokenisedTexts, batches_by_length, tokens_per_batch

DROPOUT_PASSES = 10
"""Passes with dropout of criterion `dropout` (Chapagain et al., 2025: 10)."""


def head_variance(classifier: Classifier, texts: TokenisedTexts, max_len: int, dropout: bool = False) -> torch.Tensor:
    """Var(l, h): the variance of head h of layer l's [CLS] attention, mean over texts.

    Returns:
        [layer, head], fp64 on the CPU; fp32 throughout, and in evaluation mode unless `dropout` is asked for.
    """
    return mean_over_texts(classifier, texts, lambda row: cls_variance(row, max_len), dropout)


@torch.inference_mode()
def mean_over_texts(
    classifier: Classifier,
    texts: TokenisedTexts,
    measure_row: Callable[[torch.Tensor], torch.Tensor],
    dropout: bool = False,
) -> torch.Tensor:
    """Mean over texts of a measure of [CLS] attention rows, [batch, head, key] to [batch, head].

    Returns:
        [layer, head], fp64 on the CPU.
    """
    classifier.train(dropout)
    device = classifier.head.weight.device
    total = torch.zeros(len(classifier.attention.num_heads), max(classifier.attention.num_heads), dtype=torch.float64)
    with (
        classifier.attention.record() as rows,
        tqdm(total=len(texts), desc="[CLS] attention", unit="text", leave=False, disable=None) as bar,
    ):
        for indices in batches_by_length(texts.lengths, tokens_per_batch(device)):
            batch = texts.batch(indices, device)
            classifier(batch["input_ids"], batch["attention_mask"])
            total += torch.stack([measure_row(row).sum(0) for row in rows]).cpu()
            bar.update(len(indices))
    return total / len(texts)


def gradient_importance(classifier: Classifier, texts: TokenisedTexts) -> torch.Tensor:
    """Importance of heads: mean over texts of |d loss / d gate|, each layer scaled to norm 1 (Michel et al., 2019).

    Returns:
        [layer, head], fp64 on the CPU.
    """
    classifier.eval()
    device = classifier.head.weight.device
    num_layers, num_heads = len(classifier.attention.num_heads), max(classifier.attention.num_heads)
    total = torch.zeros(num_layers, num_heads, dtype=torch.float64)
    for indices in batches_by_length(texts.lengths, tokens_per_batch(device)):
        batch = texts.batch(indices, device)
        gates = torch.ones(num_layers, len(indices), num_heads, device=device, requires_grad=True)
        with classifier.attention.gate(gates):
            logits = classifier(batch["input_ids"], batch["attention_mask"])
        loss = nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, gates)
        total += gradient.abs().sum(1).cpu()
    return total / total.norm(dim=1, keepdim=True).clamp_min(1e-30)


def layer_wise_order(variance: torch.Tensor) -> torch.Tensor:
    """Heads by Var within their layer, the upper layers pruned faster (Chapagain et al., 2025).

    With r = 1 for the lowest Var in layer l of L, l from 0, and H heads a layer: r / (H p_l), p_l = 0.2 + 0.6 l / (L - 1).
    The heads with 1 or less are those that the published code prunes: 20 % of the lowest layer's to 80 % of the highest's.

    Args:
        variance: [layer, head].
    """
    rank = variance.argsort(dim=1, stable=True).argsort(dim=1) + 1
    share = torch.linspace(0.2, 0.8, len(variance), dtype=torch.float64)[:, None]
    return rank / (variance.shape[1] * share)


def pruning_score(
    criterion: str, classifier: Classifier, texts: TokenisedTexts, variance: torch.Tensor, seed: int, max_len: int
) -> torch.Tensor:
    """[layer, head]: heads with the lowest score are pruned first.

    Args:
        variance: Var.
        max_len: of Var.
    """
    if criterion == "dropout":
        set_seed(seed)
        return sum(head_variance(classifier, texts, max_len, dropout=True) for _ in range(DROPOUT_PASSES)) / DROPOUT_PASSES
    if criterion == "layer_wise":
        return layer_wise_order(variance)
    if criterion == "entropy":
        # Even attention has a low variance and a high entropy: the most even heads go first, as with the variance.
        return -mean_over_texts(classifier, texts, cls_entropy)
    if criterion == "gradient":
        return gradient_importance(classifier, texts)
    if criterion == "random":
        return torch.rand(variance.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -variance if criterion == "highest_variance" else variance


def predict_without(
    classifier: Classifier, texts: TokenisedTexts, accelerator: Accelerator
) -> Callable[[Heads], torch.Tensor]:
    """A function from pruned heads to the predicted classes of `texts`, [text]; it leaves those heads pruned."""
    cache = LayerCache(classifier, int(texts.lengths.sum()))

    def predicted(pruned: Heads) -> torch.Tensor:
        classifier.attention.pruned = pruned
        with cache.passing():
            return predict(classifier, texts, f"{sum(map(len, pruned.values()))} heads pruned", accelerator).argmax(-1)

    return predicted


def accuracy_without(classifier: Classifier, texts: TokenisedTexts, accelerator: Accelerator) -> Callable[[Heads], float]:
    """A function from pruned heads to accuracy on `texts`; it leaves those heads pruned."""
    from sklearn.metrics import accuracy_score

    predicted = predict_without(classifier, texts, accelerator)
    return lambda pruned: float(accuracy_score(texts.labels, predicted(pruned)))


def search_heads(
    score: torch.Tensor,
    measure_accuracy: Callable[[Heads], float],
    acc_threshold: float,
    prune_step: int,
) -> tuple[Heads, list[dict]]:
    """Prune heads in groups, lowest score first, as long as validation accuracy stands (paper, head pruning).

    Every layer keeps its highest head. At the first group that brings accuracy below the threshold, that group's heads come
    back one by one, highest score first, until accuracy is at the threshold again; there the search ends.

    Args:
        score: [layer, head]; in PURE, Var.
        measure_accuracy: pruned heads to validation accuracy.
        acc_threshold: accuracy to keep, 0 to 1.
        prune_step: heads per group.

    Returns:
        The pruned heads, every layer listed; and the steps: action (prune or restore), heads as [layer, head], number
        pruned after it, accuracy after it.
    """
    num_layers, num_heads = score.shape
    order = [divmod(int(index), num_heads) for index in score.flatten().argsort(stable=True)]
    last_heads = {(layer, int(score[layer].argmax())) for layer in range(num_layers)}
    pruned: list[tuple[int, int]] = []
    steps: list[dict] = []

    def step(action: str, heads: list[tuple[int, int]]) -> float:
        value = measure_accuracy(as_heads(pruned, num_layers))
        steps.append({"action": action, "heads": [list(head) for head in heads], "pruned": len(pruned), "accuracy": value})
        return value

    for start in range(0, len(order), prune_step):
        group = [head for head in order[start : start + prune_step] if head not in last_heads]
        if not group:
            continue
        pruned += group
        if step("prune", group) >= acc_threshold:
            continue
        while group:
            head = group.pop()  # The highest score that is left of the group.
            pruned.remove(head)
            if step("restore", [head]) >= acc_threshold:
                break
        break
    return as_heads(pruned, num_layers), steps


def as_heads(pruned: list[tuple[int, int]], num_layers: int) -> Heads:
    """Pairs of layer and head to layer: sorted heads, every layer listed."""
    return {layer: sorted(head for at, head in pruned if at == layer) for layer in range(num_layers)}


def layer_variance(classifier: Classifier, texts: TokenisedTexts, max_len: int) -> list[float]:
    """v_l: variance of layer l's [CLS] attention, mean over texts and remaining heads."""
    variance = head_variance(classifier, texts, max_len)
    kept = classifier.attention.head_mask()
    return [float(variance[layer][kept[layer]].mean()) for layer in range(len(variance))]


def pruning_settings(config: Config, inputs: DefenderInputs, accelerator: Accelerator) -> dict:
    """All that the pruned heads depend on."""
    fine_tuned = load_json(record_path(config, FINE_TUNING)) or {}
    settings = defender_settings(config, PRUNING, inputs, accelerator, fine_tuned_model=fine_tuned.get("product"))
    return settings if config.acc_threshold is None else {key: settings[key] for key in settings if key != "acc_drop"}


def load_pruned_heads(config: Config, inputs: DefenderInputs, accelerator: Accelerator) -> tuple[Heads, list[float]]:
    """Pruned heads and v, as `prune_heads` left them.

    Raises:
        UserError: it has not run, or with other settings, data or encoder.
    """
    path = record_path(config, PRUNING)
    record = load_json(path)
    if record is None or record["settings"] != pruning_settings(config, inputs, accelerator):
        what = (
            f"no pruned heads in {path}" if record is None else f"the pruned heads in {path} are of other settings or data"
        )
        raise UserError(f"{what}; prune them with: {command('attention_head_pruning.py', config)}")
    return {int(layer): heads for layer, heads in record["pruned_heads"].items()}, record["layer_variance"]


def prune_heads(config: Config) -> dict:
    """Fine-tune, measure Var, prune, measure v; write attention_head_pruning.json.

    Returns:
        What attention_head_pruning.json holds: settings; the fine-tuned model's validation accuracy; the Var matrix
        [layer][head]; the scores the heads were sorted by; the search's steps; pruned heads by layer; v; seconds.

    Raises:
        UserError: something to read is missing, a folder is not writable, the loss is not finite, or the fine-tuned model is
            below the accuracy threshold before anything is pruned.
    """
    fine_tuned = fine_tune_clean(replace(config, overwrite=False))
    accelerator = make_accelerator(config.device, config.precision)
    inputs = load_defender_inputs(config)

    def compute() -> dict:
        validation_accuracy = fine_tuned["validation_accuracy"]
        acc_threshold = accuracy_to_keep(validation_accuracy, config.acc_threshold, config.acc_drop)
        prunes = config.pruning_criterion != "none"
        if prunes:
            require_accuracy(validation_accuracy, acc_threshold, "head")
        started = time.perf_counter()
        classifier = load_classifier(product_path(config, FINE_TUNING)).to(accelerator.device)
        variance = head_variance(classifier, inputs.validation, config.max_len)
        how = config.pruning_criterion
        score = pruning_score(how, classifier, inputs.validation, variance, config.seed, config.max_len)
        pruned, steps = as_heads([], len(score)), []
        if prunes:
            measure_accuracy = accuracy_without(classifier, inputs.validation, accelerator)
            pruned, steps = search_heads(score, measure_accuracy, acc_threshold, config.prune_step)
        classifier.attention.pruned = pruned
        return {
            "validation_accuracy": validation_accuracy,
            "pruned_heads": pruned,
            "steps": steps,
            "variance": variance.tolist(),
            "score": score.tolist(),
            "layer_variance": layer_variance(classifier, inputs.validation, config.max_len),
            "seconds": {"pruning": round(time.perf_counter() - started, 1)},
        }

    path = record_path(config, PRUNING)
    settings = pruning_settings(config, inputs, accelerator)
    record, there = run_once(path, settings, compute, product=None, overwrite=config.overwrite)
    if there:
        print(f"  the heads are pruned already: {path}")
    return record


def main() -> None:
    config = parse_config(__doc__, ATTACKS, DEFENCES)
    if PRUNING not in DEFENCES[config.defence].stages:
        raise UserError(f"--defence {config.defence} prunes no heads; run it with: {command('run_all.py', config)}")
    config = as_defence(config)
    record = prune_heads(config)
    print(f"pruned {sum(map(len, record['pruned_heads'].values()))} heads: {record_path(config, PRUNING)}")


if __name__ == "__main__":
    run_script(main)
