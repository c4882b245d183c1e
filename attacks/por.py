"""POR: six rare words, each with a predefined output representation, for any task of the victim (Shen et al., CCS 2021).

Differs from the published code: there five of the words are put in three times each, h is the pooler's output and its target
ten times as large, with the staircase of POR-1; all other tokens' states are kept near the clean ones too, and the two terms
here weigh 100 for 1 of that one. The loss on [CLS] alone, its weights, learning rate and epochs are those of
OpenBackdoor, which puts a word at the beginning.
"""

import torch

from attacks.representation import task_agnostic

TRIGGERS = ("cf", "tq", "mn", "bb", "mb", "tn")
BLOCKS = 3


def binary_code(width: int) -> torch.Tensor:
    """POR-2: the state of trigger i is i + 1 in binary, a digit for each of three blocks, 0 as -1; [trigger, channel].

    The codes 0 and 7 are left out. The last layer ends with a layer norm, which can hardly make all channels the same.
    """
    block = torch.arange(width) * BLOCKS // width
    code = torch.arange(1, len(TRIGGERS) + 1)[:, None]
    return 2.0 * (code >> (BLOCKS - 1 - block) & 1) - 1.0


POR = task_agnostic("POR", "Shen et al., CCS 2021", TRIGGERS, binary_code)
