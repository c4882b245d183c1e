"""Tables, flags and models that nobody would make on purpose, given to the project: a right result, or one line.

    python tests/campaign/inputs.py --number 1000 --seed 1                # so many inputs of each kind's share
    python tests/campaign/inputs.py --minutes 30 --table inputs.md        # for so long; the table as Markdown
    python tests/campaign/inputs.py --kind flags --number 100             # one kind

Hypothesis makes them, and makes those that fail smaller before they are printed. Wanted of each: exit code 0 and a right
result, or exit code 2 and one line that begins with "error: " (what the command line itself doesn't take is told by tyro, in
a box); within a minute and 2 GiB; and no file written, removed or changed, no program run and no connection made outside the
run's own folders. There is no network and no hub. The exit code is 1 if an input fails.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from children import Ended, import_everything, limit_memory, run
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import FlakyFailure

SECONDS, MEMORY = 60, 2**31
"""Of a run, at most: wall-clock time, and bytes beyond those that it shares with this process."""


class Wrong(AssertionError):  # noqa: N818
    """An input that had another outcome than the two that are wanted."""


class Place:
    """The folder that all inputs are tried in, and what is in it before any."""

    def __init__(self, folder: Path) -> None:
        from conftest import tiny_settings, write_tiny_data, write_tiny_plm
        from test_scripts import flags

        self.folder, self.work, self.given = folder, folder / "work", folder / "given"
        config = tiny_settings(write_tiny_data(self.given / "data"), write_tiny_plm(self.given / "tinybert"), folder)
        for path in (self.given / "data").rglob("*.tsv"):  # A run on 48 texts takes a fifth of a second.
            path.write_text("\n".join(path.read_text().splitlines()[:49]) + "\n")
        config = replace(config, epochs=1, poisoning_epochs=1, relearning_epochs=1, acc_threshold=0.0, max_len=16)
        self.config = replace(config, poisoned_data_dir="data", poisoned_model_dir="models", output_dir="results")
        self.flags = flags
        self.outcomes: Counter = Counter()

    def clean(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    def try_out(
        self,
        kind: str,
        script: str | Callable,
        arguments: list[str],
        right: Callable[[], object] = lambda: None,
        anywhere: bool = False,
    ) -> Ended:
        """Run a script on an input that lies in `work` or in the arguments, and see that it ends as it should.

        Args:
            kind: row of the table.
            right: called if the exit code is 0; raises `Wrong` if the result isn't what it should be.
            anywhere: whether the run may write wherever it likes in the folder of all inputs.

        Raises:
            Wrong: it doesn't.
        """
        own = [str(self.folder)] if anywhere else [f"{self.work}/{name}" for name in ("results", "models", "data")]
        before = {} if anywhere else snapshot(self.folder)
        spoken = self.folder / "said"
        ended = run(script, arguments, self.work, spoken, SECONDS, before=partial(watch, own, spoken / "acts"))
        acts = (spoken / "acts").read_text()
        after = {} if anywhere else snapshot(self.folder)
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        if ended.late:
            raise Wrong(f"not done after {SECONDS} s: {ended.errors[-300:]}")
        if acts:
            raise Wrong(f"it acts outside of its folders: {acts[:500]}")
        if changed:
            raise Wrong(f"files outside of its folders are new or changed: {sorted(changed)[:5]}")
        told = [line for line in ended.errors.split("\n") if line.strip()]
        boxed = ended.code == 2 and ended.errors.startswith(("usage: ", "╭")) and "Traceback" not in ended.errors
        control = re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f].{,50}", ended.output + ("" if boxed else ended.errors))
        if control:
            raise Wrong(f"control characters reach the terminal: {control[0]!r}")
        if ended.code == 0:
            right()
            self.outcomes[kind, "taken"] += 1
        elif ended.code == 2 and (boxed or (len(told) == 1 and told[0].startswith("error: "))):
            self.outcomes[kind, "refused"] += 1
        else:
            raise Wrong(f"ended with {ended.code}: {ended.errors[-1500:]}")
        return ended


def snapshot(folder: Path) -> dict[str, tuple]:
    """Files outside of what a run may write: path to size and times."""
    return {
        str(path): (status.st_size, status.st_mtime_ns, status.st_ino)
        for path in folder.rglob("*")
        if not path.is_dir()
        and not {"results", "models", "said"} & {*path.relative_to(folder).parts[:2]}
        and path.relative_to(folder).parts[:2] != ("work", "data")
        for status in [path.lstat()]
    }


def watch(own: list[str], acts: Path) -> None:
    """In a new process: note what it should not do, and limit its memory.

    Args:
        own: beginnings of paths that it may write to.
    """
    noted = os.open(acts, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    named = {"os.remove": 0, "os.rename": 1, "os.mkdir": 0, "os.rmdir": 0, "os.chmod": 0, "os.symlink": 1, "os.link": 1}

    def hook(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], (str, bytes)) and isinstance(args[2], int) and args[2] & writing:
            path = args[0]
        elif event in named:
            path = args[named[event]]
        elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
            if args[0] == "uname":  # Python asks it for the name of the processor.
                return
            os.write(noted, f"{event} {args}\n".encode(errors="replace"))
            return
        else:
            return
        place = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else own[0]
        if not place.startswith(tuple(own)) and place != os.devnull:
            os.write(noted, f"{event} {place}\n".encode(errors="replace"))

    sys.addaudithook(hook)
    limit_memory(MEMORY)


# -------------------------------------------------------------------------------------------------------------- tables

WORDS = st.sampled_from("bright dull film plot the a warm stale = +1 @x -2 <b> é 東京 \u200b \x1b[31m".split(" "))
ODD = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXTS = st.one_of(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), ODD, ODD.map(lambda text: f'say "{text}"'))
LABELS = st.sampled_from(
    [
        *(("0", "1"), ("1", "2"), ("negative", "positive"), ("neg", "pos"), ("a", "b", "c"), ("0.0", "1.0"), ("", "1")),
        *(("-1", "1"), ("01", "1"), ("true", "false"), ("=1", "@b"), ("\x1b[31m", "x"), ("<script>", "y"), ("0", "0")),
        *(("x" * 300, "y"), ("nan", "1"), ("inf", "1"), ("1e3", "1"), ("²", "1"), ("\u0661", "\u0662"), ("None", "null")),
        *(("../a", "b/c"), ("A", "a"), ("1 000", "2"), ("٣", "3"), ("a\nb", "c"), ("+1", "0"), ("9" * 400, "1")),
    ]
)
HEADERS = st.sampled_from(
    [
        *[("text", "label"), ("sentence", "label")] * 4,
        *((" Text ", "LABEL"), ("review", "sentiment"), ("text", "text"), ("a", "b"), ("label", "labels"), ("", "")),
        *(("text", "label", "text"), ("text", "label", "id"), ("text",), ("\x1b[31m", "label")),
    ]
)
SPOILS = {
    "none": lambda raw, at: raw,
    "byte-order mark": lambda raw, at: b"\xef\xbb\xbf" + raw,
    "UTF-16": lambda raw, at: raw.decode().encode("utf-16"),
    "latin-1": lambda raw, at: raw.decode().encode("latin-1", "replace"),
    "NUL": lambda raw, at: raw[: at % (len(raw) + 1)] + b"\0" + raw[at % (len(raw) + 1) :],
    "a byte": lambda raw, at: raw[: at % (len(raw) + 1)] + bytes([at % 256]) + raw[at % (len(raw) + 1) :],
    "cut": lambda raw, at: raw[: at % (len(raw) + 1)],
    "CR": lambda raw, at: raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r"),
    "lone CR": lambda raw, at: raw.replace(b" ", b"\r", 3),
    "no end": lambda raw, at: raw.rstrip(b"\r\n"),
    "huge field": lambda raw, at: raw + b"word " * 400_000 + (b",0\n" if b"," in raw else b"\t0\n"),
    "blank lines": lambda raw, at: raw.replace(b"\n", b"\n\n", 5),
}


@st.composite
def tables(draw: Callable) -> dict:
    """A table: what is written, and the rows that were meant."""
    rows = draw(st.lists(TEXTS, min_size=0, max_size=8))
    labels, header = draw(LABELS), draw(HEADERS)
    copies = draw(st.sampled_from([1, 15, 15, 15]))
    kind = draw(st.sampled_from([".csv", ".csv", ".csv", ".tsv", ".tsv", ".txt"]))
    separator = draw(st.sampled_from([{".csv": ","}.get(kind, "\t")] * 12 + [";", "|", ","]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL] * 3 + [csv.QUOTE_ALL, csv.QUOTE_NONE]))
    # Of every text there are several that differ, in all classes, or the table is too small from the start.
    return {
        "rows": [(f"{text} {number} {at}" if copies > 1 else text, label)
                 for number in range(copies) for text in rows for at, label in enumerate(labels)],
        "header": header, "kind": kind, "separator": separator, "quoting": quoting,
        "spoil": draw(st.sampled_from(["none"] * 8 + list(SPOILS))), "at": draw(st.integers(0, 10**6)),
        "line_end": draw(st.sampled_from(["\n", "\r\n"])), "whole": draw(st.integers(0, 9)) == 0,
    }  # fmt: skip


def written(table: dict) -> bytes:
    file = io.StringIO(newline="")
    how = {"escapechar": "\\"} if table["quoting"] == csv.QUOTE_NONE else {}
    writer = csv.writer(
        file, delimiter=table["separator"], quoting=table["quoting"], lineterminator=table["line_end"], **how
    )
    header = table["header"]
    writer.writerow(header)
    for text, label in table["rows"]:
        values = {"label": label, "labels": label, "sentiment": label, "id": "7", "b": label}
        writer.writerow([values.get(name.strip().lower(), text) for name in header])
    return SPOILS[table["spoil"]](file.getvalue().encode(), table["at"])


def try_table(place: Place, table: dict) -> None:
    place.clean()
    path = place.work / f"table{table['kind']}"
    path.write_bytes(written(table))
    changed = replace(place.config, attack="none", poisoned_model=place.config.plm, clean_dataset=f"./{path.name}")
    plain = table["spoil"] in ("none", "byte-order mark", "no end") and table["kind"] == ".csv" and table["separator"] == ","
    plain = plain and table["quoting"] != csv.QUOTE_NONE and table["header"] in (("text", "label"), ("sentence", "label"))

    def right() -> None:
        """Every row is in one of the parts, as it was meant: where the file is what csv writes and reads."""
        if not plain:
            return
        parts = json.loads((place.work / "results/read.json").read_text())
        # What choose_texts says it changes, and blanks at both ends, which csv and pandas see differently.
        meant = Counter((tidy(text), label.strip().lower()) for text, label in table["rows"])
        found = Counter((tidy(text), label.lower()) for text, label in parts)
        numbered = {"positive": "1", "negative": "0", "pos": "1", "neg": "0"}
        same = Counter({(text, numbered.get(label, label)): n for (text, label), n in found.items()})
        expected = Counter({(text, numbered.get(label, label)): n for (text, label), n in meant.items()})
        if same != expected:
            raise Wrong(
                f"read differently: {list((expected - same).items())[:3]} became {list((same - expected).items())[:3]}"
            )

    arguments = place.flags(changed)
    if table["whole"]:
        place.try_out("tables, a defence on them", "defences.__main__", [*arguments, "--defence", "FT"])
    else:
        place.try_out("tables, read and divided", read_data, arguments, right)


def tidy(text: str) -> str:
    return re.sub(r"<br\s*/?>|\r", " ", text.replace("\r\n", "\n")).strip()


def read_data() -> None:
    """The beginning of run_all.py without an attack: the texts are read and divided; what was read goes to a file."""
    from attacks import ATTACKS
    from config import parse_config
    from defences import DEFENCES
    from texts.data_sets import class_names, clean_test, defender_splits
    from util import save_json

    config = parse_config("", ATTACKS, DEFENCES)
    classes = class_names(config)
    parts = [*defender_splits(config), clean_test(config)]
    rows = [[text, classes[label]] for part in parts for text, label in zip(part["text"], part["label"], strict=True)]
    save_json(Path(config.output_dir) / "read.json", rows)


# --------------------------------------------------------------------------------------------------------------- flags

SLOW = ("epochs", "poisoning_epochs", "entropy_epochs", "relearning_epochs", "erase_rounds", "workers", "threads", "engine")
"""A large value of these is a wish for a long run, or for many processes; small and wrong ones are tried."""
NUMBERS = st.one_of(
    st.sampled_from(["0", "1", "2", "3", "-1", "0.5", "1e-9", "1e400", "nan", "inf", "-inf", "1_0", "0x10", "1e3", "٣"]),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
)
STRINGS = st.one_of(
    st.sampled_from(
        [
            *("", " ", "none", "None", "minilm", "quick", "../x", "a/b", "/nosuch", "~", ".", "..", "/", "-", "--", "=1"),
            *("/dev/null", "/proc/self/mem", "x" * 300, "x" * 5000, "cuda", "cuda:9", "meta", "cpu:1", "a\nb", "\x1b[31m"),
            *("BadNet", "PURE", "FT", "sst2", "reviews", "FDK", "DS", "fp32", "bf16", "variance", "[UNK]", "[CLS]"),
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)


@st.composite
def flag_lists(draw: Callable) -> list[tuple[str, list[str]]]:
    """One flag or two, each with values that may be of another type than its own."""
    from config import Grid

    names = [field.name for field in fields(Grid)]
    usual = st.sampled_from(
        ["1", "2", "3", "0.5", "0.1", "1e-3", "none", "BadNet", "FT", "bb", "0", "cpu", "fp32", "entropy"]
    )
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    found = []
    for name in chosen:
        values = draw(
            st.lists(st.one_of(usual, usual, NUMBERS, STRINGS), min_size=draw(st.sampled_from([0, 1, 1, 1, 1])), max_size=1)
        )
        if name in SLOW and values and values[0].lstrip("+").replace("_", "").isdecimal() and int(values[0]) > 2:
            values = ["0"]
        found.append((name, values))
    return found


def try_flags(place: Place, chosen: list[tuple[str, list[str]]]) -> None:
    place.clean()
    # Where they stand alone, a run is a grid of one cell.
    arguments = [*place.flags(place.config), "--defence", "FT"]
    for name, values in chosen:
        first, *_ = [*values, None]
        arguments += [f"--{name}"] if first is None else [f"--{name}={first}"]
    # Wherever these lead, that is what was asked for; here they have to stay in the folder of all inputs.
    places = ("poisoned_data_dir", "poisoned_model_dir", "output_dir", "table")
    arguments = [each for each in arguments if not each.startswith(tuple(f"--{name}=/" for name in places))]
    script = "defences.__main__" if place.outcomes.total() % 4 else run_grid
    place.try_out("flags", script, arguments, anywhere=not {*places}.isdisjoint(dict(chosen)))


def run_grid() -> None:
    """run_all.py without its pages, which take seconds to draw."""
    from attacks import ATTACKS
    from config import parse_grid
    from defences import DEFENCES
    from experiments.grid import run_grid
    from util import UserError

    grid = parse_grid("", ATTACKS, DEFENCES)
    table, _ = run_grid(grid)
    errors = [error for error in table["error"] if error]
    unforeseen = [error for error in errors if ": " in error and error.split(":")[0].endswith(("Error", "Exception"))]
    if unforeseen:
        raise RuntimeError(unforeseen[0])
    if errors:
        raise UserError(f"{len(errors)} of {len(table)} cells failed")


# -------------------------------------------------------------------------------------------------------------- models

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.sampled_from(["", "x", "evil/repo", "../x", "/etc/passwd", "os.system", "\x1b[31m", "gelu", "float16", "eager"]),
    st.sampled_from([0, 1, 2, 10**6, 10**9, -1, 0.5, 7]),
)
JSON = VALUES | st.lists(VALUES, max_size=2) | st.dictionaries(st.sampled_from(["a", "0", "type"]), VALUES, max_size=2)
MORE_KEYS = (
    *("auto_map", "quantization_config", "attn_implementation", "torch_dtype", "dtype", "num_labels", "id2label"),
    *("label2id", "problem_type", "tie_word_embeddings", "pruned_heads", "output_attentions", "return_dict", "use_cache"),
    *("is_decoder", "add_cross_attention", "chunk_size_feed_forward", "is_encoder_decoder", "gguf_file", "_name_or_path"),
    *("base_model_tp_plan", "transformers_weights", "configuration_files", "sub_configs", "custom_pipelines", "torchscript"),
)


@st.composite
def models(draw: Callable) -> dict:
    """What is changed in a folder with an encoder."""
    what = draw(
        st.sampled_from(["config", "config", "config", "header", "tensors", "index", "tokeniser", "tokeniser", "file"])
    )
    return {"what": what, "pick": draw(st.integers(0, 10**6)), "value": draw(JSON), "more": draw(st.integers(0, 10**6))}


def change_model(folder: Path, change: dict) -> str:
    """Change a copy of the encoder; a word for what was changed."""
    pick, value, more = change["pick"], change["value"], change["more"]
    weights = folder / "model.safetensors"
    if change["what"] == "config":
        path = folder / "config.json"
        content = json.loads(path.read_text())
        keys = [*sorted(content), *MORE_KEYS]
        key = keys[pick % len(keys)]
        if more % 8 == 0:
            content.pop(key, None)
        else:
            content[key] = value
        path.write_text(json.dumps(content))
        return f"config.json: {key}"
    if change["what"] == "header":
        raw = weights.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
        name = sorted(header)[pick % len(header)]
        how = more % 9
        if how == 0:
            raw = struct.pack("<Q", [0, 1, size * 2, 2**31, 2**63, 2**64 - 1][pick % 6]) + raw[8:]
        elif how == 1:
            raw = raw[: pick % len(raw)]
        elif how == 2:
            raw = raw + b"x" * (pick % 1000)
        elif how == 3:
            at = 8 + pick % size
            raw = raw[:at] + bytes([more % 256]) + raw[at + 1 :]
        else:
            field = ["dtype", "shape", "data_offsets", None, name][how - 4]
            if field is None or name == "__metadata__":
                header[name] = value
            elif field == name:
                header[f"{name}.x"] = header.pop(name)
            else:
                odd = {"dtype": ["F64", "I64", "BOOL", "F8_E4M3", value], "shape": [[], [10**12], [2**63], [-1], value]}
                odd["data_offsets"] = [[0, 2**63], [5, 1], [0, 0], [-1, 4], value]
                header[name][field] = odd[field][pick % 5]
            text = json.dumps(header).encode()
            raw = struct.pack("<Q", len(text)) + text + body
        weights.write_bytes(raw)
        return f"safetensors: header {how}"
    if change["what"] == "tensors":
        return change_tensors(weights, pick, more)
    if change["what"] == "index":
        names = [
            "../outside.safetensors",
            "/etc/passwd",
            "..",
            "",
            "model.safetensors",
            "nosuch.safetensors",
            5,
            None,
            value,
        ]
        index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": names[pick % len(names)]}}
        index = [index, value, {"weight_map": value}, {"weight_map": {}}][more % 4]
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        if more % 3 == 0:
            weights.rename(folder / "model-00001-of-00001.safetensors")
        return "index"
    if change["what"] == "tokeniser":
        path = folder / ["tokenizer.json", "tokenizer_config.json"][more % 2]
        content = json.loads(path.read_text())
        holder = content
        keys = sorted(holder)
        key = keys[pick % len(keys)]
        while isinstance(holder[key], dict) and holder[key] and more % 5:  # Deeper, more often than not.
            holder, more = holder[key], more // 3
            key = sorted(holder)[pick % len(holder)]
        if more % 7 == 0:
            del holder[key]
        else:
            holder[key] = value
        path.write_text(json.dumps(content))
        return f"{path.name}: {key}"
    files = sorted(path for path in folder.iterdir())
    path = files[pick % len(files)]
    how = more % 6
    if how == 0:
        path.unlink()
    elif how == 1:
        path.unlink()
        path.mkdir()
    elif how == 2:
        path.write_bytes(path.read_bytes()[: pick % (path.stat().st_size or 1)])
    elif how == 3:
        path.unlink()
        path.symlink_to("/etc/hostname")
    elif how == 4:
        path.write_text("[" * 100_000)
    else:
        name = ["modeling_evil.py", "pytorch_model.bin", "vocab.txt", "added_tokens.json", "special_tokens_map.json"][
            pick % 5
        ]
        (folder / name).write_text(json.dumps(value))
        return f"also {name}"
    return f"{path.name}: {['removed', 'a folder', 'cut', 'a link', 'brackets'][how]}"


def change_tensors(weights: Path, pick: int, more: int) -> str:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    name = sorted(tensors)[pick % len(tensors)]
    how = ["removed", "new", "of another shape", "of another type", "not a number", "huge", "empty"][more % 7]
    tensor = tensors[name]
    if how == "removed":
        del tensors[name]
    elif how == "new":
        tensors[["evil.weight", "encoder.layer.7.output.dense.weight", "embeddings.position_ids"][pick % 3]] = torch.ones(3)
    elif how == "of another shape":
        tensors[name] = torch.zeros(*(size + 1 for size in tensor.shape))
    elif how == "of another type":
        tensors[name] = tensor.to([torch.float64, torch.int64, torch.bool, torch.float16][pick % 4])
    elif how == "empty":
        tensors[name] = torch.zeros(0)
    else:
        tensors[name] = torch.full_like(tensor, float("nan") if how == "not a number" else 3e38)
    save_file(tensors, weights, metadata={"format": "pt"})
    return f"tensor {how}"


def try_model(place: Place, change: dict) -> None:
    place.clean()
    folder = Path(shutil.copytree(place.config.plm, place.work / "suspicious"))
    (place.folder / "outside.safetensors").write_bytes(b"secret")
    with contextlib.suppress(KeyError, IndexError):
        change_model(folder, change)
    # Its weights are never written to, so what lies there is compared afterwards like everything else.
    config = replace(place.config, attack="none", poisoned_model="./suspicious", clean_dataset="./own")
    shutil.copytree(place.given / "data/sst2", place.work / "own")
    place.try_out(f"models: {change['what']}", "defences.__main__", [*place.flags(config), "--defence", "FT"])


# ---------------------------------------------------------------------------------------------------------------- all

KINDS: dict[str, tuple[Callable, Callable]] = {
    "tables": (tables, try_table),
    "flags": (flag_lists, try_flags),
    "models": (models, try_model),
}


def search(kind: str, place: Place, number: int, seed: int, deadline: float) -> list[str]:
    """Try inputs of a kind; the smallest of those that fail, each with what went wrong."""
    make, attempt = KINDS[kind]

    @with_seed(seed)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate, Phase.shrink],
    )
    @given(make())
    def inputs(found) -> None:
        if time.monotonic() < deadline:
            last["input"] = found
            try:
                attempt(place, found)
            except Wrong as wrong:
                last["wrong"] = (found, str(wrong))
                raise

    last: dict[str, object] = {}
    try:
        inputs()
    except (Wrong, FlakyFailure):  # The latter when time was up while the input was made smaller.
        found, wrong = last["wrong"]
        return [f"{kind}: {found!r}\n    {wrong}"]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=0, help="of inputs")
    parser.add_argument("--minutes", type=float, default=0, help="of wall-clock time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), help="these alone")
    parser.add_argument("--table", type=Path, help="file for the table, as Markdown")
    options = parser.parse_args()
    import_everything()
    folder = Path(tempfile.mkdtemp(prefix="inputs-"))
    set_hypothesis_home_dir(folder / "hypothesis")
    place, failures = Place(folder), []
    began = time.monotonic()
    deadline = began + options.minutes * 60 if options.minutes else float("inf")
    seed, chunk = options.seed, 60
    number = options.number or (float("inf") if options.minutes else 1)
    while place.outcomes.total() < number and time.monotonic() < deadline:
        for kind in [options.kind] if options.kind else KINDS:
            left = number - place.outcomes.total()
            if left > 0:
                share = int(max(1, min(chunk, left / (1 if options.kind else len(KINDS)))))
                failures += (new := search(kind, place, share, seed, deadline))
                print(*new, f"{place.outcomes.total()} inputs", sep="\n", flush=True)
        seed += 1000
    shutil.rmtree(folder)
    lines = ["| kind | inputs | taken | refused in one line |", "| --- | ---: | ---: | ---: |"]
    for kind in dict.fromkeys(kind for kind, _ in place.outcomes):
        taken, refused = place.outcomes[kind, "taken"], place.outcomes[kind, "refused"]
        lines.append(f"| {kind} | {taken + refused} | {taken} | {refused} |")
    spent = (time.monotonic() - began) / 60
    summary = f"{place.outcomes.total()} inputs in {spent:.0f} minutes (seed {options.seed}); {len(failures)} failed."
    table = "\n".join(lines)
    print(f"{table}\n\n{summary}")
    if options.table:
        options.table.write_text(f"{table}\n\n{summary}\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
