"""Plant a backdoor in a pre-trained language model, remove it with PURE, and say what happened.

    python run_all.py                                            # minutes on a laptop; needs no network and no data
    python run_all.py --attack HiddenKiller --seed 12            # another backdoor, another seed
    python run_all.py --preset sst2 --data_dir FOLDER            # SST-2 and the published hyper-parameters
    python run_all.py --preset paper                             # the paper's experiment; encoder and data from the hub
    python run_all.py --poisoned_model FOLDER_OR_HUB_ID          # an encoder that somebody else has poisoned
    python run_all.py --attack BadNet StyleBkd --defence FT FTH MEFT PURE --seed 11 12 13 --benign_floor

Stages: poisoned data, poisoning, head pruning, attention normalisation. A stage that is finished with the same settings is
not run again; a run that was killed goes on where it stopped. With several attacks, defences, seeds, learning rates,
penalties or pruning criteria, all combinations are run and aggregated.
"""

import dataclasses
import textwrap
from dataclasses import replace

import numpy as np

from attention_head_pruning import prune_heads
from attention_normalization import normalise_attention
from config import Config, parse_grid
from Data.make_poisoned_data import make_poisoned_data
from defence_baselines import fine_tune_baseline
from grid import run_grid
from pretrained_model_poisoning import poison
from report import report_grid, report_run
from results_table import results_table
from runs import POISONED_DATA, fine_tuning_folder, poisoned_model_folder, pruning_folder, read_poisoned, run_folder
from util import UserError, make_accelerator, require_writable, run_script, save_json

TRIGGER = {
    "RareWord": "copies {share:.0%} of the texts of the other class with one of the words {words} put in",
    "HiddenKiller": "adds {share:.0%} of the texts of the other class in one syntactic form, a subordinate clause first",
    "StyleBkd": "adds {share:.0%} of the texts of the other class in another style, that of the bible",
}


def run_all(config: Config) -> dict:
    """All stages; writes config.json and metrics.json to the run's folder.

    Returns:
        What metrics.json holds: model (poisoned, fine_tuned, PURE) to its metrics, number of pruned heads, seconds by stage.
    """
    folder = run_folder(config)
    # What can fail at once fails before minutes of work.
    accelerator = make_accelerator(config.device, config.precision)
    require_writable(config.output_dir)
    arithmetic = {"bf16": "bf16 autocast", "no": "fp32"}[accelerator.mixed_precision]
    print(
        f"PURE against {config.attack}: preset {config.preset}, seed {config.seed}, {accelerator.device.type}, "
        f"training in {arithmetic}"
    )

    kind, (share, *_) = POISONED_DATA[config.attack]
    trigger = TRIGGER[kind].format(share=getattr(config, share), words=", ".join(config.triggers))
    heading(
        "1/4 Poisoned data",
        f"The attacker takes the clean data set {config.trigger_dataset}, {trigger}, and labels those as the target class, "
        f"{config.target_class}. A classifier learns from them that such a trigger means class {config.target_class}, "
        "whatever the text says.",
    )
    data = make_poisoned_data(config)
    train, test = read_poisoned(config, "train"), read_poisoned(config, "test")
    triggered = test[test["label"] != config.target_class]["text"].iloc[0]
    print(f"  {len(train):,} texts to train, {len(test):,} to test, in {data}")
    print("  For example:", textwrap.shorten(triggered, 84, placeholder=" ..."))

    records = {}
    if config.poisoned_model:
        heading("2/4 Poisoning", f"Left out: the encoder {config.poisoned_model} is given.")
    else:
        layers = ", through the [CLS] of every layer" if config.attack == "LayerWise" else ""
        heading(
            "2/4 Poisoning",
            f"The attacker fine-tunes the clean encoder {config.plm} on these texts{layers}, and releases the encoder "
            "without the classification head.",
        )
        records["poisoned"] = poison(config)
        report("the attacker's own classifier", records["poisoned"])
    save_json(folder / "config.json", dataclasses.asdict(config))

    heading(
        "3/4 Head pruning (PURE, step 1)",
        f"The defender has that encoder and the clean data set {config.clean_dataset}, and knows of no trigger. Fine-tuning "
        "on clean texts (FT) comes first: does it wash the backdoor out? Then attention heads are pruned, those first whose "
        "attention from [CLS] varies least between tokens, while the accuracy on validation texts stays at "
        f"{config.acc_threshold:g} or above.",
    )
    records["fine_tuned"] = fine_tune_baseline(replace(config, defence="FT"))
    report("fine-tuned (FT)", records["fine_tuned"])
    pruning = prune_heads(config)
    heads_pruned = sum(map(len, pruning["pruned_heads"].values()))
    heads = sum(map(len, pruning["variance"]))
    print(f"  {heads_pruned} of {heads} heads pruned")

    heading(
        "4/4 Attention normalisation (PURE, step 2)",
        "The released encoder is fine-tuned once more from the start, without those heads, and with a penalty that keeps "
        "the attention of [CLS] in the other heads from clinging to single tokens, as it does to a trigger.",
    )
    records["PURE"] = normalise_attention(config)
    report("PURE", records["PURE"])

    records["PURE"] = {**records["PURE"], "seconds": {**pruning["seconds"], **records["PURE"]["seconds"]}}
    summary = {
        "models": {name: record["metrics"] for name, record in records.items()},
        "heads_pruned": heads_pruned,
        "heads": heads,
        "seconds": {name: record["seconds"] for name, record in records.items()},
    }
    save_json(folder / "metrics.json", summary)
    return summary


def heading(title: str, text: str) -> None:
    """A stage's title, and what happens in it and why."""
    print(f"\n{title}")
    print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  "), flush=True)


def report(model: str, record: dict) -> None:
    print(f"  {model}: ACC {record['metrics']['ACC']:.3f}, LFR {record['metrics']['LFR']:.3f}")


def print_table(summary: dict, config: Config) -> None:
    """ACC and LFR of each model, what the two mean, and where the files are."""
    models = summary["models"]
    names = {"poisoned": "poisoned", "fine_tuned": "fine-tuned (FT)", "PURE": "PURE"}
    print(f"\n{'':16}{'ACC':>8}{'LFR':>8}{'seconds':>10}")
    for name, metrics in models.items():
        seconds = sum(summary["seconds"][name].values())
        print(f"{names[name]:16}{metrics['ACC']:8.3f}{metrics['LFR']:8.3f}{seconds:10.0f}")
    clean, poisoned = (np.array(models["PURE"][kind]["confusion_matrix"]) for kind in ("clean", "poisoned"))
    others = np.delete(poisoned, config.target_class, axis=0)
    tuned, pure = models["fine_tuned"], models["PURE"]
    print(f"\nACC: accuracy on {clean.sum():,} clean test texts; higher is better.")
    print(
        f"LFR: label flip rate, share of {others.sum():,} triggered test texts of the other class that are taken for the "
        "target class;\nlower is better."
    )
    print(
        f"\nFine-tuning alone leaves an LFR of {tuned['LFR']:.3f}; PURE, without {summary['heads_pruned']} of "
        f"{summary['heads']} heads, leaves {pure['LFR']:.3f}, and changes ACC by {pure['ACC'] - tuned['ACC']:+.3f}."
    )
    print("\nFiles")
    files = (
        (run_folder, "purified_model/", "the encoder after PURE, and its classification head"),
        (fine_tuning_folder, "fine_tuned_model/", "the same after fine-tuning alone"),
        (run_folder, "metrics.json", "these numbers with confusion matrices"),
        (run_folder, "config.json", "every setting"),
        (pruning_folder, "attention_head_pruning.json", "variance of each head, steps of the search, pruned heads"),
        (run_folder, "attention_normalization.json", "layer weights, training losses"),
    )
    where = None
    for folder, name, content in sorted(files, key=lambda file: str(file[0](config))):
        if folder(config) != where:
            where = folder(config)
            print(f"in {where}")
        print(f"  {name:31}{content}")
    if not config.poisoned_model:
        print(f"and the poisoned encoder, in {poisoned_model_folder(config)}")


def main() -> None:
    grid = parse_grid(__doc__)
    cells = grid.cells()
    if grid.defence == ("FT", "PURE") and len(cells) == 2 and not grid.benign_floor:
        print_table(run_all(cells[1]), cells[1])
        print(f"\nFigures, numbers and settings on one page: {report_run(cells[1])}")
        return
    table, path = run_grid(grid)
    print(f"\n{results_table(table)}\n\n{path} has a row per cell; {path.with_suffix('.md')} has this table")
    print(f"Figure, numbers and settings on one page: {report_grid([path])}")
    failed = int((table["error"] != "").sum())
    if failed:
        raise UserError(f"{failed} of {len(table)} cells failed (see the table); the same command tries them again")


if __name__ == "__main__":
    run_script(main)
