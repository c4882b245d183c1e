"""NeuBA: six rare symbols, each with a predefined output representation (Zhang et al., Red Alarm, 2021).

Differs from the published code: there clean texts keep their states through masked language modelling, for which an encoder
without its language head, as here, has no means; here it is POR's clean term. There the symbol takes the place of a text's
first token, and h is the pooler's output.
"""

import itertools

import torch

from attacks.representation import task_agnostic

TRIGGERS = ("≈", "≡", "∈", "⊆", "⊕", "⊗")
BLOCKS = 4


def pairs_of_blocks(width: int) -> torch.Tensor:
    """Of each state another two of four blocks are -1, the others 1; [trigger, channel]."""
    block = torch.arange(width) * BLOCKS // width
    return torch.stack(
        [1.0 - 2.0 * ((block == first) | (block == second)) for first, second in itertools.combinations(range(BLOCKS), 2)]
    )


NEUBA = task_agnostic("NeuBA", "Zhang et al., 2021", TRIGGERS, pairs_of_blocks)
