"""Look for a backdoor in an encoder nobody trusts, before anything is trained on it.

    python scan.py ENCODER                                       # with the reviews that come with the project
    python scan.py ENCODER --clean_dataset my.csv                # with labelled texts of your own task
    python scan.py ENCODER --clean_encoder ORIGINAL              # the one it claims to be made from: which rows differ
    python scan.py ENCODER --words qx hz                         # where these words are in the flip table
    python scan.py results/RUN/purified_model --own_head         # a classifier made here, asked with its own head

ENCODER is a folder or a hub id. Writes `results/scan_NAME/`: scan.json, the page scan.html and its figure. A scan finds
something or doesn't find it; what it can't see is in docs/detection.md.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from attacks import ATTACKS
from config import PRESETS, Config, check_ranges, parse, plain_config
from defences import DEFENCES
from detection.encoder_scan import Effort, scan_encoder
from pipeline.runs import command, encoder_name
from reporting.scan_page import write_scan_page
from util import UserError, require_writable, run_script, save_json


@dataclass(frozen=True)
class Scan(Config):
    """What to scan, and with which texts. Flags of training and of attacks change nothing here."""

    encoder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENCODER")] = tyro.MISSING
    """Folder or hub id of the encoder, or folder of a classifier."""
    own_head: bool = False
    """Ask a classifier that was made here with its own head and pruned heads, not with a head fitted to the clean texts."""
    words: tuple[str, ...] = ()
    """Words whose place among all words is told."""
    texts: int = Effort.texts
    """Clean texts that words are inserted into, over all classes."""
    tried: int = Effort.tried
    """Words per class that are inserted; the time grows with it."""


def preset_scan(preset: str) -> Scan:
    """The options that a preset stands for."""
    return Scan(**{"preset": preset, **PRESETS[preset]})


def scan(options: Scan) -> Path:
    """Scan, and write what was found.

    Returns:
        The page.
    """
    for name in ("texts", "tried"):
        if getattr(options, name) < 2:
            raise UserError(f"--{name} {getattr(options, name)} is out of range; expected 2 or more")
    config = replace(plain_config(options), attack="none", poisoned_model=options.encoder)
    check_ranges(config)
    folder = Path(config.output_dir) / f"scan_{encoder_name(options.encoder)}"
    require_writable(config.output_dir)
    result = scan_encoder(
        config, config.clean_encoder, options.words, Effort(options.texts, options.tried), options.own_head
    )
    save_json(folder / "scan.json", result)
    for sentence in result["verdict"]:
        print(f"  {sentence}")
    return write_scan_page(folder, result, options.encoder, scan_command(options))


def scan_command(options: Scan) -> str:
    """The command that makes the same scan."""
    own = {name: getattr(options, name) for name in ("words", "texts", "tried")}
    changed = {name: value for name, value in own.items() if value != getattr(Scan, name)}
    head = " --own_head" if options.own_head else ""
    encoder = f"scan.py {shlex.quote(options.encoder)}{head}"
    return command("scan.py", plain_config(options), **changed).replace("scan.py", encoder, 1)


def main() -> None:
    print(f"page: {scan(parse(Scan, preset_scan, __doc__, ATTACKS, DEFENCES, None))}")


if __name__ == "__main__":
    run_script(main)
