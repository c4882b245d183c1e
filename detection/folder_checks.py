"""What an untrusted encoder's folder has that is no matter of weights, as findings: a scan goes on where it can."""

from pathlib import Path

from encoder.trusted import PICKLES, has_own_form, hiding, is_python_only, read_object, require_two_ends
from util import UserError

NAMES_CODE = ("auto_map", "custom_pipelines")
"""Keys of JSON files that send the loading code to code in the folder or on the hub."""
NAMED = 10
"""Added tokens that a sentence names at most."""
LONGEST = 40
"""Characters of one that are shown at most."""


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
    own = {getattr(tokeniser, name) for name in tokeniser.SPECIAL_TOKENS_ATTRIBUTES}
    added = [token.content for token in tokeniser.added_tokens_decoder.values() if token.content not in own]
    if words := [token for token in added if not has_own_form(token)]:
        named = ", ".join(word[:LONGEST] for word in words[:NAMED])
        found.append(f"the tokeniser has ordinary words or marks ({len(words)}) among its added or special tokens: {named}")
    if reason := hiding(tokeniser):
        found.append(f"the tokeniser {reason}")
    if is_python_only(tokeniser):
        found.append("the tokeniser is Python through and through, so that nobody can look into what it does to texts")
    return found
