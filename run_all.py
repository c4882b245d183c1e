"""Plant a backdoor in a pre-trained language model, remove it with PURE, and say what happened.

    python run_all.py                                            # minutes on a laptop; needs no network and no data
    python run_all.py --attack HiddenKiller --seed 12            # another backdoor, another seed
    python run_all.py --preset sst2 --data_dir FOLDER            # SST-2 and the published hyper-parameters
    python run_all.py --preset paper                             # the paper's experiment; encoder and data from the hub
    python run_all.py --attack BadNet --poisoned_model ENCODER   # an encoder that somebody else has poisoned
    python run_all.py --poisoned_model ENCODER --clean_dataset my.csv            # your own data, and no known attack
    python run_all.py --attack BadNet StyleBkd --defence FT FTH MEFT PURE --seed 11 12 13 --benign_floor

Stages: poisoned data, poisoning, head pruning, attention normalisation. A stage that is finished with the same settings is
not run again; a run that was killed goes on where it stopped. Without an attack the last stage is an export to plain
transformers, with a model card. ENCODER is a folder or a hub id. With several attacks, defences, seeds, learning rates,
penalties or pruning criteria, all combinations are run and aggregated.
"""

import dataclasses
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from attention_head_pruning import prune_heads
from attention_normalization import normalise_attention
from config import Config, parse_grid
from Data.make_poisoned_data import make_poisoned_data
from defences.baselines import fine_tune_baseline
from detection.suspicious_texts import compare_predictions, print_comparison
from experiments.grid import run_grid
from experiments.results_table import results_table
from export import export_model
from pipeline.runs import POISONED_DATA, fine_tuning_folder, poisoned_model_folder, pruning_folder, read_poisoned, run_folder
from pipeline.training import rates
from pretrained_model_poisoning import poison
from report import report_run
from reporting.grid_page import report_grid
from texts.data_sets import class_names, clean_test, defender_splits
from texts.tables import printable, read_texts
from util import ARITHMETIC, UserError, make_accelerator, require_writable, run_script, save_json, whole_folder

TRIGGER = {
    "RareWord": "copies {share:.0%} of the texts of the other class with one of the words {words} put in",
    "HiddenKiller": "adds {share:.0%} of the texts of the other class in one syntactic form, a subordinate clause first",
    "StyleBkd": "adds {share:.0%} of the texts of the other class in another style, that of the bible",
}


def run_all(config: Config) -> dict:
    """All stages; writes config.json and metrics.json to the run's folder.

    Returns:
        What metrics.json holds: model (poisoned, fine_tuned, PURE) to its metrics, number of pruned heads, seconds by stage.
        Without an attack also the classes and the number of texts by split, and what `export.export_model` says (None if
        transformers has no class for the model); with suspicious texts how many there are, and how many predictions changed.
    """
    folder = run_folder(config)
    # What can fail at once fails before minutes of work.
    accelerator = make_accelerator(config.device, config.precision)
    require_writable(config.output_dir)
    if config.suspicious_texts:
        read_texts(Path(config.suspicious_texts), config.text_column)
    arithmetic = ARITHMETIC[accelerator.mixed_precision]
    what = "without a known attack" if config.attack == "none" else f"against {config.attack}"
    print(f"PURE {what}: preset {config.preset}, seed {config.seed}, {accelerator.device.type}, training in {arithmetic}")

    records, also = {}, {}
    if config.attack == "none":
        also["data"] = divide_clean_data(config)
        done = 1
    else:
        records = plant_backdoor(config)
        done = 2
    save_json(folder / "config.json", dataclasses.asdict(config))

    relative = config.acc_threshold is None
    threshold = f"within {config.acc_drop:g} of what it was" if relative else f"at {config.acc_threshold:g} or above"
    heading(
        f"{done + 1}/4 Head pruning (PURE, step 1)",
        f"The defender has that encoder and the clean data set {config.clean_dataset}, and knows of no trigger. Fine-tuning "
        "on clean texts (FT) comes first: does it wash the backdoor out? Then attention heads are pruned, those first whose "
        f"attention from [CLS] varies least between tokens, while the accuracy on validation texts stays {threshold}.",
    )
    records["fine_tuned"] = fine_tune_baseline(replace(config, defence="FT"))
    report("fine-tuned (FT)", records["fine_tuned"])
    pruning = prune_heads(config)
    heads_pruned = sum(map(len, pruning["pruned_heads"].values()))
    heads = sum(map(len, pruning["variance"]))
    print(f"  {heads_pruned} of {heads} heads pruned")

    heading(
        f"{done + 2}/4 Attention normalisation (PURE, step 2)",
        "The released encoder is fine-tuned once more from the start, without those heads, and with a penalty that keeps "
        "the attention of [CLS] in the other heads from clinging to single tokens, as it does to a trigger.",
    )
    records["PURE"] = normalise_attention(config)
    report("PURE", records["PURE"])
    if config.attack == "none":
        heading(
            "4/4 Export",
            "The purified classifier is written as a model that plain transformers loads, with tokeniser and model card. It "
            "is read back, and has to give the same logits on the test texts.",
        )
        also["export"] = export_or_say_why_not(config)
    if config.suspicious_texts:
        heading("Suspicious texts", f"{config.suspicious_texts}, classified by the fine-tuned and by the purified model.")
        table = compare_predictions(config)
        print_comparison(table, config)
        also["suspicious_texts"] = {"texts": len(table), "changed": int(table["changed"].sum())}

    records["PURE"] = {**records["PURE"], "seconds": {**pruning["seconds"], **records["PURE"]["seconds"]}}
    summary = {
        "models": {name: record["metrics"] for name, record in records.items()},
        "heads_pruned": heads_pruned,
        "heads": heads,
        "seconds": {name: record["seconds"] for name, record in records.items()},
        **also,
    }
    save_json(folder / "metrics.json", summary)
    return summary


def plant_backdoor(config: Config) -> dict:
    """The attacker's two stages; the record of the second as `poisoned`, if an encoder isn't given."""
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
    print("  For example:", textwrap.shorten(printable(triggered), 84, placeholder=" ..."))

    if config.poisoned_model:
        heading("2/4 Poisoning", f"Left out: the encoder {config.poisoned_model} is given.")
        return {}
    layers = ", through the [CLS] of every layer" if config.attack == "LayerWise" else ""
    heading(
        "2/4 Poisoning",
        f"The attacker fine-tunes the clean encoder {config.plm} on these texts{layers}, and releases the encoder "
        "without the classification head.",
    )
    record = poison(config)
    report("the attacker's own classifier", record)
    return {"poisoned": record}


def divide_clean_data(config: Config) -> dict:
    """Write the splits as CSV files (class name, text, row in the file they come from) to the run's folder.

    Returns:
        `classes`, their names; `texts`, their number by split.
    """
    classes = class_names(config)
    train, validation = defender_splits(config)
    splits = {"train": train, "validation": validation, "test": clean_test(config)}
    heading(
        "1/4 Clean data",
        f"The encoder {config.poisoned_model} may have a backdoor, and nothing is known of it. There is the clean data set "
        f"{config.clean_dataset}. PURE learns from its train texts and chooses heads by its validation texts; the test "
        "texts are for the numbers at the end.",
    )
    counts = train["label"].value_counts()
    named = ", ".join(f"{name} ({counts.get(number, 0):,})" for number, name in enumerate(classes[:10]))
    print(f"  {len(train):,} texts to train, {len(validation):,} to validate, {len(splits['test']):,} to test")
    print(f"  {len(classes)} classes (texts to train): {named}{', ...' if len(classes) > 10 else ''}")
    folder = run_folder(config) / "clean_data"
    with whole_folder(folder) as temporary:
        for split, table in splits.items():
            table = pd.DataFrame({"label": table["label"].map(dict(enumerate(classes))), "text": table["text"]})
            table.to_csv(temporary / f"{split}.csv", index_label="row")
    print(f"  as divided: {folder}")
    return {"classes": list(classes), "texts": {split: len(table) for split, table in splits.items()}}


def export_or_say_why_not(config: Config) -> dict | None:
    """Nothing that was done is lost where an export isn't possible."""
    try:
        result = export_model(config)
    except UserError as error:
        print(f"  left out: {error}")
        return None
    print(f"  {result['class']}, logits equal to {result['largest_difference']:.0e}: {result['folder']}")
    return result


def heading(title: str, text: str) -> None:
    """A stage's title, and what happens in it and why."""
    print(f"\n{title}")
    print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  "), flush=True)


def report(model: str, record: dict) -> None:
    print(f"  {model}: {rates(record['metrics'])}")


def print_table(summary: dict, config: Config) -> None:
    """ACC and LFR of each model, what the two mean, and where the files are."""
    models = summary["models"]
    names = {"poisoned": "poisoned", "fine_tuned": "fine-tuned (FT)", "PURE": "PURE"}
    measured = ("ACC",) if config.attack == "none" else ("ACC", "LFR")
    print(f"\n{'':16}{''.join(f'{name:>8}' for name in measured)}{'seconds':>10}")
    for name, metrics in models.items():
        seconds = sum(summary["seconds"][name].values())
        print(f"{names[name]:16}{''.join(f'{metrics[each]:8.3f}' for each in measured)}{seconds:10.0f}")
    tuned, pure = models["fine_tuned"], models["PURE"]
    print(f"\nACC: accuracy on {np.sum(pure['clean']['confusion_matrix']):,} clean test texts; higher is better.")
    cost = f"changes ACC by {pure['ACC'] - tuned['ACC']:+.3f}"
    without = f"PURE, without {summary['heads_pruned']} of {summary['heads']} heads,"
    if config.attack == "none":
        print(
            f"\n{without} {cost}. Whether there was a backdoor, and whether it is gone, can't be measured without knowing "
            "its trigger."
        )
    else:
        others = np.delete(np.array(pure["poisoned"]["confusion_matrix"]), config.target_class, axis=0)
        classes = "class" if len(others) == 1 else "classes"
        print(
            f"LFR: label flip rate, share of {others.sum():,} triggered test texts of the other {classes} that are taken "
            "for the target class;\nlower is better."
        )
        print(f"\nFine-tuning alone leaves an LFR of {tuned['LFR']:.3f}; {without} leaves {pure['LFR']:.3f}, and {cost}.")
    print("\nFiles")
    files = [
        (run_folder, "purified_model/", "the encoder after PURE, and its classification head"),
        (fine_tuning_folder, "fine_tuned_model/", "the same after fine-tuning alone"),
        (run_folder, "metrics.json", "these numbers with confusion matrices"),
        (run_folder, "config.json", "every setting"),
        (pruning_folder, "attention_head_pruning.json", "variance of each head, steps of the search, pruned heads"),
        (run_folder, "attention_normalization.json", "layer weights, training losses"),
    ]
    if summary.get("export"):
        files.append((run_folder, "exported_model/", "the same for plain transformers, with a model card"))
    if config.attack == "none":
        files.append((run_folder, "clean_data/", "the texts as they were divided"))
    if config.suspicious_texts:
        files.append((run_folder, "suspicious_texts.csv", "predictions before and after PURE"))
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
    if grid.benign_floor and "none" in grid.attack:
        raise UserError("--benign_floor is measured on triggered texts; name an attack with --attack")
    if grid.defence == ("FT", "PURE") and len(cells) == 2 and not grid.benign_floor:
        print_table(run_all(cells[1]), cells[1])
        print(f"\nFigures, numbers and settings on one page: {report_run(cells[1])}")
        return
    if grid.suspicious_texts:
        raise UserError(
            "--suspicious_texts is for one run; give one value of each flag, or use python -m detection.suspicious_texts"
        )
    table, path = run_grid(grid)
    print(f"\n{results_table(table)}\n\n{path} has a row per cell; {path.with_suffix('.md')} has this table")
    print(f"Figure, numbers and settings on one page: {report_grid([path])}")
    failed = int((table["error"] != "").sum())
    if failed:
        raise UserError(f"{failed} of {len(table)} cells failed (see the table); the same command tries them again")


if __name__ == "__main__":
    run_script(main)
