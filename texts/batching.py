"""Tables of text to batches of tokens: tokenised once, grouped by length, padded to the longest of a batch only."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

if TYPE_CHECKING:  # Seconds to import, and a finished run needs none of it.
    import transformers


@dataclass(frozen=True)
class TokenisedTexts:
    """Texts, tokenised once; `batch` pads those of a batch to the longest among them and never further."""

    input_ids: list[list[int]]
    labels: list[int]
    pad_token_id: int
    closing: int = 1
    """Special tokens at a text's end: [SEP], or none. At its front is [CLS]."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """[text], in tokens."""
        return np.array([len(ids) for ids in self.input_ids])

    def own(self, ids: list[int]) -> list[int]:
        """A text's own tokens: those between the special ones."""
        return ids[1 : len(ids) - self.closing]

    def together(self, own: list[int], like: list[int], longest: int) -> list[int]:
        """A text of other tokens between the special ones of `like`; of more than `longest` in all the last are left out."""
        return [like[0], *own[: longest - 1 - self.closing], *like[len(like) - self.closing :]]

    def select(self, indices: np.ndarray) -> "TokenisedTexts":
        """Some of the texts, in the order of `indices`."""
        ids, labels = ([values[index] for index in indices] for values in (self.input_ids, self.labels))
        return replace(self, input_ids=ids, labels=labels)

    def batch(self, indices: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` [batch, key], `labels` [batch]."""
        rows = [torch.tensor(self.input_ids[index]) for index in indices]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        labels = torch.tensor([self.labels[index] for index in indices])
        return {
            "input_ids": input_ids.to(device),
            "attention_mask": attention_mask.to(device),
            "labels": labels.to(device),
        }


def shortest_of_others(texts: TokenisedTexts, target: int, at_most: int, fewest: int) -> np.ndarray:
    """Numbers of the texts of all classes but `target` that have `at_most` tokens, the shortest first.

    Args:
        fewest: how many these are at least, as far as there are so many texts of these classes; longer ones then.
    """
    others, lengths = np.flatnonzero(np.array(texts.labels) != target), texts.lengths
    others = others[np.argsort(lengths[others], kind="stable")]
    return others[: max(fewest, int((lengths[others] <= at_most).sum()))]


def renumber(*sets: TokenisedTexts) -> tuple[list[TokenisedTexts], np.ndarray]:
    """The same texts with their tokens numbered 0, 1, 2 ..., and the tokens [new number] that they use together.

    The padding token keeps its number, since some encoders count positions by it.
    """
    padding = np.arange(sets[0].pad_token_id + 1)
    used = np.unique(np.concatenate([padding, *(ids for texts in sets for ids in texts.input_ids)]))
    return [
        replace(texts, input_ids=[np.searchsorted(used, ids).tolist() for ids in texts.input_ids]) for texts in sets
    ], used


def tokenise(table: pd.DataFrame, tokenizer: "transformers.PreTrainedTokenizerBase", max_len: int) -> TokenisedTexts:
    """Tokenise a table once, special tokens included, cut at `max_len`; blanks at both ends of a text don't count."""
    texts = [text.strip() for text in table["text"]]
    encoded = tokenizer(texts, truncation=True, max_length=max_len, padding=False)
    labels, closing = [int(label) for label in table["label"]], tokenizer.num_special_tokens_to_add() - 1
    return TokenisedTexts(encoded["input_ids"], labels, tokenizer.pad_token_id or 0, closing)


def shuffled_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Every text once, in random batches of similar length.

    The texts are shuffled, pools of 50 batches are sorted by length and cut, and the batches are shuffled: which texts share
    a batch differs every epoch, and next to no padding is left. A function of seed and epoch alone, so that a resumed run
    sees the same batches.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), 50 * batch_size):
        pool = order[start : start + 50 * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def tokens_per_batch(device: torch.device) -> int:
    """A batch size for evaluation: activations of this many tokens stay in a CPU's cache, or fill a GPU."""
    return 1024 if device.type == "cpu" else 16384


def batches_by_length(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Every text once, longest first (memory runs out at once or never), at most `tokens` tokens a batch."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(1, tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]
