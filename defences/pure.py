"""PURE (Zhao, Xu, Yuan, ICML 2024) and its halves.

Its two steps are scripts: attention_head_pruning.py and attention_normalization.py.
"""

from config import Config
from defences.defence import Defence, Stage
from defences.fine_tuning import FINE_TUNING
from pipeline.runs import DEFENCE_FIELDS


def pruning_told(config: Config) -> str:
    relative = config.acc_threshold is None
    threshold = f"within {config.acc_drop:g} of what it was" if relative else f"at {config.acc_threshold:g} or above"
    return (
        "Attention heads of the fine-tuned model are pruned, those first whose attention from [CLS] varies least between "
        f"tokens, while the accuracy on validation texts stays {threshold}."
    )


def pruning_done(record: dict) -> str:
    pruned = {int(layer): heads for layer, heads in record["pruned_heads"].items() if heads}
    listed = "; ".join(f"layer {layer}: {', '.join(map(str, heads))}" for layer, heads in pruned.items()) or "none"
    criterion = record["settings"]["pruning_criterion"]
    first = "whose attention from the first token varies least" if criterion == "variance" else f"of criterion {criterion}"
    return (
        f"Of its {sum(map(len, record['variance']))} attention heads those {first} were pruned, as long as validation "
        f"accuracy stood: {sum(map(len, pruned.values()))} heads. Pruned heads, from 0: {listed}. Their columns of the "
        "attention output projection are zero, which equals removing them."
    )


def normalisation_told(config: Config) -> str:
    return (
        "The released encoder is fine-tuned once more from the start, without those heads, and with a penalty that keeps "
        "the attention of [CLS] in the other heads from clinging to single tokens, as it does to a trigger."
    )


def normalisation_done(record: dict) -> str:
    return (
        "The encoder as it was given was fine-tuned anew without those heads, with a penalty on the attention from the "
        "first token."
    )


PRUNING = Stage(
    run="attention_head_pruning:prune_heads",
    record="attention_head_pruning.json",
    product=None,
    reads=(*DEFENCE_FIELDS, "pruning_criterion", "acc_threshold", "acc_drop", "prune_step"),
    title="Head pruning (PURE, step 1)",
    told=pruning_told,
    done=pruning_done,
    after=FINE_TUNING,
)

NORMALISATION = Stage(
    run="attention_normalization:normalise_attention",
    record="attention_normalization.json",
    product="purified_model",
    reads=(*DEFENCE_FIELDS, "penalty_coefficient"),
    title="Attention normalisation (PURE, step 2)",
    told=normalisation_told,
    done=normalisation_done,
    after=PRUNING,
    phases={"attention_normalization": "attention normalisation (PURE)"},
    passes=lambda config: config.epochs,
)

PURE = Defence(paper="Zhao, Xu, Yuan, ICML 2024", last=NORMALISATION)
PRUNE_ONLY = Defence(
    paper="Zhao, Xu, Yuan, ICML 2024",
    last=NORMALISATION,
    changes=lambda config: {"penalty_coefficient": 0.0},
)
NORMALISE_ONLY = Defence(
    paper="Zhao, Xu, Yuan, ICML 2024",
    last=NORMALISATION,
    changes=lambda config: {"pruning_criterion": "none"},
)
