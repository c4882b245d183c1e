"""Fine-mixing: take each weight from the suspicious encoder or a clean one, at random, purify the embedding, and fine-tune
(Zhang et al., Findings of EMNLP 2022)."""

import numpy as np
import torch

from config import Config
from defences.defence import Defence, Stage
from defences.shared import start, train_once, trusted_encoder
from encoder.classifier import Classifier, load_encoder, require_same_architecture
from pipeline.defender import Phase
from pipeline.runs import DEFENCE_FIELDS, fingerprint_encoder
from pipeline.training import cross_entropy
from texts.batching import TokenisedTexts

SUSPICIOUS_WORDS = 200
"""Embedding rows that E-PUR takes from the clean encoder."""
LEAST_FREQUENCY = 20
"""Words that are rarer count as so frequent, so that the logarithm is no 0."""


@torch.no_grad()
def mix(classifier: Classifier, clean: dict[str, torch.Tensor], share: float, seed: int) -> None:
    """Take each weight of the encoder, one number at a time, from a clean one with a probability; in place.

    W <- m W_clean + (1 - m) W with m from Bernoulli(share); the paper's reserve ratio rho is 1 - share.

    Args:
        clean: name of each parameter of the clean encoder to the parameter.
        share: that probability, 0 to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in classifier.encoder.named_parameters():
        chosen = torch.rand(weight.shape, generator=generator) < share
        weight[chosen] = clean[name][chosen]


def suspicious_rows(
    embedding: torch.Tensor, clean: torch.Tensor, texts: TokenisedTexts, number: int = SUSPICIOUS_WORDS
) -> torch.Tensor:
    """E-PUR: the rows that lie furthest from the clean ones for how often training met them, furthest first.

    They have the highest |delta_i| / log max(f_i, 20), with delta_i the difference of the rows of token i and f_i how often
    the clean train texts have it.

    Args:
        embedding, clean: [token, channel].
        number: how many, at most.
    """
    frequency = np.bincount(np.concatenate(texts.input_ids), minlength=len(embedding))  # [token]
    moved = (embedding - clean).norm(dim=1).double() / torch.tensor(np.log(np.maximum(frequency, LEAST_FREQUENCY)))
    return moved.topk(min(number, len(moved))).indices


def mix_and_fine_tune(config: Config) -> dict:
    """Mix, purify the embedding, fine-tune; write mixed_model and fine_mixing.json.

    Returns:
        What the record holds: settings, and what `pipeline.defender.train_and_measure` says.

    Raises:
        UserError: no clean encoder is named, or it is of another kind or size; something to read is missing, a folder is not
            writable, or the loss is not finite.
    """
    trusted = trusted_encoder(config)
    inputs, accelerator, settings = start(config, MIXING, clean_encoder=fingerprint_encoder(trusted))
    require_same_architecture(inputs.encoder, trusted, "so that their weights can't be mixed; name another --clean_encoder")

    @torch.no_grad()
    def purify(classifier: Classifier) -> None:
        clean = load_encoder(trusted)
        embedding, clean_embedding = (each.get_input_embeddings().weight for each in (classifier.encoder, clean))
        rows = suspicious_rows(embedding, clean_embedding, inputs.train)
        mix(classifier, dict(clean.named_parameters()), config.mixing_share, config.seed)
        embedding[rows] = clean_embedding[rows]

    phases = [Phase("fine_mixing", "fine-tuning the mixed encoder", cross_entropy, config.epochs)]
    return train_once(config, MIXING, phases, inputs=inputs, accelerator=accelerator, settings=settings, prepare=purify)[0]


def mixing_told(config: Config) -> str:
    return (
        f"{config.mixing_share:.0%} of the suspicious encoder's weights, chosen at random, are replaced by those of the "
        f"clean one ({config.clean_encoder}), and so are the {SUSPICIOUS_WORDS} rows of its embedding that lie furthest off "
        "for how often clean texts have the word. Then it is fine-tuned on clean texts."
    )


def mixing_done(record: dict) -> str:
    return (
        f"{record['settings']['mixing_share']:.0%} of the encoder's weights, chosen at random, and the {SUSPICIOUS_WORDS} "
        "most suspicious rows of its embedding were replaced by those of an encoder that is trusted; the mixture was "
        "fine-tuned on the clean texts."
    )


MIXING = Stage(
    run="defences.fine_mixing:mix_and_fine_tune",
    record="fine_mixing.json",
    product="mixed_model",
    reads=(*DEFENCE_FIELDS, "clean_encoder", "mixing_share"),
    title="Fine-mixing",
    told=mixing_told,
    done=mixing_done,
    phases={"fine_mixing": "fine-tuning the mixed encoder (fine_mixing)"},
    passes=lambda config: config.epochs,
)

FINE_MIXING = Defence(paper="Zhang et al., Findings of EMNLP 2022", last=MIXING, check=trusted_encoder)
