"""The records of a finished run, and whether they fit together."""

from dataclasses import dataclass, replace
from pathlib import Path

from attacks import ATTACKS
from attacks.planted import RECORD as POISONING_RECORD
from attacks.planted import poisoned_model_folder
from config import Config
from defences import DEFENCES
from defences.defence import as_defence, defended_model_folder, record_path, run_folder
from defences.fine_tuning import FINE_TUNING
from defences.pure import PRUNING
from encoder.classifier import resolve_plm
from experiments.grid import benign, floor_path, steps
from pipeline.runs import command
from util import UserError, fingerprint_folder, load_json


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
    if not DEFENCES[config.defence].puts_aside:
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
