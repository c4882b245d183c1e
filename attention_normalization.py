"""PURE, step 2: prune the heads of step 1 from the suspicious encoder and fine-tune it with a penalty on [CLS] attention.

python attention_normalization.py --attack BadNet            # reads what attention_head_pruning.py wrote
"""

# Before torch, which reads when it is loaded how its threads are to wait.
from util import UserError, make_accelerator, require_writable, run_script

# isort: split
import torch
from torch import nn

from attacks import ATTACKS
from attention_head_pruning import load_pruned_heads
from config import Config, parse_config
from defences import DEFENCES
from defences.defence import as_defence, product_path, record_path
from defences.pure import NORMALISATION
from defences.shared import defender_settings, load_defender_inputs, train_once
from encoder.classifier import Classifier
from encoder.cls_attention import ClsAttention
from pipeline.defender import Phase
from pipeline.runs import command
from pipeline.training import cross_entropy, rates


def layer_weights(layer_variance: list[float]) -> list[float]:
    """w_l: layers whose attention varies little weigh more.

    u_l = (1 / v_l) / sum(1 / v); w = (u - min u) / (max u - min u), and 0 everywhere if all v are equal.
    """
    inverse = 1 / torch.tensor(layer_variance, dtype=torch.float64)
    u = inverse / inverse.sum()
    spread = u.max() - u.min()
    return ((u - u.min()) / spread).tolist() if spread > 0 else [0.0] * len(layer_variance)


def attention_penalty(rows: list[torch.Tensor], attention: ClsAttention, weights: list[float]) -> torch.Tensor:
    """sum_l w_l sum_{h kept} sqrt(sum_{texts in batch} sum_j a_lhj^2) (paper's attention penalty, without lambda).

    Args:
        rows: of each layer the [CLS] attention a, [batch, head, key], before dropout.
        attention: says which heads are pruned.
        weights: w.
    """
    kept = attention.head_mask()
    norms = [row[:, kept[layer, : row.shape[1]]].square().sum((0, 2)).sqrt() for layer, row in enumerate(rows)]  # [head]
    return sum(weight * norm.sum() for weight, norm in zip(weights, norms, strict=True))


def pure_objective(
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    *,
    attention: ClsAttention,
    weights: list[float],
    coefficient: float,
) -> dict[str, torch.Tensor]:
    """Cross-entropy + lambda * penalty (paper's objective of attention normalisation)."""
    with attention.record() as rows:
        parts = cross_entropy(model, batch)
    return {**parts, "attention_penalty": coefficient * attention_penalty(rows, attention, weights)}


def normalise_attention(config: Config) -> dict:
    """Start again from the poisoned encoder, prune, fine-tune; write purified_model and attention_normalization.json.

    Returns:
        What attention_normalization.json holds: settings, what `pipeline.defender.train_and_measure` says, and w.

    Raises:
        UserError: something to read is missing, a folder is not writable, or the loss is not finite.
    """
    require_writable(config.output_dir)
    accelerator = make_accelerator(config.device, config.precision)
    inputs = load_defender_inputs(config)
    pruned, layer_variance = load_pruned_heads(config, inputs, accelerator)
    weights = layer_weights(layer_variance)
    settings = defender_settings(
        config,
        NORMALISATION,
        inputs,
        accelerator,
        pruned_heads={str(layer): heads for layer, heads in pruned.items()},
        layer_weight=weights,
    )

    def prune(classifier: Classifier) -> None:
        classifier.attention.pruned = pruned

    def objective(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return pure_objective(
            model, batch, attention=model.attention, weights=weights, coefficient=config.penalty_coefficient
        )

    record, there = train_once(
        config,
        NORMALISATION,
        [Phase("attention_normalization", "attention normalisation", objective, config.epochs)],
        inputs=inputs,
        accelerator=accelerator,
        settings=settings,
        prepare=prune,
        layer_weight=weights,
    )
    if there:
        print(f"  the model is purified already: {record_path(config, NORMALISATION)}")
    return record


def main() -> None:
    config = parse_config(__doc__, ATTACKS, DEFENCES)
    if NORMALISATION not in DEFENCES[config.defence].stages:
        raise UserError(f"--defence {config.defence} normalises nothing; run it with: {command('run_all.py', config)}")
    config = as_defence(config)
    metrics = normalise_attention(config)["metrics"]
    print(f"purified model in {product_path(config, NORMALISATION)}: {rates(metrics)}")


if __name__ == "__main__":
    run_script(main)
