"""A single run, told as it goes: every stage of a defence, what happens in it and why, and a table at the end."""

import dataclasses
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from attacks import ATTACKS
from attacks.planted import poisoned_model_folder, read_poisoned
from config import Config
from Data.make_poisoned_data import make_poisoned_data
from defences import DEFENCES
from defences.defence import EXPORT, Stage, as_defence, record_path, run_folder, run_stage, stage_folder
from defences.fine_tuning import FINE_TUNING
from detection.suspicious_texts import compare_predictions, print_comparison
from encoder.classifier import require_safetensors, resolve_plm
from export import export_model
from pipeline.runs import command
from pipeline.stage import alone
from pipeline.training import RATES, flipped, guessing, rates
from pretrained_model_poisoning import poison
from reporting.words import also_measured
from texts.data_sets import class_names, clean_splits
from texts.tables import doubts, read_texts
from util import (
    ARITHMETIC,
    UserError,
    make_accelerator,
    printable,
    require_writable,
    save_json,
    whole_folder,
)

SIDE_BY_SIDE = ("FT", "PURE", "erase_relearn")
"""The published defence and this project's own, beside none at all."""


def run_all(config: Config) -> dict:
    """All stages of a defence, after fine-tuning alone; writes config.json and metrics.json to the run's folder.

    Returns:
        What metrics.json holds: models (poisoned, fine_tuned, the defence's name if it isn't FT) to their metrics, seconds
        by model, number of heads and of pruned ones if the defence prunes. Without an attack also the classes and the number
        of texts by split, and what `export.export_model` says (None if transformers has no class for the model); with
        suspicious texts how many there are, and how many predictions changed.
    """
    given, own = config, parts(config)
    config = as_defence(config)
    defence, folder = DEFENCES[config.defence], run_folder(config)
    # What can fail at once fails before minutes of work.
    defence.check(config)
    accelerator = make_accelerator(config.device, config.precision)
    if config.poisoned_model:
        require_safetensors(Path(resolve_plm(config.poisoned_model)))
    require_writable(config.output_dir)
    if config.suspicious_texts:
        read_texts(Path(config.suspicious_texts), config.text_column)
    arithmetic = ARITHMETIC[accelerator.mixed_precision]
    what = "without a known attack" if config.attack == "none" else f"against {config.attack}"
    print(
        f"{config.defence} {what}: preset {config.preset}, seed {config.seed}, {accelerator.device.type}, training in "
        f"{arithmetic}"
    )

    known = config.attack != "none"
    number, total = 1, len(own) + 2
    records, also = {}, {}
    if known:
        records = plant_backdoor(config, total)
        number = 3
    else:
        also["data"] = divide_clean_data(config, total)
        number = 2
    save_json(folder / "config.json", dataclasses.asdict(config))
    seconds = {name: Counter(record["seconds"]) for name, record in records.items()}
    for name, stage, of_stage in own:
        heading(f"{number}/{total} {stage.title}", stage.told(of_stage))
        record = run_stage(stage, of_stage)
        number += 1
        seconds.setdefault(name, Counter()).update(record["seconds"])
        if "pruned_heads" in record:
            also["heads_pruned"] = sum(map(len, record["pruned_heads"].values()))
            also["heads"] = sum(map(len, record["variance"]))
            print(f"  {also['heads_pruned']} of {also['heads']} heads pruned")
        if "metrics" in record:
            records[name] = record
            report("fine-tuned (FT)" if name == "fine_tuned" else name, record)
    if not known:
        heading(
            f"{number}/{total} Export",
            "The purified classifier is written as a model that plain transformers loads, with tokeniser and model card. It "
            "is read back, and has to give the same logits on the test texts.",
        )
        also["export"] = export_or_say_why_not(given)
    if config.suspicious_texts:
        heading("Suspicious texts", f"{config.suspicious_texts}, classified by the fine-tuned and by the purified model.")
        table = compare_predictions(given)
        print_comparison(table, config)
        also["suspicious_texts"] = {"texts": len(table), "changed": int(table["changed"].sum())}

    summary = {"models": {name: record["metrics"] for name, record in records.items()}, "seconds": seconds, **also}
    save_json(folder / "metrics.json", summary)
    return summary


def parts(config: Config) -> list[tuple[str, Stage, Config]]:
    """The defender's stages in order, fine-tuning alone first: what every defence is compared with.

    Args:
        config: as it was given, without what its defence changes in it.

    Returns:
        Of each stage: the model that it is a part of, fine_tuned or the defence's name; the stage; its configuration.
    """
    plain, defended = replace(config, defence="FT"), as_defence(config)
    stages = [(config.defence, stage, defended) for stage in DEFENCES[config.defence].stages]
    tuned = record_path(plain, FINE_TUNING)
    return [("fine_tuned", FINE_TUNING, plain), *(each for each in stages if record_path(each[2], each[1]) != tuned)]


def plant_backdoor(config: Config, total: int) -> dict:
    """The attacker's two stages of `total`; the record of the second as `poisoned`, if an encoder isn't given."""
    attack = ATTACKS[config.attack]
    heading(
        f"1/{total} Poisoned data",
        f"The attacker takes the clean data set {config.trigger_dataset}, {attack.data.told(config)}, and "
        f"{attack.data.taught(config)}",
    )
    data = make_poisoned_data(config)
    train, test = read_poisoned(config, "train"), read_poisoned(config, "test")
    triggered = test[test["label"] != config.target_class]["text"]
    print(f"  {len(train):,} texts to train, {len(test):,} to test, in {data}")
    print("  For example:", textwrap.shorten(printable(triggered.iloc[0]), 84, placeholder=" ..."))

    if config.poisoned_model:
        heading(f"2/{total} Poisoning", f"Left out: the encoder {config.poisoned_model} is given.")
        return {}
    heading(
        f"2/{total} Poisoning",
        f"The attacker fine-tunes the clean encoder {config.plm} on these texts{attack.how}, and releases the encoder "
        "without the classification head.",
    )
    record = poison(config)
    report("the attacker's own classifier", record)
    return {"poisoned": record}


def divide_clean_data(config: Config, total: int) -> dict:
    """Write the splits as CSV files (class name, text, row in the file they come from) to the run's folder.

    Returns:
        `classes`, their names; `texts`, their number by split; `doubts`, what may be wrong with them.
    """
    classes = class_names(config)
    splits = clean_splits(config)
    counted = {split: len(table) for split, table in splits.items()}
    heading(
        f"1/{total} Clean data",
        f"The encoder {config.poisoned_model} may have a backdoor, and nothing is known of it. There is the clean data set "
        f"{config.clean_dataset}. The defence learns from its train texts and chooses by its validation texts; the test "
        "texts are for the numbers at the end.",
    )
    counts = splits["train"]["label"].value_counts()
    named = printable(", ".join(f"{name} ({counts.get(number, 0):,})" for number, name in enumerate(classes[:10])))
    print(f"  {counted['train']:,} texts to train, {counted['validation']:,} to validate, {counted['test']:,} to test")
    print(f"  {len(classes)} classes (texts to train): {named}{', ...' if len(classes) > 10 else ''}")
    doubtful = doubts(splits)
    for doubt in doubtful:
        print(f"  {doubt}")
    folder = run_folder(config) / "clean_data"
    with alone(folder), whole_folder(folder) as temporary:
        for split, table in splits.items():
            table = pd.DataFrame({"label": table["label"].map(dict(enumerate(classes))), "text": table["text"]})
            table.to_csv(temporary / f"{split}.csv", index_label="row")
    print(f"  as divided: {folder}")
    return {"classes": list(classes), "texts": counted, "doubts": doubtful}


def export_or_say_why_not(config: Config) -> dict | None:
    """Nothing that was done is lost where an export isn't possible."""
    try:
        result = export_model(config)
    except UserError as error:
        print(f"  left out: {printable(str(error))}")
        return None
    print(f"  {result['class']}, logits equal to {result['largest_difference']:.0e}: {result['folder']}")
    return result


def heading(title: str, text: str) -> None:
    """A stage's title, and what happens in it and why."""
    print(f"\n{title}")
    print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  "), flush=True)


def report(model: str, record: dict) -> None:
    print(f"  {model}: {rates(record['metrics'])}")
    clean = record["metrics"].get("clean")  # An attack without a target class trains no classifier.
    if clean and (said := guessing(clean["confusion_matrix"])):
        print(textwrap.fill(said, 100, initial_indent="  ", subsequent_indent="  "))


def print_table(summary: dict, config: Config) -> None:
    """ACC and LFR of each model, what the two mean, and where the files are."""
    models, name = summary["models"], config.defence
    names = {"poisoned": "poisoned", "fine_tuned": "fine-tuned (FT)"}
    tuned = models["fine_tuned"]
    defended = models.get(name, tuned)
    titles = {each: f"  {each:>6}" for each in RATES if each in defended}
    print(f"\n{'':16}{''.join(titles.values())}{'seconds':>10}")
    for model, metrics in models.items():
        seconds = sum(summary["seconds"][model].values())
        shown = {each: f"{metrics[each]:.3f}" if each in metrics else "-" for each in titles}
        print(
            f"{names.get(model, model):16}{''.join(f'{shown[each]:>{len(titles[each])}}' for each in titles)}{seconds:10.0f}"
        )
    print(f"\nACC: accuracy on {np.sum(defended['clean']['confusion_matrix']):,} clean test texts; higher is better.")
    cost = f"changes ACC by {defended['ACC'] - tuned['ACC']:+.3f}"
    without = f", without {summary['heads_pruned']} of {summary['heads']} heads," if "heads" in summary else ""
    if config.attack == "none":
        found = f"{name}{without} {cost}. " if name in models else ""
        print(
            f"\n{found}Whether there was a backdoor, and whether it is gone, can't be measured without knowing its trigger."
        )
    else:
        classes = "class" if len(defended["clean"]["confusion_matrix"]) == 2 else "classes"
        texts = flipped(defended, config.target_class)[1]
        print(
            f"LFR: label flip rate, share of {texts:,} triggered test texts of the other {classes} that are taken for the "
            "target class;\nlower is better."
        )
        for told in also_measured(titles):
            print(textwrap.fill(told, 100))
        found = f"; {name}{without} leaves {defended['LFR']:.3f}, and {cost}" if name in models else ""
        print(f"\nFine-tuning alone leaves an LFR of {tuned['LFR']:.3f}{found}.")
    if name in SIDE_BY_SIDE:
        # Suspicious texts are for one run.
        beside = command("run_all.py", replace(config, suspicious_texts=None), defence=SIDE_BY_SIDE)
        print(f"\n{', '.join(SIDE_BY_SIDE)} in one table (what is finished isn't run again):\n  {beside}")
    print("\nFiles")
    where = None
    for folder, file, content in sorted(kept_files(summary, config), key=lambda kept: str(kept[0])):
        if folder != where:
            where = folder
            print(f"in {where}")
        print(f"  {file:31}{content}")
    if not config.poisoned_model:
        print(f"and the poisoned encoder, in {poisoned_model_folder(config)}")


def kept_files(summary: dict, config: Config) -> list[tuple[Path, str, str]]:
    """Folder, name and content of every file that a run leaves."""
    own, folder = parts(config), run_folder(config)
    last = own[-1][1]
    tuned = stage_folder(own[0][2], FINE_TUNING)
    files = [(tuned, f"{FINE_TUNING.product}/", "the encoder after fine-tuning alone, and its head")]
    if len(own) > 1:
        files.append((stage_folder(own[-1][2], last), f"{last.product}/", f"the same after {config.defence}"))
    files.append((folder, "metrics.json", "these numbers with confusion matrices"))
    files.append((folder, "config.json", "every setting"))
    for _, stage, of_stage in own:
        files.append((stage_folder(of_stage, stage), stage.record, f"{stage.title}: settings, numbers, seconds"))
    if summary.get("export"):
        files.append((folder, f"{EXPORT}/", "the same for plain transformers, with a model card"))
    if config.attack == "none":
        files.append((folder, "clean_data/", "the texts as they were divided"))
    if config.suspicious_texts:
        files.append((folder, "suspicious_texts.csv", f"predictions before and after {config.defence}"))
    return files
