"""The finished runs of a results folder as one Markdown table.

python results_table.py results
"""

import sys
from pathlib import Path

from util import UserError, load_json, run_script

MODELS = ("poisoned", "fine_tuned", "PURE")


def table_row(folder: Path) -> list[str]:
    """What run, then ACC / LFR of each model (a dash where there is none), then pruned heads."""
    config, summary = load_json(folder / "config.json"), load_json(folder / "metrics.json")
    encoder = config["poisoned_model"] or config["plm"]
    row = [config["attack"], Path(encoder).name, config["trigger_dataset"], config["clean_dataset"], str(config["seed"])]
    for model in MODELS:
        metrics = summary["models"].get(model)
        row.append(f"{metrics['ACC']:.3f} / {metrics['LFR']:.3f}" if metrics else "-")
    return [*row, f"{summary['heads_pruned']} of {summary['heads']}"]


def results_table(folder: Path) -> str:
    """Markdown, one line per finished run.

    Raises:
        UserError: no run is finished there.
    """
    runs = sorted(path.parent for path in folder.glob("*/metrics.json"))
    if not runs:
        raise UserError(f"no finished run in {folder}; make one with: python run_all.py")
    header = ["attack", "encoder", "attacker's data", "defender's data", "seed"]
    header += ["poisoned ACC / LFR", "fine-tuned ACC / LFR", "PURE ACC / LFR", "heads pruned"]
    lines = [header, ["---"] * len(header), *map(table_row, runs)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    print(results_table(Path(sys.argv[1] if len(sys.argv) > 1 else "results")))


if __name__ == "__main__":
    run_script(main)
