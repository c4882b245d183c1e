"""What an untrusted encoder's folder has that is no matter of weights, as findings: a scan goes on where it can."""

import json
from pathlib import Path

from encoder.trusted import PICKLES, read_object, require_two_ends, rewriting
from util import UserError

NAMES_CODE = ("auto_map", "custom_pipelines")
"""Keys of JSON files that send the loading code to code in the folder or on the hub."""


def folder_findings(folder: Path, tokeniser) -> list[str]:
    """What is odd about files, config.json and tokeniser; nothing is run, and nothing of it obeyed.

    Args:
        tokeniser: the one beside the encoder; None: it can't be loaded.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        named = [key for key in NAMES_CODE if read_object(path).get(key)]
        if named:
            found.append(f"{path.name} names code to be run ({', '.join(named)}); it is not run here")
    names = sorted(path.name for path in folder.iterdir())
    if code := [name for name in names if name.endswith(".py")]:
        found.append(f"the folder holds code ({', '.join(code)}); it is not run here")
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        found.append(
            f"the folder holds pickles ({', '.join(pickles)}), which can run code when opened; they are not opened here"
        )
    if tokeniser is None:
        return [*found, "no tokeniser can be loaded from the folder"]
    try:
        require_two_ends(tokeniser, str(folder))
    except UserError as error:
        found.append(str(error))
    backend = getattr(tokeniser, "backend_tokenizer", None)
    reason = rewriting(json.loads(backend.to_str())) if backend is not None else None
    if reason:
        found.append(f"the tokeniser {reason}, which can hide a backdoor that no defence of weights removes")
    elif backend is None:
        found.append("the tokeniser is Python through and through, so that nobody can look into what it does to texts")
    return found
