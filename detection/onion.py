"""ONION: a word without which a language model finds the text likelier (Qi et al., EMNLP 2021); needs such a model."""

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from detection.detector import Detector, Scores, Watched
from encoder.classifier import load_config, load_tokeniser
from encoder.trusted import local_folder
from texts.batching import TokenisedTexts, batches_by_length, tokens_per_batch
from util import UserError, first_line


def load_language_model(source: str) -> tuple[PreTrainedModel, object]:
    """A causal language model and its tokeniser, from safetensors.

    Raises:
        UserError: not there, corrupt, none that generates text, or no token to begin a text with.
    """
    folder = local_folder(source)
    config, tokeniser = load_config(source), load_tokeniser(source)
    # A masked one has all weights of a causal one, but each token sees itself.
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UserError(
            f"{source} holds a {config.model_type} that sees the whole text (a masked language model, or an encoder); "
            "expected a causal language model, such as GPT-2 (--language_model)"
        )
    if first_token(tokeniser) is None:
        raise UserError(
            f"the tokeniser in {source} has no bos_token and no eos_token, one of which stands before a text; expected "
            "that of a causal language model, such as GPT-2 (--language_model)"
        )
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        if info["missing_keys"]:  # An encoder, say: its language head would be drawn at random.
            raise ValueError(f"it lacks {sorted(info['missing_keys'])[0]}")
    except UserError:
        raise
    except Exception as error:  # Nobody knows what a mistyped value leads to.
        raise UserError(
            f"no language model can be loaded from {source}: {first_line(error)}; expected a causal one, such as GPT-2, as "
            "save_pretrained writes it (--language_model)"
        ) from None
    return model.eval(), tokeniser


def first_token(tokeniser) -> int | None:
    """The token before each text, without which its first word would be given for nothing; None: there is none."""
    return tokeniser.bos_token_id if tokeniser.bos_token_id is not None else tokeniser.eos_token_id


@torch.inference_mode()
def perplexities(model: PreTrainedModel, tokeniser, texts: list[str], max_len: int, device: torch.device) -> np.ndarray:
    """exp of the mean negative log-likelihood of a text's tokens, [text]; each has the beginning of a text before it."""
    first = first_token(tokeniser)
    encoded = [list(tokeniser(text, add_special_tokens=False)["input_ids"])[: max_len - 1] for text in texts]
    rows = TokenisedTexts([[first, *ids] for ids in encoded], [0] * len(texts), first)
    result = np.ones(len(texts))  # Of a text without tokens.
    for indices in batches_by_length(rows.lengths, tokens_per_batch(device)):
        batch = rows.batch(indices, device)
        ids, mask = batch["input_ids"], batch["attention_mask"][:, 1:]
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        likelihood = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) * mask  # [batch, token]
        result[indices] = (-likelihood.sum(1) / mask.sum(1).clamp_min(1)).exp().cpu().numpy()
    return result


def fit(watched: Watched, clean: pd.DataFrame) -> Scores:
    """The score is the largest fall of perplexity that leaving out one word makes; nothing is fitted."""
    device = watched.classifier.head.weight.device
    model, tokeniser = load_language_model(watched.language_model)
    model.to(device)

    def scores(texts: list[str]) -> np.ndarray:
        result = np.zeros(len(texts))
        for index, text in enumerate(texts):
            words = text.split()
            shorter = [" ".join([*words[:at], *words[at + 1 :]]) for at in range(len(words))]
            if len(words) > 1:
                found = perplexities(model, tokeniser, [" ".join(words), *shorter], watched.max_len, device)
                result[index] = (found[0] - found[1:]).max()
        return result

    return scores


ONION = Detector(paper="Qi et al., EMNLP 2021", fit=fit, needs_language_model=True)
