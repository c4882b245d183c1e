"""What of an encoder's folder is read, and what is refused before it is: everything in there is somebody else's.

PURE defends against weights. A tokeniser that turns a trigger into other words, a config.json that names code on the hub, or
a link to a file elsewhere is no matter of weights: no fine-tuning undoes it, so it is refused.
"""

import base64
import dataclasses
import hashlib
import inspect
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open

from util import UserError, fingerprint, first_line

if TYPE_CHECKING:  # Seconds to import, and a finished run needs none of it.
    import transformers

TOKENISER_FILES = ("*.json", "*.txt", "*.model")
"""All that loading a tokeniser reads, config.json included, which decides on its class."""
ENCODER_FILES = (*TOKENISER_FILES, "*.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Ends of the names of files that can run code when they are opened."""
OUR_RECORDS = ("poisoning.json",)
"""What we write into such a folder ourselves: it has times in it."""

# ------------------------------------------------------------------------------------------------------ files, folders


def local_folder(source: str, patterns: tuple[str, ...] = ENCODER_FILES) -> Path:
    """The folder of an encoder or a tokeniser; a hub id's is fetched, without sub-folders and pickles.

    Raises:
        UserError: no such folder, not to be had from the hub, or files that lead out of the folder.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or source.startswith((".", "/", "~")):
            raise UserError(f"there is no folder {source}; expected one with config.json and model.safetensors")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
        except Exception as error:  # The hub's library has some twenty, of several kinds.
            raise UserError(
                f"{source} is neither a folder nor to be had from the hub as safetensors ({first_line(error)}); give a "
                "folder, a hub id with a network, or minilm"
            ) from None
    files_read(folder, patterns)
    return folder


def files_read(folder: Path, patterns: tuple[str, ...] = ENCODER_FILES) -> list[Path]:
    """The files of a folder that loading may read, by name.

    Raises:
        UserError: one of them is a link out of the folder, no plain file, can't be read, or names files outside.
    """
    home = folder.resolve()
    homes = (home, home.parent.parent / "blobs") if is_snapshot(home) else (home,)
    if not os.access(folder, os.R_OK | os.X_OK):
        raise unreadable(folder)
    files = sorted(path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in patterns))
    files = [path for path in files if path.name not in OUR_RECORDS and not (path.is_dir() and not path.is_symlink())]
    for path in files:
        target = path.resolve()
        if not any(target.is_relative_to(each) for each in homes):
            raise UserError(f"{path} is a link out of its folder; expected a file (copy it, if you trust it)")
        if not target.is_file():
            raise UserError(f"{path} is no file; expected an encoder as save_pretrained writes it")
        if not os.access(path, os.R_OK):
            raise unreadable(path)
        require_own_names(path)
    return files


def is_snapshot(home: Path) -> bool:
    """Whether a folder is one of the hub's cache, made of links to blobs; nothing else is expected to have any."""
    if home.parent.name != "snapshots":
        return False
    from huggingface_hub import constants

    return home.is_relative_to(Path(constants.HF_HUB_CACHE).resolve())


def unreadable(path: Path) -> UserError:
    return UserError(f"{path} can't be read (permission denied); expected an encoder that this user may read")


def require_own_names(path: Path) -> None:
    """Raise a UserError if a JSON file of an encoder's sends the loading code to files beyond those of its folder."""
    if path.name.endswith(".index.json"):
        weight_map = read_object(path).get("weight_map")
        for name in weight_map.values() if isinstance(weight_map, dict) else ():
            if not isinstance(name, str) or name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
                raise UserError(f"{path} names {name!r}; expected names of .safetensors files in the same folder")
    elif path.name == "adapter_config.json":
        raise UserError(f"{path.parent} holds an adapter (adapter_config.json); expected an encoder that it is merged into")
    elif path.name in ("config.json", "tokenizer_config.json"):
        content = read_object(path)
        for key in ("configuration_files", "fast_tokenizer_files", "gguf_file", "transformers_weights"):
            if content.get(key) is not None:
                raise UserError(f"{path} has {key}, which names other files to be loaded; remove it")


def read_object(path: Path) -> dict:
    """A JSON object; {} for anything else, which the loading code will complain about."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def weight_sizes(folder: Path) -> list[int]:
    """How many numbers each weight of a folder has, as the headers of its safetensors say.

    Raises:
        UserError: one of these files is damaged.
    """
    try:
        sizes = []
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "np") as file:
                sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
        return sizes
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the model in {folder} can't be loaded, it may be corrupt: {first_line(error)}") from None


NUMBERS_OF_PARTS = re.compile(r"(layers?|groups?|group_num|experts?|blocks|block_sizes|depths?)$")


def require_possible_parts(values: object, weights: int, source: str, name: str = "") -> None:
    """Raise a UserError if a config.json names more parts of a model than it has weights: to make them might never end."""
    if isinstance(values, dict):
        for key, value in values.items():
            require_possible_parts(value, weights, source, key)
    elif isinstance(values, list):
        for value in values:
            require_possible_parts(value, weights, source, name)
    elif isinstance(values, (int, float)) and values > weights and NUMBERS_OF_PARTS.search(name):
        raise UserError(
            f"the model in {source} can't be loaded: its config.json has {name} {values}, and there are {weights} weights; "
            "expected an encoder as save_pretrained writes it"
        )


def fingerprint_files(folder: Path, patterns: tuple[str, ...] = ENCODER_FILES) -> str:
    """SHA-256 over names and SHA-256 of the files that loading reads."""
    listed = "\n".join(f"{path.name} {fingerprint(path)}" for path in files_read(folder, patterns))
    return hashlib.sha256(listed.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------- what we write again

WORDS_OF_A_TOKENISER = (
    *("padding_side", "truncation_side", "truncation_strategy", "model_input_names", "backend"),
    *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"),
)


def forget_unknown(model: "transformers.PreTrainedModel", tokeniser) -> None:
    """Drop what an untrusted folder's JSON files say beyond what model and tokeniser need, above all names of code to run.

    Whoever loads what we write with trust_remote_code=True would run the code that `auto_map` names.
    """
    import transformers

    plain = (bool, int, float, transformers.AddedToken, type(None))  # These name nothing.
    known = {field.name for field in dataclasses.fields(model.config)}
    for name, value in list(vars(model.config).items()):
        if name not in known and not name.startswith("_") and not isinstance(value, plain):
            delattr(model.config, name)
    tokeniser.chat_template = tokeniser.response_template = tokeniser.chat_control_tokens = None
    tokeniser.init_inputs = ()
    known = {*tokeniser.SPECIAL_TOKENS_ATTRIBUTES, *WORDS_OF_A_TOKENISER, *tokeniser.vocab_files_names, "name_or_path"}
    for ancestor in type(tokeniser).__mro__:
        if "__init__" in vars(ancestor):
            known |= inspect.signature(ancestor.__init__).parameters.keys() - {"chat_template"}
    tokeniser.init_kwargs = {
        name: value for name, value in tokeniser.init_kwargs.items() if name in known or isinstance(value, plain)
    }


# ----------------------------------------------------------------------------------------------------------- tokenisers

HARMLESS_NORMALISERS = ("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt")
HARMLESS_PRE_TOKENISERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Digits")
HARMLESS_DECODERS = ("WordPiece", "ByteLevel", "ByteFallback", "Fuse")
BLANKS = re.compile(r"[\s▁]+")
REGEX_OF_BLANKS = re.compile(r"(?:\\s|\[(?:\\s|[\s▁])+\]|[\s▁])(?:\+|\{[1-9]\d*(?:,\d*)?\})?")
PROBES = ("the film was warm", "a", "Cf, bb! 12 mn", "ñandú 東京")


def require_plain_tokeniser(tokeniser, source: str) -> None:
    """Raise a UserError unless a tokeniser cuts texts into its vocabulary's pieces and does nothing else to them.

    A tokeniser that is Python through and through can't be looked into; of it the two ends of a text are checked alone.
    """
    require_two_ends(tokeniser, source)
    if reason := hiding(tokeniser):
        raise UserError(
            f"the tokeniser in {source} {reason}; give a trusted one with --tokeniser (the original encoder's, say)"
        )


def is_python_only(tokeniser) -> bool:
    """Whether a tokeniser is Python through and through, without a tokenizer.json to look into."""
    return getattr(tokeniser, "backend_tokenizer", None) is None


def hiding(tokeniser) -> str | None:
    """How a tokeniser can hide a backdoor; None if it doesn't, or if nobody can look into it."""
    reason = None if is_python_only(tokeniser) else rewriting(json.loads(tokeniser.backend_tokenizer.to_str()))
    return f"{reason}, which can hide a backdoor that no defence of weights removes" if reason else None


def require_two_ends(tokeniser, source: str) -> None:
    """Raise a UserError unless a tokeniser gives [CLS] text [SEP], or [CLS] text: PURE looks at the first token."""
    first = tokeniser.cls_token_id
    for text in PROBES:
        try:
            bare = list(tokeniser(text, add_special_tokens=False)["input_ids"])
            found = list(tokeniser(text)["input_ids"])
        except Exception as error:  # The tokenizers library raises bare ones, for a vocabulary without [UNK] for example.
            raise UserError(
                f"the tokeniser in {source} can't cut {text!r} into tokens ({first_line(error)}); give another with "
                "--tokeniser"
            ) from None
        if first is None or found not in ([first, *bare], [first, *bare, tokeniser.sep_token_id]):
            raise UserError(
                f"the tokeniser in {source} makes {found} of {text!r}, whose own tokens are {bare}; expected these between "
                f"cls_token_id ({first}) and sep_token_id ({tokeniser.sep_token_id}): PURE looks at what [CLS] attends to; "
                "give another with --tokeniser"
            )
    for name in tokeniser.SPECIAL_TOKENS_ATTRIBUTES:
        if (token := getattr(tokeniser, name, None)) and not has_own_form(token):
            kind = "ordinary word" if is_word(token) else "mark"
            raise UserError(f"the tokeniser in {source} has the {kind} {token!r} as its {name}; expected <s> or the like")


def is_word(token: str) -> bool:
    """Whether a token has letters or digits and no form of its own."""
    return any(char.isalnum() for char in token) and not has_own_form(token)


def has_own_form(token: str) -> bool:
    """Whether no word of a text looks so: [UNK], <s>, ModernBERT's |||IP_ADDRESS|||, blanks alone."""
    return not token.strip() or bool(re.fullmatch(r"\[.+\]|<.+>|\|{3}.+\|{3}", token))


def special_tokens(tokeniser) -> set[int]:
    """Numbers of the tokens that stand for nothing in a text: called special or added, and of a form of their own.

    What somebody calls special and is a word or a mark of texts is a word like others: a trigger may be one.
    """
    named = {getattr(tokeniser, name): getattr(tokeniser, f"{name}_id") for name in tokeniser.SPECIAL_TOKENS_ATTRIBUTES}
    named |= {token.content: number for number, token in tokeniser.added_tokens_decoder.items()}
    return {number for token, number in named.items() if token is not None and has_own_form(token)}


def rewriting(state: dict) -> str | None:
    """How a tokeniser, given as the content of tokenizer.json, changes texts beyond cutting them up; None if it doesn't."""
    model, added = state["model"], state["added_tokens"]
    reasons = [unusual_normaliser(each) for each in steps_of(state["normalizer"], "normalizers", HARMLESS_NORMALISERS)]
    reasons += map(unusual_pre_tokeniser, steps_of(state["pre_tokenizer"], "pretokenizers", HARMLESS_PRE_TOKENISERS))
    reasons += map(unusual_decoder, steps_of(state["decoder"], "decoders", HARMLESS_DECODERS))
    if model.get("dropout"):
        reasons.append(f"cuts words at random (BPE dropout {model['dropout']})")
    vocabulary, unknown = model["vocab"], model.get("unk_token")
    if isinstance(vocabulary, list):  # Unigram's, of strings and scores.
        unknown = None if model["unk_id"] is None else vocabulary[model["unk_id"]][0]
        vocabulary = {string: number for number, (string, _) in enumerate(vocabulary)}
    if unknown and is_word(unknown):
        reasons.append(f"makes the word {unknown!r} of what it doesn't know")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):  # Put to a piece before it is looked up.
        if (affix := model.get(name)) and is_word(affix):
            reasons.append(f"adds letters to the pieces of words ({name} {affix!r})")
    processor = state["post_processor"] or {}
    for each in processor.get("processors", [processor]):
        if sum("Sequence" in piece for piece in each.get("single", [{"Sequence": {}}])) != 1:
            reasons.append("gives a text more often than once, or not at all")
    strings = {}
    for string, number in (*vocabulary.items(), *((token["content"], token["id"]) for token in added)):
        if strings.setdefault(number, string) != string:
            reasons.append(f"has one number, {number}, for {strings[number]!r} and {string!r}")
            break
    contents = [token["content"] for token in added]
    several = [content for content in contents if len(content.split()) > 1 and not has_own_form(content)]
    if several:
        reasons.append(f"takes several words for one token ({several[0]!r})")
    return next((reason for reason in reasons if reason), None)


def steps_of(component: dict | None, listed: str, harmless: tuple[str, ...]) -> Iterator[dict]:
    """The steps of a component of tokenizer.json, sequences taken apart, but for those of a harmless type.

    Args:
        listed: where a sequence has its steps.
    """
    if component is None or component["type"] in harmless:
        return
    if component["type"] == "Sequence":
        for step in component[listed]:
            yield from steps_of(step, listed, harmless)
    else:
        yield component


def unusual_normaliser(normaliser: dict) -> str | None:
    """How a normaliser rewrites texts; None if it only tidies them."""
    kind = normaliser["type"]
    if kind == "Replace" and matches_blanks(normaliser["pattern"]) and BLANKS.fullmatch(normaliser["content"]):
        return None
    if kind == "Prepend" and BLANKS.fullmatch(normaliser["prepend"]):
        return None
    if kind == "Precompiled":
        return unusual_charsmap(base64.b64decode(normaliser["precompiled_charsmap"]))
    about = {name: value for name, value in normaliser.items() if name != "type"}
    return f"rewrites texts (normaliser {kind} {json.dumps(about, ensure_ascii=False)[:80]})"


def unusual_charsmap(content: bytes) -> str | None:
    """As `unusual_normaliser`, of a precompiled one."""
    try:
        for number, (key, replacement) in enumerate(charsmap(content)):
            before, after = key.decode(), replacement.decode()
            # A letter that Unicode got after our Python was made may become another letter, but no word.
            new_letter = len(after) == 1 and unicodedata.category(before[0]) == "Cn"
            if fold(before) != fold(after) and not new_letter:
                return f"rewrites texts (it makes {after!r} of {before!r})"
            if number > 1_000_000:  # The usual ones have some ten thousand.
                return "has a normaliser that is too large to be checked"
    except (UnicodeDecodeError, IndexError):
        return "has a damaged normaliser"
    return None


def unusual_pre_tokeniser(pre_tokeniser: dict) -> str | None:
    """How a pre-tokeniser leaves out parts of texts; None if it only divides them."""
    kind = pre_tokeniser["type"]
    if kind == "Metaspace" and BLANKS.fullmatch(pre_tokeniser["replacement"]):
        return None
    if kind in ("Punctuation", "Split") and pre_tokeniser["behavior"] != "Removed":
        return None
    if kind == "Split" and matches_blanks(pre_tokeniser["pattern"]) and not pre_tokeniser["invert"]:
        return None
    return f"may leave out parts of texts (pre-tokeniser {kind})"


def unusual_decoder(decoder: dict) -> str | None:
    """How a decoder gives a token another word's name, by which a scan misses it; None if it only puts pieces together."""
    kind = decoder["type"]
    if kind == "Replace" and matches_blanks(decoder["pattern"]) and not decoder["content"].strip():
        return None
    if kind == "Metaspace" and BLANKS.fullmatch(decoder["replacement"]):
        return None
    if kind == "Strip" and BLANKS.fullmatch(decoder["content"]):
        return None
    if kind == "BPEDecoder" and decoder["suffix"] == "</w>":
        return None
    return f"may call tokens by other words' names (decoder {kind})"


def matches_blanks(pattern: dict) -> bool:
    """Whether a pattern of the tokenizers library matches blanks, one or more of them, and nothing else."""
    if "String" in pattern:
        return bool(BLANKS.fullmatch(pattern["String"]))
    return bool(REGEX_OF_BLANKS.fullmatch(pattern.get("Regex", "")))


def fold(text: str) -> str:
    """A text without the differences that a normaliser may take away: compatibility forms, case, blanks, controls."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(char for char in text if unicodedata.category(char)[0] not in "CZ" and char not in "▁\ufffd")


def charsmap(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All replacements (from, to) of SentencePiece's precompiled normaliser, as UTF-8.

    It is a double-array trie (darts-clone, https://github.com/s-yata/darts-clone) of strings, each with the place of its
    replacement in the text behind the trie. No string of more than 5 bytes is ever looked up.
    """
    size = int.from_bytes(content[:4], "little")
    units, text = np.frombuffer(content[4 : 4 + size], "<u4").astype(np.int64), content[4 + size :]
    labels = np.arange(1, 256)

    def offset(unit: int) -> int:
        return (unit >> 10) << ((unit & 1 << 9) >> 6)

    nodes = [(b"", offset(int(units[0])))]
    while nodes:
        key, place = nodes.pop()
        inside = labels[(place ^ labels) < len(units)]
        for label in inside[(units[place ^ inside] & (1 << 31 | 0xFF)) == inside].tolist():
            unit, longer = int(units[place ^ label]), key + bytes([label])
            after = place ^ label ^ offset(unit)
            if unit >> 8 & 1:
                yield longer, text[int(units[after]) & (1 << 31) - 1 :].split(b"\0", 1)[0]
            if len(longer) < 5:
                nodes.append((longer, after))


def require_vocabulary(tokeniser, config: "transformers.PreTrainedConfig", source: str) -> None:
    """Raise a UserError if a tokeniser has a token for which the encoder has no embedding, only special tokens, or another
    padding token.

    Special tokens alone are what transformers makes of a folder without a vocabulary: every word is unknown to them.
    """
    vocabulary = tokeniser.get_vocab()
    if not vocabulary.keys() - set(tokeniser.all_special_tokens):
        raise UserError(
            f"the tokeniser in {source} has special tokens alone ({', '.join(vocabulary)}), so its vocabulary is missing; "
            "expected tokenizer.json or a file such as vocab.txt, or the folder of another with --tokeniser"
        )
    # Some encoders count positions by it, others leave its row out of the embedding.
    pads, expected = tokeniser.pad_token_id or 0, getattr(config, "pad_token_id", None)
    if expected not in (None, pads):
        raise UserError(
            f"the tokeniser in {source} pads with token {pads}, and the encoder's config.json says {expected}; expected the "
            "tokeniser that the encoder was trained with (--tokeniser)"
        )
    largest = max(vocabulary.values())
    if largest >= config.vocab_size:
        raise UserError(
            f"the tokeniser in {source} numbers its tokens up to {largest}, and the encoder has {config.vocab_size} "
            "embeddings, from 0; expected the tokeniser that the encoder was trained with (--tokeniser)"
        )
