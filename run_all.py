"""Plant a backdoor in a pre-trained language model, remove it with PURE, and print what happened.

    python run_all.py --preset sst2 --attack BadNet --data_dir FOLDER
    python run_all.py --preset paper --attack BadNet             # models and data from the hub
    python run_all.py --attack BadNet --poisoned_model FOLDER_OR_HUB_ID

Data, poisoning, head pruning, attention normalisation, table. Stages that are finished with the same settings are not run
again; a run that was killed goes on where it stopped.
"""

import dataclasses
from pathlib import Path

from attention_head_pruning import prune_heads
from attention_normalization import normalise_attention
from config import Config, parse_config
from Data.make_poisoned_data import make_poisoned_data
from pretrained_model_poisoning import poison
from runs import run_folder
from util import choose_device, require_writable, run_script, save_json


def run_all(config: Config) -> dict:
    """All stages; writes config.json and metrics.json to the run's folder.

    Returns:
        What metrics.json holds: model (poisoned, fine_tuned, PURE) to its metrics, number of pruned heads, seconds by stage.
    """
    folder = run_folder(config)
    choose_device(config.device)  # What can fail at once fails before minutes of work.
    require_writable(config.output_dir)
    print(f"1/4 poisoned data ({config.attack} on {config.trigger_dataset})")
    make_poisoned_data(config)
    records = {}
    if config.poisoned_model:
        print(f"2/4 poisoning: left out, {config.poisoned_model} is given")
    else:
        print(f"2/4 poisoning: {config.attack} is planted in {config.plm}")
        records["poisoned"] = poison(config)
    save_json(folder / "config.json", dataclasses.asdict(config))
    print("3/4 head pruning: fine-tune on clean data, prune heads whose [CLS] attention varies least")
    records["fine_tuned"] = prune_heads(config)
    print("4/4 attention normalisation: fine-tune the pruned encoder with a penalty on [CLS] attention")
    records["PURE"] = normalise_attention(config)
    summary = {
        "models": {name: record["metrics"] for name, record in records.items()},
        "heads_pruned": sum(map(len, records["fine_tuned"]["pruned_heads"].values())),
        "heads": sum(map(len, records["fine_tuned"]["variance"])),
        "seconds": {name: record["seconds"] for name, record in records.items()},
    }
    save_json(folder / "metrics.json", summary)
    return summary


def print_table(summary: dict, folder: Path) -> None:
    """ACC and LFR of each model, and where the files are."""
    names = {"poisoned": "poisoned", "fine_tuned": "fine-tuned (FT)", "PURE": "PURE"}
    print(f"\n{'':16}{'ACC':>8}{'LFR':>8}{'seconds':>10}")
    for name, metrics in summary["models"].items():
        seconds = sum(summary["seconds"][name].values())
        print(f"{names[name]:16}{metrics['ACC']:8.3f}{metrics['LFR']:8.3f}{seconds:10.0f}")
    print(
        f"\n{summary['heads_pruned']} of {summary['heads']} heads pruned. ACC: share of clean test texts classified as "
        "labelled.\nLFR: share of triggered texts of the other class classified as the attacker's."
    )
    print(f"Everything of this run: {folder}")


def main() -> None:
    config = parse_config(__doc__)
    print_table(run_all(config), run_folder(config))


if __name__ == "__main__":
    run_script(main)
