"""PURE, step 1: fine-tune the suspicious encoder on clean data and prune the heads whose [CLS] attention varies least.

    python attention_head_pruning.py --attack BadNet             # reads what pretrained_model_poisoning.py wrote
    python attention_head_pruning.py --attack BadNet --poisoned_model FOLDER_OR_HUB_ID

The fine-tuned model before pruning is the baseline FT.
"""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from tqdm import tqdm

from batching import TokenisedTexts, batches_by_length
from classifier import Classifier, load_encoder, save_classifier
from cls_attention import Heads, cls_variance
from config import Config, parse_config
from runs import DEFENCE_FIELDS, DefenderInputs, command, load_defender_inputs, run_folder, stage_settings
from text_data import NUM_LABELS
from training import accuracy, cross_entropy, fine_tune, measure
from util import UserError, finished_stage, load_json, make_accelerator, require_writable, run_script, save_json

RECORD = "attention_head_pruning.json"


@torch.inference_mode()
def head_variance(classifier: Classifier, texts: TokenisedTexts, max_len: int) -> torch.Tensor:
    """Var(l, h): the variance of head h of layer l's [CLS] attention, mean over texts.

    Returns:
        [layer, head], fp64 on the CPU; evaluation mode, fp32 throughout.
    """
    classifier.eval()
    device = classifier.head.weight.device
    total = torch.zeros(len(classifier.attention.num_heads), max(classifier.attention.num_heads), dtype=torch.float64)
    with (
        classifier.attention.record() as rows,
        tqdm(total=len(texts), desc="variance", unit="text", leave=False, disable=None) as bar,
    ):
        for indices in batches_by_length(texts.lengths):
            batch = texts.batch(indices, device)
            classifier(batch["input_ids"], batch["attention_mask"])
            total += torch.stack([cls_variance(row, max_len).sum(0) for row in rows]).cpu()
            bar.update(len(indices))
    return total / len(texts)


def search_heads(
    variance: torch.Tensor,
    measure_accuracy: Callable[[Heads], float],
    acc_threshold: float,
    prune_step: int,
) -> tuple[Heads, list[dict]]:
    """Prune heads in groups, lowest variance first, as long as validation accuracy stands (paper, head pruning).

    Every layer keeps its highest-variance head. At the first group that brings accuracy below the threshold, that group's
    heads come back one by one, highest variance first, until accuracy is at the threshold again; there the search ends.

    Args:
        variance: [layer, head].
        measure_accuracy: pruned heads to validation accuracy.
        acc_threshold: accuracy to keep, 0 to 1.
        prune_step: heads per group.

    Returns:
        The pruned heads, every layer listed; and the steps: action (prune or restore), heads as [layer, head], number
        pruned after it, accuracy after it.
    """
    num_layers, num_heads = variance.shape
    order = [divmod(int(index), num_heads) for index in variance.flatten().argsort(stable=True)]
    last_heads = {(layer, int(variance[layer].argmax())) for layer in range(num_layers)}
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
            head = group.pop()  # The highest variance that is left of the group.
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
    fields = (*DEFENCE_FIELDS, "acc_threshold", "prune_step")
    return stage_settings(config, fields, accelerator, fingerprints=inputs.fingerprints)


def load_pruned_heads(config: Config, inputs: DefenderInputs, accelerator: Accelerator) -> tuple[Heads, list[float]]:
    """Pruned heads and v, as `prune_heads` left them.

    Raises:
        UserError: it has not run, or with other settings, data or encoder.
    """
    path = run_folder(config) / RECORD
    record = load_json(path)
    if record is None or record["settings"] != pruning_settings(config, inputs, accelerator):
        what = (
            f"no pruned heads in {path}" if record is None else f"the pruned heads in {path} are of other settings or data"
        )
        raise UserError(f"{what}; prune them with: {command('attention_head_pruning.py', config)}")
    return {int(layer): heads for layer, heads in record["pruned_heads"].items()}, record["layer_variance"]


def prune_heads(config: Config) -> dict:
    """Fine-tune, measure Var, prune, measure v; write the fine-tuned model and attention_head_pruning.json.

    Returns:
        What attention_head_pruning.json holds: settings; metrics of the fine-tuned model; its validation accuracy; the Var
        matrix [layer][head]; the search's steps; pruned heads by layer; v; training history; seconds.

    Raises:
        UserError: something to read is missing, a folder is not writable, the loss is not finite, or the fine-tuned model is
            below the accuracy threshold before anything is pruned.
    """
    folder = run_folder(config)
    require_writable(config.output_dir)
    accelerator = make_accelerator(config.device, config.precision)
    inputs = load_defender_inputs(config)
    settings = pruning_settings(config, inputs, accelerator)
    record_path = folder / RECORD
    finished = finished_stage(record_path, settings, folder / "fine_tuned_model")
    if finished and not config.overwrite:
        print(f"the heads are pruned already: {record_path}")
        return finished

    classifier = Classifier(load_encoder(inputs.encoder), NUM_LABELS, config.classifier_dropout, config.seed)
    checkpoint = folder / "fine_tuning.checkpoint.pt"
    history = fine_tune(
        classifier,
        inputs.train,
        cross_entropy,
        learning_rate=config.learning_rate,
        epochs=config.epochs,
        config=config,
        accelerator=accelerator,
        checkpoint=checkpoint,
        settings=stage_settings(config, DEFENCE_FIELDS, accelerator, fingerprints=inputs.fingerprints),
        description="fine-tuning on clean data",
    )
    started = time.perf_counter()
    metrics = measure(classifier, inputs.clean_test, inputs.poisoned_test, config.target_class)
    unpruned_accuracy = accuracy(classifier, inputs.validation, "validation")
    if unpruned_accuracy < config.acc_threshold:
        raise UserError(
            f"the fine-tuned model reaches a validation accuracy of {unpruned_accuracy:.3f} before any head is "
            f"pruned, below acc_threshold {config.acc_threshold:g}; lower --acc_threshold, or train for more "
            "--epochs or at another --learning_rate"
        )
    save_classifier(folder / "fine_tuned_model", classifier, inputs.tokeniser)

    searched = time.perf_counter()
    variance = head_variance(classifier, inputs.validation, config.max_len)

    def measure_accuracy(pruned: Heads) -> float:
        classifier.attention.pruned = pruned
        return accuracy(classifier, inputs.validation, f"{sum(map(len, pruned.values()))} heads pruned")

    pruned, steps = search_heads(variance, measure_accuracy, config.acc_threshold, config.prune_step)
    classifier.attention.pruned = pruned
    record = {
        "settings": settings,
        "metrics": metrics,
        "validation_accuracy": unpruned_accuracy,
        "pruned_heads": pruned,
        "steps": steps,
        "variance": variance.tolist(),
        "layer_variance": layer_variance(classifier, inputs.validation, config.max_len),
        "seconds": {
            "training": round(sum(history["seconds"]), 1),
            "evaluation": round(searched - started, 1),
            "pruning": round(time.perf_counter() - searched, 1),
        },
        "training": history,
    }
    save_json(record_path, record)
    checkpoint.unlink()
    return record


def main() -> None:
    config = parse_config(__doc__)
    record = prune_heads(config)
    print(f"fine-tuned model: ACC {record['metrics']['ACC']:.3f}, LFR {record['metrics']['LFR']:.3f}")
    print(f"pruned {sum(map(len, record['pruned_heads'].values()))} heads: {run_folder(config)}")


if __name__ == "__main__":
    run_script(main)
