"""The page of a run: what it shows, what it was made from, and the files beside it."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attacks import ATTACKS
from attacks.planted import read_poisoned
from config import NOT_SETTINGS, Config, preset_config
from defences import DEFENCES
from defences.defence import as_defence, defended_model_folder
from defences.fine_tuning import FINE_TUNING, fine_tuned_model_folder
from defences.shared import accuracy_to_keep, require_same_encoder, require_same_texts
from encoder.classifier import load_tokeniser
from experiments.results_table import settings_text
from pipeline.runs import command, fingerprint_encoder
from pipeline.stage import alone
from pipeline.training import RATES, flipped, guessing
from reporting.analysis import RECORD, analyse, choose_demonstration, has_target
from reporting.run_records import Run, fingerprints_of, read_run
from reporting.words import (
    attention_caption,
    attention_titles,
    clean_variance_caption,
    layers_caption,
    pruned_heads_text,
    run_notes,
    training_caption,
    trajectory_caption,
    variance_caption,
    verdict,
)
from texts.data_sets import clean_test, defender_splits
from util import ARITHMETIC, fingerprint, fingerprint_folder, make_accelerator, whole_folder

if TYPE_CHECKING:
    from reporting.page import Figures

PAGE = "report.html"
TEXTS = 500
"""Clean texts, and triggered texts, of the other classes that the figures are computed on, at most."""
NUMBERING = " Layers and heads are numbered from 0, as in the JSON records."


def report_run(config: Config, sentence: str | None = None, trigger: str | None = None, texts: int = TEXTS) -> Path:
    """Write a finished run's figures and page, and its event files if TensorBoard is installed.

    Args:
        sentence, trigger, texts: as in `report.Report`.

    Returns:
        The page.

    Raises:
        UserError: no such run, not finished, its data changed since, or the sentence doesn't hold the trigger.
    """
    run = read_run(config)
    with alone(run.folder / PAGE):
        return write_report(run, sentence, trigger, texts)


def write_report(run: Run, sentence: str | None, trigger: str | None, texts: int) -> Path:
    """As `report_run`, for the records of a run; nothing is drawn where the page that is there was made from the same."""
    config = run.config
    accelerator = make_accelerator(config.device, config.precision)
    clean, known = clean_test(config), config.attack in ATTACKS
    triggered = read_poisoned(config, "test") if known else None
    models = {"fine_tuned": fine_tuned_model_folder(config), "defended": defended_model_folder(config)}
    fingerprints = {"encoder": fingerprint_encoder(run.encoder)}
    fingerprints |= {name: fingerprint_encoder(str(folder)) for name, folder in models.items()}
    require_same_texts(config, run.fine_tuned)
    require_same_encoder(config, run.fine_tuned, fingerprints["encoder"])
    read = fingerprints_of(run.fine_tuned)
    others = triggered[triggered["label"] != config.target_class] if known else None
    page_path, options = run.folder / PAGE, {"sentence": sentence, "trigger": trigger, "texts": texts}
    source = made_from(run, {**options, "fingerprints": {**fingerprints, **read}})
    if drawn_from(page_path) == (source, files_beside(page_path)):
        return page_path
    from reporting.page import keep_figures, write_page

    tokeniser, another = (load_tokeniser(str(folder)) for folder in models.values())
    shown = choose_demonstration(sentence, trigger, others, config)
    if tokeniser.get_vocab() != another.get_vocab():  # Of a clean encoder: the models don't see the same tokens.
        shown = None
    computed = analyse(
        config=config,
        shown=shown,
        texts=texts,
        clean=clean,
        triggered=triggered,
        encoder=run.encoder,
        models=models,
        fingerprints=fingerprints,
        tokeniser=tokeniser,
        steps=run.pruning["steps"] if run.pruning else [],
        accelerator=accelerator,
        record_path=run.folder / RECORD,
    )
    figures = run_figures(run, computed, shown.described if shown else "", len(defender_splits(config)[1]))
    histories = training_histories(run)
    events = write_events(run.folder / "tensorboard", histories)
    made = [("The run:", command("run_all.py", config)), ("This page:", report_command(config, sentence, trigger, texts))]
    if events:
        made.append(
            ("Training curves in TensorBoard:", shlex.join(["tensorboard", "--logdir", f"{run.folder / 'tensorboard'}"]))
        )
    page = {
        "figures": keep_figures(run.folder / "figures", figures),
        "made_from": f"{source} {files_beside(page_path)}",
        "title": f"{config.defence} {f'against {config.attack}' if known else 'without a known attack'}",
        "about": f"Preset {config.preset}, encoder {config.poisoned_model or config.plm}, "
        + (f"attacker's data {config.trigger_dataset}, " if known else "")
        + f"defender's clean data {config.clean_dataset}, seed {config.seed}.",
        "verdict": [
            verdict(config, run.fine_tuned["metrics"], run.defended["metrics"], run.floor, run.heads()),
            *filter(None, [guessing(run.defended["metrics"]["clean"]["confusion_matrix"])]),
        ],
        "notes": run_notes(run.defended["metrics"], run.floor is not None),
        "tables": [run_table(run)],
        "figures_folder": run.folder / "figures",
        "numbering": NUMBERING,
        "commands": made,
        "settings": [*where_made(run), ("Settings", settings_rows(config))],
    }
    return write_page(page_path, page)


def made_from(run: Run, also: dict) -> str:
    """SHA-256 of all that the page of a run depends on: records, settings, `also`, the code and libraries that draw it."""
    code = sorted(path for path in Path(__file__).resolve().parent.iterdir() if path.is_file())
    content = {
        "run": dataclasses.asdict(run),
        "also": also,
        "code": [fingerprint(path) for path in code],
        "libraries": [importlib.metadata.version(name) for name in ("matplotlib", "seaborn", "jinja2")],
        "tensorboard": importlib.util.find_spec("tensorboard") is not None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def files_beside(page: Path) -> str:
    """SHA-256 of the files that come with a page: figures, curves, and what they were computed from."""
    kept = page.with_name(RECORD)
    parts = [fingerprint_folder(page.with_name(name)) for name in ("figures", "tensorboard")]
    return hashlib.sha256(" ".join([*parts, fingerprint(kept) if kept.exists() else ""]).encode()).hexdigest()


def drawn_from(page: Path) -> tuple[str, str] | None:
    """What a page says that it was made from, and its files; None if there is no page, or it says nothing."""
    try:
        head = page.read_text(encoding="utf-8")[:2000]
    except (OSError, ValueError):
        return None
    found = re.search(r'<meta name="made-from" content="(\w+) (\w+)">', head)
    return found.groups() if found else None


def run_table(run: Run) -> dict:
    """ACC and LFR of each model, with the counts behind them."""
    target = run.config.target_class
    rows = [("fine-tuned (FT)", run.fine_tuned["metrics"], run.fine_tuned)]
    rows.append((run.config.defence, run.defended["metrics"], run.defended))
    if run.poisoned and run.poisoned["metrics"]:
        rows.insert(0, ("poisoned", run.poisoned["metrics"], run.poisoned))
    if run.floor:
        rows.append((f"never poisoned, {run.config.defence}", run.floor, None))
    table = []
    for name, metrics, record in rows:
        confusion = np.array(metrics["clean"]["confusion_matrix"])
        line = {"model": name, "ACC": f"{metrics['ACC']:.3f}", "right": f"{np.trace(confusion):,} of {confusion.sum():,}"}
        if metrics.get("LFR") is not None:
            flips = flipped(metrics, target)
            line |= {name.replace("_", " "): f"{metrics[name]:.3f}" for name in RATES if name in metrics}
            line["flipped"] = f"{flips[0]:,} of {flips[1]:,}"
        table.append(line | {"training (s)": f"{record['seconds']['training']:.0f}" if record else "-"})
    rates = [name.replace("_", " ") for name in RATES]
    columns = [name for name in ("model", *rates, "right", "flipped", "training (s)") if name in table[0]]
    note = "Right: clean texts classified rightly. "
    if "flipped" in columns:
        note += "Flipped: triggered texts of the other classes taken for the target class. "
    note += "Unrounded and with confusion matrices the numbers are in the run's JSON records."
    if rows[0][2] is run.poisoned:
        note = f"Poisoned: the attacker's own classifier, whose head is not released. {note}"
    lines = [[line[name] for name in columns] for line in table]
    return {"title": "Numbers", "id": "numbers", "columns": columns, "rows": lines, "words": [], "note": note}


def training_histories(run: Run) -> dict[str, dict]:
    """Title to history of every fine-tuning of the run."""
    config, last = run.config, DEFENCES[run.config.defence].last
    histories = {f"poisoning ({config.attack})": run.poisoned["training"]} if run.poisoned else {}
    for stage, record in ((FINE_TUNING, run.fine_tuned), (last, run.defended)):
        for name, history in record["training"].items():
            title = stage.phases[name]
            # FTH is that stage again, at another learning rate.
            histories[f"{title}, {config.defence}" if title in histories else title] = history
    return histories


def run_figures(run: Run, computed: dict, marked: str, validation_texts: int) -> "Figures":
    """Every figure that a run has the numbers for.

    Args:
        computed: by `reporting.analysis.analyse`.
        marked: what is marked in the sentence, in words.
    """
    from reporting.run_figures import (
        attention_figure,
        layers_figure,
        smoothing_window,
        training_figure,
        trajectory_figure,
        variance_figure,
    )

    config, pruning, figures = run.config, run.pruning, {}
    effect, attention = computed["trigger_effect"], computed["attention"]
    pruned = {int(layer): heads for layer, heads in pruning["pruned_heads"].items()} if pruning else {}
    crosses = pruned_heads_text(as_defence(config), *(run.heads() or (0, 0)))
    if effect:
        clean, triggered = (np.array(effect[f"variance_{kind}"]) for kind in ("clean", "triggered"))
        figures["head_variance"] = (
            variance_figure(clean, triggered, pruned),
            "What the trigger does to [CLS] attention",
            variance_caption(triggered - clean, pruned, effect["settings"]["texts"], crosses),
        )
    elif pruning:
        figures["head_variance"] = (
            variance_figure(np.array(pruning["variance"]), None, pruned),
            "Variance of [CLS] attention",
            clean_variance_caption(validation_texts, crosses),
        )
    if pruning and pruning["steps"]:
        rates = effect["flip_rates"] if effect else None
        texts = effect["settings"]["texts"]["triggered"] if effect else 0
        settings = pruning["settings"]
        threshold = accuracy_to_keep(pruning["validation_accuracy"], settings["acc_threshold"], settings.get("acc_drop"))
        figures["pruning_trajectory"] = (
            trajectory_figure(pruning["validation_accuracy"], pruning["steps"], threshold, rates, validation_texts, texts),
            "The search for heads to prune",
            trajectory_caption(config.prune_step, threshold, pruning["steps"], validation_texts, rates, texts),
        )
    if attention:
        rows = {name: np.array(values) for name, values in attention["attention"].items()}
        titles = attention_titles(
            config.defence, config.target_class if has_target(config) else None, attention["probabilities"]
        )
        figures["cls_attention"] = (
            attention_figure(
                attention["tokens"], attention["marked"], {titles[name]: values for name, values in rows.items()}
            ),
            "Where [CLS] looks in one sentence",
            attention_caption(attention["settings"]["sentence"], marked, attention["marked"], rows),
        )
    if pruning:
        kept = [len(row) - len(pruned.get(layer, [])) for layer, row in enumerate(pruning["variance"])]
        figures["layer_weights"] = (
            layers_figure(pruning["layer_variance"], run.defended["layer_weight"]),
            "Variances of the layers, and their weights in the penalty",
            layers_caption(kept, validation_texts),
        )
    histories = training_histories(run)
    windows = [smoothing_window(len(next(iter(history["losses"].values())))) for history in histories.values()]
    figures["training_curves"] = (
        training_figure(histories),
        "Training curves",
        training_caption(config.batch_size, windows, bool(pruning)),
    )
    return figures


def write_events(folder: Path, histories: dict[str, dict]) -> bool:
    """Training curves as TensorBoard event files, a sub-folder per fine-tuning; False if TensorBoard isn't installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    with whole_folder(folder) as temporary:
        for title, history in histories.items():
            with SummaryWriter(str(temporary / title.replace("/", "-"))) as writer:
                for name, values in {"loss": np.sum(list(history["losses"].values()), axis=0), **history["losses"]}.items():
                    for step, value in enumerate(values, 1):
                        writer.add_scalar(name, value, step)
    return True


def report_command(config: Config, sentence: str | None, trigger: str | None, texts: int) -> str:
    """The command that makes the page of a run."""
    flags = {"sentence": sentence, "trigger": trigger, "texts": None if texts == TEXTS else texts}
    return command("report.py", config, **{name: value for name, value in flags.items() if value is not None})


def where_made(run: Run) -> list[tuple[str, list[tuple[str, object]]]]:
    """Versions and hardware of the stages that trained; those that were made alike share a table."""
    stages = {"poisoning": run.poisoned, "FT": run.fine_tuned, run.config.defence: run.defended}
    made: dict[tuple, list[str]] = {}
    for name, record in stages.items():
        if record:
            known = record.get("environment") or {"environment": "not in this stage's record"}
            arithmetic = ARITHMETIC.get(record["settings"]["mixed_precision"], "unknown")
            made.setdefault((("training in", arithmetic), *known.items()), []).append(name)
    return [(f"Versions and hardware of {', '.join(names)}", list(rows)) for rows, names in made.items()]


def settings_rows(config: Config) -> list[tuple[str, object]]:
    """Every setting that the result depends on, and what the defence makes of it where that is something else."""
    preset, defended = preset_config(config.preset), as_defence(config)
    rows = []
    for field in dataclasses.fields(Config):
        value, default, own = (
            "not set" if getattr(each, field.name) is None else settings_text(getattr(each, field.name))
            for each in (config, preset, defended)
        )
        if field.name not in NOT_SETTINGS or field.name == "defence":
            said = f"{value} (preset: {default})" if value != default else value
            rows.append((field.name, f"{own} in {config.defence}, {said} in FT" if own != value else said))
    return rows
