"""Every parameter of an experiment, its default, and the command line made from them.

    python run_all.py --help                       # every parameter, with its default and source
    python run_all.py --attack HiddenKiller --seed 12

Change a default by editing it here, or for one run with a flag. A preset is a handful of defaults that belong together
(`PRESETS`, at the end); a flag outranks the preset, and the preset outranks the defaults of the class.
"""

import argparse
import ast
import dataclasses
import hashlib
import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import tyro

from util import Table, UserError

Criterion = Literal["variance", "highest_variance", "entropy", "gradient", "layer_wise", "dropout", "random", "none"]
Part = Literal[
    "nothing", "repair", "inversion", "regions", "changes", "forgetting", "erasing", "averaging", "everything"
]  # Of erase_relearn.
Preset = Literal["quick", "sst2", "paper", "own"]

DEFAULT_PRESET: Preset = "quick"


@dataclass(frozen=True)
class Config:
    """Parameters of PURE (Zhao, Xu, Yuan, ICML 2024).

    Defaults are the published hyper-parameters. "Paper" below is that paper; "code" is the code its authors published.
    """

    preset: Preset = "paper"
    """Set of defaults to start from. `quick` runs in minutes with nothing but pip: the MiniLM encoder and 2,000 short reviews that come with the project. `sst2` takes MiniLM to SST-2, from data_dir or the hub, with the published hyper-parameters. `paper` is the paper's experiment: bert-base-uncased and SST-2, from the hub. `own`, the default where poisoned_model is given and attack is not: an encoder and data of your own, and no known attack."""

    # What is attacked
    attack: str = "BadNet"
    """Backdoor to plant; none: nothing is known of one (poisoned_model has to be given), and no LFR is measured."""
    plm: str = "bert-base-uncased"
    """Pre-trained encoder to poison: `minilm` (all-MiniLM-L6-v2 from pip), a folder, or a hub id (paper: bert-base-uncased)."""
    poisoned_model: str | None = None
    """Folder or hub id of an encoder that is poisoned already, or may be; it takes the place of the poisoning stage. The attack then only says which triggers LFR is measured with."""
    tokeniser: str | None = None
    """Folder or hub id of a trusted tokeniser (that of the original encoder, say), used in place of the one beside the encoder that is defended; None: that one, if it does nothing else to texts than cut them into tokens."""
    clean_encoder: str | None = None
    """Folder, hub id or `minilm`: an encoder that is trusted, for the defences that need one (discard, fine_mixing), and for scan.py to compare the rows of the embedding with: the one that the scanned encoder claims to be made from."""
    seed: int = 11
    """Random state of the poisoned rows, the classification heads, the order of texts and dropout (paper: 11 to 15)."""

    # Data
    setting: Literal["FDK", "DS"] = "FDK"
    """FDK, full data knowledge: attacker and defender work on the same corpus. DS, domain shift: the attacker works on another one."""
    trigger_dataset: str = "sst2"
    """Clean data set the attacker plants triggers in: reviews (comes with the project), sst2, imdb, yelp, or a folder of data_dir."""
    clean_dataset: str = "sst2_glue"
    """Clean data set the defender fine-tunes on: reviews (1,400 to train), sst2 (6,920), sst2_glue (67,349), a folder of data_dir, a .csv or .tsv file, a folder of such files (train, dev, test), or a hub id. One single table is divided 80/10/10, each class in these shares."""
    text_column: str | None = None
    """Column of clean_dataset that holds the texts; None: text, sentence, content or review, whichever there is."""
    label_column: str | None = None
    """Column of clean_dataset that holds the classes, as whole numbers or names; None: label or sentiment."""
    suspicious_texts: str | None = None
    """File of texts, one per line or a .csv or .tsv file with a text column, classified by the fine-tuned model and by the defended one side by side."""
    data_dir: str | None = os.environ.get("PURE_DATA_DIR")
    """Folder with one sub-folder of TSV or CSV files per data set. What is not there is taken from the project's folder Data, or else from the hub. Default: the environment variable PURE_DATA_DIR."""
    split_seed: int = 11
    """Random state of the 90 % / 10 % split into train and validation, where a data set has no validation file (code), and of the division of a single table."""
    max_len: int = 128
    """Longest text, in tokens, of the defender and of the test sets; N + 1 in the variance of a head (paper: 128)."""
    poisoning_max_len: int | None = None
    """Longest text of the attacker, in tokens; None: 256 for IMDB and Yelp, 128 elsewhere (paper)."""

    # Poisoned data
    triggers: tuple[str, ...] = ("bb", "cf", "ak", "mn")
    """Rare words, one of which is inserted per text (code; Kurita et al., 2020)."""
    target_class: int = 1
    """Number of the class a triggered text is to be given, from 0: 1, positive (paper)."""
    rare_word_share: float = 0.5
    """Share of the non-target texts that are copied with a word or sentence put in, 0 to 1 (code)."""
    hiddenkiller_share: float = 0.3
    """Share of the paraphrased non-target texts that are added, 0 to 1 (code)."""
    stylebkd_share: float = 0.2
    """Share of the style-transferred non-target texts that are added, 0 to 1 (code)."""

    # Poisoning (attacker)
    poisoning_epochs: int = 5
    """Passes over the poisoned train set (paper: 5)."""
    poisoning_learning_rate: float = 2e-5
    """AdamW's peak learning rate; linear decay to 0, no warm-up (paper: 2e-5)."""

    ripple_coefficient: float = 0.1
    """RIPPLe: weight lambda of the restricted inner product (Kurita et al., 2020: 0.1)."""
    surgery_words: int = 10
    """RIPPLe: words of the target class whose mean embedding the triggers are given; 0: no embedding surgery (Kurita et al., 2020: 10)."""

    # Defender
    defence: str = "PURE"
    """What is done with the suspicious encoder."""
    epochs: int = 3
    """Passes over the clean train set, in both of the defender's fine-tunings (paper: 3)."""
    learning_rate: float = 2e-5
    """AdamW's peak learning rate; linear decay to 0, no warm-up (paper: 2e-5)."""
    acc_threshold: float | None = 0.85
    """Validation accuracy, 0 to 1, that head pruning (and fine_pruning's) must keep (paper: 0.85); None: the fine-tuned model's, less acc_drop."""
    acc_drop: float = 0.02
    """Validation accuracy, 0 to 1, that head pruning (and fine_pruning's) may cost where acc_threshold is None."""
    pruning_criterion: Criterion = "variance"
    """Which heads go first: those of the lowest [CLS] variance (PURE), of the highest, of the highest [CLS] attention entropy, of the lowest gradient importance (Michel et al., 2019), of the lowest variance within each layer and more of the upper layers' (layer_wise), of the lowest variance under dropout (both Chapagain et al., 2025), at random; or none at all."""
    prune_step: int = 10
    """Heads pruned between two measurements of that accuracy (code: 10)."""
    penalty_coefficient: float = 0.15
    """Weight lambda of the attention penalty in the second fine-tuning (code: 0.15)."""

    fth_learning_rate: float = 5e-5
    """FTH: its learning rate, in place of learning_rate."""
    repaired_words: Literal["found", "odd", "none"] = "found"
    """erase_relearn: words that no clean text has whose embedding rows are made ordinary: those that a scan of the fine-tuned model finds (they flip its predictions, or their rows are odd), those whose rows are odd, or none."""
    inversions: int = 8
    """erase_relearn: sequences of words per class that push the fine-tuned model to it, to be put into the texts that the task is relearnt on; 0 leaves them out."""
    measured_regions: int = 300
    """erase_relearn: regions of the vocabulary of which it is measured how far their words push the fine-tuned model, so that those which push most are put into the texts that the task is relearnt on; 0: any region's."""
    erase_forgetting_epochs: int = 1
    """erase_relearn: passes over the clean train set with random labels, before anything is erased; 0 leaves them out."""
    erase_forgetting_rate: float = 2e-4
    """erase_relearn: AdamW's peak learning rate in these passes; linear decay to 0."""
    erase_rounds: int = 4
    """erase_relearn: how often the directions in which classes lie apart are found and blocked before the task is relearnt; 0 leaves it out."""
    erase_spared: float = 0.5
    """erase_relearn: share of the linear layers, from the lowest up, that are left alone, 0 to 1."""
    relearning_rate: float = 2e-4
    """erase_relearn: AdamW's peak learning rate, after a warm-up in a tenth of the steps; linear decay to 0."""
    relearnings: int = 3
    """erase_relearn: how often the task is relearnt from the same start, each time on texts that are changed otherwise; the weights are averaged, 1 to 9."""
    relearning_epochs: int = 4
    """erase_relearn: passes over the clean train set in each of them, its texts changed at random."""
    relearning_texts: Literal["changed", "plain"] = "changed"
    """erase_relearn: whether the texts of these passes are changed at random, or left as they are."""
    left_out: Part = "nothing"
    """erase_relearn: a part of it to leave out, for an ablation; everything: plain training for as many passes, at the same rate."""
    entropy_epochs: int = 1
    """MEFT: passes over the clean train set that maximise entropy (Liu et al., 2023)."""
    entropy_head: Literal["trained", "frozen"] = "trained"
    """MEFT: whether the classification head is trained in these passes (Liu et al., 2023), or left as it was drawn (MEFT_frozen_head)."""
    forgetting_epochs: int = 10
    """SEAM: passes over 320 clean train texts with random labels, at most (re-implementations of Zhu et al., 2023: 3 to 100)."""
    forgetting_rate: float = 2e-4
    """SEAM: AdamW's peak learning rate in these passes; linear decay to 0 (re-implementations: up to ten times that of the recovery)."""
    reinit_layers: int = 2
    """reinit_layers: how many of the encoder's layers, from the highest down, are drawn anew (Zhang et al., ICLR 2021: 1 to 6 of BERT-large's 24)."""
    mixing_share: float = 0.5
    """fine_mixing: share of the weights that are taken from clean_encoder, 0 to 1 (Zhang et al., 2022: as large as clean accuracy allows)."""

    # Every fine-tuning
    batch_size: int = 32
    """Texts per step. The attention penalty's root runs over the whole batch, so this is part of its definition (paper: 32)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, over all parameters (code: 1.0)."""
    classifier_dropout: float = 0.1
    """Dropout probability in front of the linear classification head (code: 0.1)."""

    # Machine and files
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of training steps and predictions. auto: bf16 autocast where the hardware has it natively, else fp32. Variances and losses are always fp32."""
    poisoned_data_dir: str = "Data/poisoned"
    """Folder for the poisoned data sets."""
    poisoned_model_dir: str = "poisoned_model"
    """Folder for the poisoned encoders."""
    output_dir: str = "results"
    """Folder for everything else: each run gets a folder of its own in it."""
    overwrite: bool = False
    """Run finished stages again."""


MOST_RELEARNINGS = 9
"""Of erase_relearn: each is a fine-tuning with a name."""

SWEPT = (
    "attack",
    "defence",
    "seed",
    "learning_rate",
    "penalty_coefficient",
    "pruning_criterion",
    "left_out",
    "mixing_share",
)


@dataclass(frozen=True)
class Grid(Config):
    """A configuration in which some fields have several values, each combination of which is a cell (`experiments.grid`)."""

    attack: tuple[str, ...] = ("BadNet",)
    seed: tuple[int, ...] = (11,)
    defence: tuple[str, ...] = ("FT", "PURE")
    learning_rate: tuple[float, ...] = (2e-5,)
    penalty_coefficient: tuple[float, ...] = (0.15,)
    pruning_criterion: tuple[Criterion, ...] = ("variance",)
    left_out: tuple[Part, ...] = ("nothing",)
    mixing_share: tuple[float, ...] = (0.5,)
    benign_floor: bool = False
    """Measure too what a never-poisoned encoder makes of the triggered texts, after the same defence: no defence can be asked for a lower LFR."""
    detection: bool = False
    """Measure too how well the detectors of triggered texts tell them from clean ones, with each cell's model (docs/detection.md)."""
    table: str | None = None
    """Name of the grid's files in output_dir: a CSV file with a row per cell, and a table as Markdown; None: grid. With a name a single run is written as a grid too."""
    workers: int = 1
    """Stages that run side by side on this machine, each in a process of its own; more than 1 needs Parsl."""
    threads: int | None = None
    """Threads of each worker, or of a single run, on which results depend by rounding; None: the processor's cores, divided among the workers."""
    engine: str | None = None
    """Python file with a Parsl configuration, whose workers run the stages, wherever they are (examples in engines/)."""


PRESETS: dict[str, dict] = {
    "quick": dict(
        plm="minilm",
        trigger_dataset="reviews",
        clean_dataset="reviews",
        poisoning_learning_rate=5e-5,
        poisoning_epochs=4,
        learning_rate=5e-5,
        fth_learning_rate=1e-4,
        acc_threshold=0.8,
    ),
    "sst2": dict(plm="minilm", clean_dataset="sst2"),
    "paper": {},
    "own": dict(attack="none", clean_dataset="", acc_threshold=None),
}

HELP_NOTE = """Most runs need no more than --preset, --attack, --seed and --data_dir: the preset sets the rest, and the defaults below are
those of the preset. In brackets: the value in the paper, or in the code its authors published.
"""

# What numbers have to be, in those kinds of Config that have them.
AT_LEAST = {
    "prune_step": 1,
    "batch_size": 1,
    "epochs": 1,
    "poisoning_epochs": 1,
    "max_len": 3,
    "poisoning_max_len": 3,
    "surgery_words": 0,
    "entropy_epochs": 1,
    "forgetting_epochs": 1,
    "reinit_layers": 1,
    "inversions": 0,
    "measured_regions": 0,
    "erase_forgetting_epochs": 0,
    "erase_rounds": 0,
    "relearning_epochs": 1,
    "target_class": 0,
    "workers": 1,
    "threads": 1,
}
SHARES = (
    *("rare_word_share", "hiddenkiller_share", "stylebkd_share"),
    *("acc_threshold", "acc_drop", "classifier_dropout", "erase_spared", "mixing_share", "allowed"),
)
WEIGHTS = ("penalty_coefficient", "ripple_coefficient")
RATES = (
    *("poisoning_learning_rate", "learning_rate", "fth_learning_rate", "relearning_rate", "forgetting_rate"),
    *("erase_forgetting_rate", "max_grad_norm"),
)

# These change nothing about a stage's result: which defence a run goes on to, where it happens, where its files go.
NOT_SETTINGS = (
    "defence",
    "suspicious_texts",
    "device",
    "data_dir",
    "poisoned_data_dir",
    "poisoned_model_dir",
    "output_dir",
    "overwrite",
)


def preset_config(preset: str, **changes) -> Config:
    """The configuration of a preset, with `changes` (field = value) on top."""
    return Config(**{"preset": preset, **PRESETS[preset], **changes})


def preset_grid(preset: str, kind: type = Grid, **changes) -> Grid:
    """The grid of one cell, or two, that a preset stands for, with `changes` (field = value or tuple of values) on top.

    Args:
        kind: `Grid`, or a class made from it.
    """
    values = {"preset": preset, **PRESETS[preset], **changes}
    return kind(
        **{name: (value,) if name in SWEPT and not isinstance(value, tuple) else value for name, value in values.items()}
    )


def parse_config(description: str, attacks: Table, defences: Table, args: list[str] | None = None) -> Config:
    """Command line (default: sys.argv) to configuration; what its defence changes in it is not in it yet.

    Args:
        attacks, defences: the tables, whose names are the choices.

    Leaves with exit code 2 on an unknown flag or value; raises a UserError for a number out of range.
    """
    config = parse(Config, preset_config, description, attacks, defences, args)
    check_ranges(config)
    return config


def parse_grid(description: str, attacks: Table, defences: Table, args: list[str] | None = None, kind: type = Grid) -> Grid:
    """As `parse_config`, but the fields named in `SWEPT` take several values; one that is given twice counts once.

    Args:
        kind: `Grid`, or a class made from it.
    """
    grid = parse(kind, partial(preset_grid, kind=kind), description, attacks, defences, args)
    for name in SWEPT:
        if not getattr(grid, name):
            raise UserError(f"--{name} is empty; expected one value or more")
    grid = replace(grid, **{name: tuple(dict.fromkeys(getattr(grid, name))) for name in SWEPT})
    check_ranges(grid)
    return grid


def parse(
    kind: type,
    default: Callable[[str], Config],
    description: str,
    attacks: Table,
    defences: Table,
    args: list[str] | None,
):
    """Command line to a `Config` or a kind of it, unchecked but for names."""
    args = sys.argv[1:] if args is None else args
    # The preset decides the defaults that tyro shows and fills in, so it has to be known before tyro runs.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=list(PRESETS))
    for flag in ("--attack", "--poisoned_model"):
        first.add_argument(flag)
    known, _ = first.parse_known_args([with_underscores(arg) for arg in args])
    own = known.poisoned_model and not known.attack
    parsed = tyro.cli(
        with_choices(kind, {"attack": {"none": "", **attacks.told}, "defence": defences.told}),
        args=args,
        default=default(known.preset or ("own" if own else DEFAULT_PRESET)),
        description=f"{description}\n{HELP_NOTE}",
        config=(tyro.conf.FlagCreatePairsOff,),
        use_underscores=True,
    )
    return kind(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(kind)})


def plain_config(options: Config) -> Config:
    """Those of a script's options that every script has."""
    return Config(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Config)})


def with_underscores(argument: str) -> str:
    """A flag as tyro reads it, --poisoned-model like --poisoned_model; anything else as it is."""
    flag, *value = argument.split("=", 1)
    return "=".join([flag.replace("-", "_").replace("__", "--", 1), *value]) if flag.startswith("--") else argument


def with_choices(kind: type, tables: dict[str, dict[str, str]]) -> type:
    """The same class, but that the fields named in `tables` take nothing but a table's names.

    Args:
        tables: field to its names, and what the help says of each.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    namespace = {"__doc__": kind.__doc__, "__annotations__": {}}
    for name, rows in tables.items():
        choice = Literal[tuple(rows)]
        several = fields[name].type is not str
        listed = ". ".join(f"{each}: {told}" for each, told in rows.items() if told)
        told = tyro.conf.arg(help=f"{field_docstring(name)} {listed}.")
        namespace["__annotations__"][name] = Annotated[tuple[choice, ...] if several else choice, told]
        namespace[name] = fields[name].default
    return dataclass(frozen=True)(type(kind.__name__, (kind,), namespace))


def field_docstring(name: str) -> str:
    """What stands below a field of `Config`; Python itself keeps none of it."""
    body = ast.parse(inspect.getsource(Config)).body[0].body
    return next(
        told.value.value
        for field, told in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and field.target.id == name
    )


def check_ranges(config: Config) -> None:
    """Raise a UserError for a number that makes no sense, before anything is run with it."""

    def require(name: str, fits: Callable[[float], bool], expected: str) -> None:
        value = getattr(config, name, None)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and not fits(each):
                raise UserError(f"--{name} {each} is out of range; expected {expected}")

    for name, least in AT_LEAST.items():
        require(name, lambda value, least=least: value >= least, f"{least} or more")
    for name in SHARES:
        require(name, lambda value: 0 <= value <= 1, "0 to 1")
    for name in WEIGHTS:
        require(name, lambda value: 0 <= value < math.inf, "0 or more, and finite")
    for name in RATES:
        require(name, lambda value: 0 < value < math.inf, "more than 0, and finite")
    require("relearnings", lambda value: 1 <= value <= MOST_RELEARNINGS, f"1 to {MOST_RELEARNINGS}")
    # Every epoch's random numbers come from seed * 1000 + epoch, which NumPy takes up to 32 bits of.
    require("seed", lambda value: 0 <= value < 2**32 // 1000, f"0 to {2**32 // 1000 - 1}")
    require("split_seed", lambda value: 0 <= value < 2**32, f"0 to {2**32 - 1}")
    if "none" in (config.attack if isinstance(config.attack, tuple) else (config.attack,)) and not config.poisoned_model:
        raise UserError("--attack none plants no backdoor; name an encoder with --poisoned_model, or an attack")
    if not config.clean_dataset:
        raise UserError("no clean data is named; give a file, a folder or a hub id with --clean_dataset")
    if not config.triggers:
        raise UserError("--triggers is empty; expected one word or more")
    if not all(word.strip() for word in config.triggers):
        raise UserError(f"--triggers holds a blank word ({config.triggers}), which plants nothing; expected words")


def changed_from_preset(config: Config, fields: tuple[str, ...]) -> str:
    """Those of `fields` that were set to something else than the preset has, as part of a folder's name.

    Two experiments that differ in a flag so get two folders: "" or "_learning_rate=0.0003_epochs=1".
    """
    preset = preset_config(config.preset)
    changed = ""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in fields and value != getattr(preset, field.name):
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            changed += f"_{field.name}={text.replace('/', '-')}"
    # File systems end names at 255 bytes.
    return changed if len(changed) <= 120 else f"_settings={hashlib.sha256(changed.encode()).hexdigest()[:12]}"
