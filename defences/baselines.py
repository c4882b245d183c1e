"""The baselines that PURE is compared with, each a way to fine-tune the suspicious encoder on clean data.

    python -m defences.baselines --defence FT                     # reads what pretrained_model_poisoning.py wrote
    python -m defences.baselines --defence MEFT --attack HiddenKiller

FT is plain fine-tuning; its model is also the one whose heads PURE measures, so it is trained once. FTH is FT at a higher
learning rate. MEFT (Liu et al., Findings of ACL 2023) first maximises the entropy of the predictions.
"""

import torch
from torch import nn

from config import Config, parse_config
from pipeline.defender import Phase, load_defender_inputs, new_classifier, train_and_measure
from pipeline.runs import DEFENCE_FIELDS, MEFT_FIELDS, as_defence, baseline_record, stage_settings
from pipeline.training import cross_entropy, rates
from util import UserError, finished_stage, make_accelerator, require_writable, run_script

BASELINES = ("FT", "FTH", "MEFT")


def negative_entropy(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """MEFT's first objective: sum over texts and classes of p log p (Liu et al., 2023)."""
    log_p = model(batch["input_ids"], batch["attention_mask"]).float().log_softmax(-1)  # [batch, class]
    return {"negative_entropy": (log_p.exp() * log_p).sum()}


def fine_tune_baseline(config: Config) -> dict:
    """Train the baseline that `config.defence` names, FT if it names none; write the model and its record.

    Returns:
        What the record holds (`pipeline.defender.train_and_measure`).

    Raises:
        UserError: something to read is missing, a folder is not writable, or the loss is not finite.
    """
    config = as_defence(config)
    meft = config.defence == "MEFT"
    record_path = baseline_record(config)
    model_folder = record_path.with_name("meft_model" if meft else "fine_tuned_model")
    require_writable(config.output_dir)
    accelerator = make_accelerator(config.device, config.precision)
    inputs = load_defender_inputs(config)
    fields = (*DEFENCE_FIELDS, *(MEFT_FIELDS if meft else ()))
    settings = stage_settings(config, fields, accelerator, fingerprints=inputs.fingerprints)
    finished = finished_stage(record_path, settings, model_folder)
    if finished and not config.overwrite:
        return finished
    phases = [Phase("fine_tuning", "fine-tuning on clean data", cross_entropy, config.epochs)]
    if meft:
        phases = [
            Phase("meft_entropy", "maximising entropy", negative_entropy, config.entropy_epochs),
            Phase("meft_fine_tuning", "fine-tuning on clean data", cross_entropy, config.epochs),
        ]
    return train_and_measure(
        new_classifier(config, inputs),
        phases,
        config=config,
        inputs=inputs,
        accelerator=accelerator,
        settings=settings,
        record_path=record_path,
        model_folder=model_folder,
    )


def main() -> None:
    config = parse_config(__doc__)
    if config.defence not in BASELINES:
        raise UserError(
            f"--defence {config.defence} is no baseline; expected {', '.join(BASELINES)} (PURE: python run_all.py)"
        )
    metrics = fine_tune_baseline(config)["metrics"]
    print(f"{config.defence}: {rates(metrics)}")


if __name__ == "__main__":
    run_script(main)
