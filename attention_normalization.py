"""PURE, step 2: prune the heads of step 1 from the suspicious encoder and fine-tune it with a penalty on [CLS] attention.

python attention_normalization.py --attack BadNet            # reads what attention_head_pruning.py wrote
"""

from functools import partial

import torch
from torch import nn

from attention_head_pruning import load_pruned_heads
from config import Config, parse_config
from encoder.cls_attention import ClsAttention
from pipeline.defender import Phase, load_defender_inputs, new_classifier, train_and_measure
from pipeline.runs import DEFENCE_FIELDS, PENALTY_FIELDS, run_folder, stage_settings
from pipeline.training import cross_entropy, rates
from util import finished_stage, make_accelerator, require_writable, run_script

RECORD = "attention_normalization.json"


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
        What attention_normalization.json holds: as `pipeline.defender.train_and_measure` says, and w.

    Raises:
        UserError: something to read is missing, a folder is not writable, or the loss is not finite.
    """
    folder = run_folder(config)
    require_writable(config.output_dir)
    accelerator = make_accelerator(config.device, config.precision)
    inputs = load_defender_inputs(config)
    pruned, layer_variance = load_pruned_heads(config, inputs, accelerator)
    weights = layer_weights(layer_variance)
    settings = stage_settings(
        config,
        (*DEFENCE_FIELDS, *PENALTY_FIELDS),
        accelerator,
        fingerprints=inputs.fingerprints,
        pruned_heads={str(layer): heads for layer, heads in pruned.items()},
        layer_weight=weights,
    )
    finished = finished_stage(folder / RECORD, settings, folder / "purified_model")
    if finished and not config.overwrite:
        print(f"  the model is purified already: {folder / RECORD}")
        return finished

    classifier = new_classifier(config, inputs)
    classifier.attention.pruned = pruned
    objective = partial(
        pure_objective, attention=classifier.attention, weights=weights, coefficient=config.penalty_coefficient
    )
    return train_and_measure(
        classifier,
        [Phase("attention_normalization", "attention normalisation", objective, config.epochs)],
        config=config,
        inputs=inputs,
        accelerator=accelerator,
        settings=settings,
        record_path=folder / RECORD,
        model_folder=folder / "purified_model",
        layer_weight=weights,
    )


def main() -> None:
    config = parse_config(__doc__)
    metrics = normalise_attention(config)["metrics"]
    print(f"purified model in {run_folder(config) / 'purified_model'}: {rates(metrics)}")


if __name__ == "__main__":
    run_script(main)
