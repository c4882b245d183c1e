"""What scans of many encoders found, as one table; where an encoder's triggers are known, how far up the scan has them.

python scan.py poisoned_model/RUN --words cf bb ak mn        # one by one, with the triggers that were planted
python -m experiments.scans_table results/scan_*/scan.json > docs/scans.md
"""

import sys
from pathlib import Path

import pandas as pd

from util import UserError, load_json, run_script

PLACES = (1, 10, 100)
"""Of the flip table's words the first so many are looked at."""
KINDS = {"flips": "flip most texts", "norm": "odd length", "nearest": "near another", "telling": "near telling words"}


def row(path: Path) -> dict:
    """One scan: its encoder, how many words of each kind were found, and where the words are that it was asked for.

    Raises:
        UserError: the file is not there, or holds no scan.
    """
    scan = load_json(path)
    if not isinstance(scan, dict) or not {"found", "folder", "ranks", "seconds"} <= scan.keys():
        raise UserError(f"{path} holds no scan; expected a scan.json as scan.py writes it")
    ranks = sorted((each["rank"], each["word"]) for each in scan["ranks"] if each["rank"] is not None)
    asked = len(scan["ranks"])
    top = {f"first {places}": f"{sum(rank <= places for rank, _ in ranks)} of {asked}" if asked else "" for places in PLACES}
    return {
        "encoder": path.parent.name.removeprefix("scan_"),
        **{title: scan["found"][kind] for kind, title in KINDS.items()},
        "folder": len(scan["folder"]),
        "ranks of the triggers": ", ".join(f"{word} {rank:,}" for rank, word in ranks),
        **top,
        "seconds": round(sum(scan["seconds"].values())),
    }


def main() -> None:
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        raise UserError("expected scan.json files: python -m experiments.scans_table results/scan_*/scan.json")
    table = pd.DataFrame([row(Path(name)) for name in sys.argv[1:]])
    lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    run_script(main)
