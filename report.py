"""One page that tells what a run or a grid found: verdict, numbers, figures, settings, and the commands that made it.

    python report.py                                             # the run that run_all.py made with the same flags
    python report.py --preset sst2 --attack HiddenKiller
    python report.py --sentence "a dull cf film" --trigger cf    # another sentence in the attention figure
    python report.py --csv results/grid.csv                      # a grid; several CSV files are put together

`run_all.py` makes it at its end. The page is one file, which loads nothing; the figures are beside it as PNG and PDF, and
the training curves as TensorBoard event files if TensorBoard is installed. Nothing is trained here. What needs the
attacker's triggers is computed for the report alone, and kept for the next one (`reporting/analysis.py`).
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attacks import ATTACKS
from attacks.planted import RECORD as POISONING_RECORD
from attacks.planted import measured_tables, poisoned_model_folder, read_poisoned
from config import NOT_SETTINGS, PRESETS, Config, check_ranges, parse, plain_config, preset_config
from defences import DEFENCES
from defences.defence import as_defence, defended_model_folder, product_path, record_path, run_folder
from defences.fine_tuning import FINE_TUNING
from defences.pure import PRUNING
from defences.shared import accuracy_to_keep
from encoder.classifier import load_tokeniser, resolve_plm
from experiments.grid import benign, floor_path, steps
from experiments.results_table import settings_text
from pipeline.runs import command, fingerprint_encoder
from pipeline.stage import alone
from pipeline.training import RATES, flipped
from reporting.analysis import RECORD, analyse, choose_demonstration, has_target
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
from texts.data_sets import clean_test, defender_splits, fingerprint_texts
from util import (
    ARITHMETIC,
    UserError,
    fingerprint,
    fingerprint_folder,
    load_json,
    make_accelerator,
    run_script,
    whole_folder,
)

if TYPE_CHECKING:
    from reporting.page import Figures

PAGE = "report.html"
NUMBERING = " Layers and heads are numbered from 0, as in the JSON records."


@dataclass(frozen=True)
class Report(Config):
    """Which run, as for run_all.py, and what to show of it."""

    sentence: str | None = None
    """Sentence of the attention figure. Default: a short one with the attack's trigger."""
    trigger: str | None = None
    """Word or phrase of that sentence to mark as the trigger. Default: what the attack plants."""
    texts: int = 500
    """Clean texts, and triggered texts, of the other classes that the figures are computed on, at most."""
    csv: tuple[str, ...] = ()
    """CSV files of grids: the report is of them, and not of a run."""


@dataclass(frozen=True)
class Run:
    """The records of a finished run."""

    config: Config
    folder: Path
    encoder: str
    poisoned: dict | None
    """None: the encoder is somebody else's."""
    fine_tuned: dict
    pruning: dict | None
    """None: the defence prunes no heads."""
    defended: dict
    floor: dict | None
    """Metrics of the never-poisoned encoder after the same defence; None: not measured."""

    def heads(self) -> tuple[int, int] | None:
        """How many heads were pruned, and of how many; None: the defence prunes none."""
        if self.pruning is None:
            return None
        return sum(map(len, self.pruning["pruned_heads"].values())), sum(map(len, self.pruning["variance"]))


def read_run(config: Config) -> Run:
    """The records of the run that a configuration names.

    Raises:
        UserError: there is no such run, it is not finished, its stages don't fit together, or it is of FT alone.
    """
    stages = DEFENCES[config.defence].stages
    if config.defence == "FT":
        raise UserError(
            "a report shows a defence beside fine-tuning alone, and --defence FT is that; expected another defence "
            "(several: --csv results/grid.csv)"
        )
    settings = as_defence(config)
    folder = run_folder(settings)
    encoder = resolve_plm(config.poisoned_model) if config.poisoned_model else str(poisoned_model_folder(config))
    paths = {
        "fine_tuned": record_path(replace(config, defence="FT"), FINE_TUNING),
        "defended": record_path(settings, stages[-1]),
    }
    if PRUNING in stages:
        paths["pruning"] = record_path(settings, PRUNING)
    if not config.poisoned_model:
        paths = {"poisoned": Path(encoder) / POISONING_RECORD, **paths}
    records = {name: load_json(path) for name, path in paths.items()}
    lacking = [path for name, path in paths.items() if not records[name]]
    make = command("run_all.py", config)
    if len(lacking) == len(paths):
        raise UserError(f"no run in {folder}; make it with: {make} (or name another with the flags that made it)")
    if lacking:
        raise UserError(f"the run in {folder} is not finished: no readable {lacking[0]}; go on with: {make}")
    texts = [fingerprints_of(records[name]) for name in ("fine_tuned", "pruning", "defended") if name in records]
    encoders = [each.pop("encoder") for each in texts]
    same = all(each == texts[0] for each in texts)
    if "clean_encoder" not in DEFENCES[config.defence].reads():  # Which one may train in the given encoder's place.
        same = same and len(set(encoders)) == 1
    if "pruning" in records:
        same = same and records["defended"]["settings"]["pruned_heads"] == records["pruning"]["pruned_heads"]
    if not same:
        raise UserError(f"the stages of the run in {folder} are of different encoders, texts or heads; mend it with: {make}")
    records = {"poisoned": None, "pruning": None, **records}
    return Run(config, folder, encoder, **records, floor=read_floor(config, records["defended"]))


def fingerprints_of(record: dict) -> dict[str, str]:
    """Of the encoder and the texts that a stage has read."""
    return dict(record["settings"]["fingerprints"])


def read_floor(config: Config, defended: dict) -> dict | None:
    """Metrics of the never-poisoned encoder after the same defence on the same triggered texts, if a grid measured them."""
    if config.attack not in ATTACKS or config.poisoned_model == config.plm:
        return None
    path, made = floor_path(config), steps(benign(config))[-1].record
    record, stage = load_json(path), load_json(made)
    if not record or not stage:
        return None
    expected, found = defended["settings"], record["settings"]
    # The never-poisoned model is another in its encoder, and in what earlier stages found in that, and in nothing else.
    alike = (*DEFENCES[config.defence].last.reads, "mixed_precision", "method", "classes")
    same = all(expected.get(name) == stage["settings"].get(name) for name in alike)
    # Its own record may be of the triggered texts of another attack: then what was measured on this one's has a record too.
    texts = {name: value for name, value in fingerprints_of(defended).items() if name != "encoder"}
    own = {name for name in texts if path == made or not name.startswith("poisoned_")}
    same = same and all(fingerprints_of(stage).get(name) == texts[name] for name in own)
    if path != made:
        alike = {name: expected[name] for name in ("target_class", "max_len", "mixed_precision")}
        alike |= {name: value for name, value in texts.items() if name == "clean_test" or name.startswith("poisoned_")}
        alike["model"] = fingerprint_folder(defended_model_folder(benign(config)))
        same = same and all(found.get(name) == value for name, value in alike.items())
    return record["metrics"] if same else None


def report_run(config: Config, sentence: str | None = None, trigger: str | None = None, texts: int = 500) -> Path:
    """Write a finished run's figures and page, and its event files if TensorBoard is installed.

    Args:
        sentence, trigger, texts: as in `Report`.

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
    plain = replace(config, defence="FT")
    models = {"fine_tuned": product_path(plain, FINE_TUNING), "defended": defended_model_folder(config)}
    fingerprints = {"encoder": fingerprint_encoder(run.encoder)}
    fingerprints |= {name: fingerprint_encoder(str(folder)) for name, folder in models.items()}
    read = {name: fingerprint_texts(table) for name, table in measured_tables(config).items()}
    read["encoder"] = fingerprints["encoder"]
    for name, found in read.items():
        if fingerprints_of(run.fine_tuned).get(name) != found:
            raise UserError(
                f"{name} has changed since the run in {run.folder}; run it again with: {command('run_all.py', config)}"
            )
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
        "verdict": [verdict(config, run.fine_tuned["metrics"], run.defended["metrics"], run.floor, run.heads())],
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
    here = Path(__file__).resolve()
    code = [here, *sorted(path for path in (here.parent / "reporting").iterdir() if path.is_file())]
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
    from reporting.figures import (
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
    flags = {"sentence": sentence, "trigger": trigger, "texts": None if texts == Report.texts else texts}
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
    """Every setting that the result depends on."""
    preset = preset_config(config.preset)
    rows = []
    for field in dataclasses.fields(Config):
        value, default = (
            "not set" if getattr(each, field.name) is None else settings_text(getattr(each, field.name))
            for each in (config, preset)
        )
        if field.name not in NOT_SETTINGS or field.name == "defence":
            rows.append((field.name, f"{value} (preset: {default})" if value != default else value))
    return rows


def preset_report(preset: str) -> Report:
    """The options that a preset stands for."""
    return Report(**{"preset": preset, **PRESETS[preset]})


def main() -> None:
    options = parse(Report, preset_report, __doc__, ATTACKS, DEFENCES, None)
    if options.texts < 1:
        raise UserError(f"--texts {options.texts} is out of range; expected 1 or more")
    if options.csv:
        from reporting.grid_page import report_grid

        print(f"report: {report_grid([Path(name) for name in options.csv])}")
        return
    config = plain_config(options)
    check_ranges(config)
    print(f"report: {report_run(config, options.sentence, options.trigger, options.texts)}")


if __name__ == "__main__":
    run_script(main)
