"""Where a word trigger acts: LFR of a finished run's models while [CLS] can't see the trigger, in one layer or in all.

    python -m reporting.trigger_path --attack LayerWise --seed 12          # the flags that made the run

For each layer: how much of [CLS]'s attention the trigger gets, and LFR if it got none there. Where LFR falls, the backdoor
passes; where it stays high with the trigger hidden in every layer, other tokens carry it to [CLS]. For attacks that insert
words, and for analysis: a defender knows no trigger.
"""

# Before torch, which reads when it is loaded how its threads are to wait.
from util import UserError, make_accelerator, run_script, write_whole

# isort: split
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence

from attacks import ATTACKS
from attacks.planted import read_poisoned
from config import Config, parse_config
from defences import DEFENCES
from defences.defence import defended_model_folder, run_folder
from defences.fine_tuning import fine_tuned_model_folder
from encoder.classifier import Classifier, load_classifier, load_tokeniser
from pipeline.runs import command
from reporting.analysis import find_all, has_target, other_classes, tokens_within
from texts.batching import TokenisedTexts, batches_by_length, tokens_per_batch

ALL, NONE = "all", "none"


def tokenise_marked(
    table: pd.DataFrame, tokeniser, triggers: tuple[str, ...], max_len: int
) -> tuple[TokenisedTexts, list[torch.Tensor]]:
    """Tokenised texts, and of each its tokens that are part of a trigger, booleans [token].

    Raises:
        UserError: the tokeniser doesn't tell which characters its tokens stand for.
    """
    if not tokeniser.is_fast:
        raise UserError(f"{type(tokeniser).__name__} doesn't tell where in a text its tokens are; expected a fast tokenizer")
    texts = [text.strip() for text in table["text"]]
    encoded = tokeniser(texts, truncation=True, max_length=max_len, padding=False, return_offsets_mapping=True)
    marks = []
    for text, offsets in zip(texts, encoded["offset_mapping"], strict=True):
        places = [place for trigger in triggers for place in find_all(text, trigger)]
        marks.append(torch.tensor(tokens_within(places, offsets)))
    return TokenisedTexts(encoded["input_ids"], table["label"].tolist(), tokeniser.pad_token_id or 0), marks


@torch.inference_mode()
def flip_rate_without(
    classifier: Classifier,
    texts: TokenisedTexts,
    marks: list[torch.Tensor],
    layers: list[int],
    target_class: int,
    accelerator: Accelerator,
) -> tuple[float, torch.Tensor]:
    """LFR with the marked tokens hidden from [CLS] in some layers, and what attention [CLS] gives them then.

    Args:
        texts: of classes other than the target class.
        marks: of each text, booleans [token].

    Returns:
        LFR; [layer, head], the sum of [CLS]'s attention to a text's marked tokens, mean over texts.
    """
    classifier.eval()
    device = classifier.head.weight.device
    flipped, attended = 0, 0
    with accelerator.autocast(), classifier.attention.record() as rows:
        for indices in batches_by_length(texts.lengths, tokens_per_batch(device)):
            batch = texts.batch(indices, device)
            marked = pad_sequence([marks[index] for index in indices], batch_first=True).to(device)
            with classifier.attention.hide(dict.fromkeys(layers, marked)):
                logits = classifier(batch["input_ids"], batch["attention_mask"])
            flipped += int((logits.argmax(-1) == target_class).sum())
            attended = attended + torch.stack([(row * marked[:, None]).sum((0, 2)) for row in rows]).cpu()
    return flipped / len(texts), attended / len(texts)


def trace(config: Config) -> pd.DataFrame:
    """Measure the fine-tuned and the defended model of a finished run; write trigger_path.csv beside the defended one.

    Returns:
        A row per model and hidden_in, the layer in which [CLS] can't see the trigger, or `none`, or `all`: model, hidden_in,
        LFR; for a layer, mean_attention and largest_attention too: [CLS]'s attention to the trigger there while nothing is
        hidden, mean and maximum over remaining heads.

    Raises:
        UserError: the attack inserts no words, or the run isn't finished.
    """
    triggers = ATTACKS[config.attack].data.inserted(config) if config.attack in ATTACKS else ()
    if not triggers:
        words = ", ".join(name for name, attack in ATTACKS.items() if attack.data.inserted(config))
        raise UserError(f"{config.attack} inserts no trigger words that could be hidden from [CLS]; expected {words}")
    if not has_target(config):
        raise UserError(f"{config.attack} has no target class, for which LFR here is the share taken; expected one that has")
    accelerator = make_accelerator(config.device, config.precision)
    folders = {"FT": fine_tuned_model_folder(config), config.defence: defended_model_folder(config)}
    for folder in folders.values():
        if not folder.exists():
            raise UserError(f"no model in {folder}; make it with: {command('run_all.py', config)}")
    test = read_poisoned(config, "test")
    table = other_classes(test, config.target_class, len(test))
    rows = []
    for name, folder in folders.items():
        texts, marks = tokenise_marked(table, load_tokeniser(str(folder)), triggers, config.max_len)
        classifier = load_classifier(folder).to(accelerator.device)
        kept = classifier.attention.head_mask()
        for hidden_in in (NONE, *range(len(kept)), ALL):
            layers = {NONE: [], ALL: list(range(len(kept)))}.get(hidden_in, [hidden_in])
            rate, attended = flip_rate_without(classifier, texts, marks, layers, config.target_class, accelerator)
            row = {"model": name, "hidden_in": hidden_in, "LFR": rate}
            if hidden_in == NONE:
                undisturbed = attended
            elif hidden_in != ALL:
                heads = undisturbed[hidden_in][kept[hidden_in]]
                row |= {"mean_attention": heads.mean().item(), "largest_attention": heads.max().item()}
            rows.append(row)
    table = pd.DataFrame(rows)
    write_whole(path_of(config), lambda temporary: table.to_csv(temporary, index=False))
    return table


def path_of(config: Config) -> Path:
    return run_folder(config) / "trigger_path.csv"


def main() -> None:
    config = parse_config(__doc__, ATTACKS, DEFENCES)
    table = trace(config)
    print(table.to_string(index=False, float_format="{:.3f}".format, na_rep=""))
    print(f"written to {path_of(config)}")


if __name__ == "__main__":
    run_script(main)
