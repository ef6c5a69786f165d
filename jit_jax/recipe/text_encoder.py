"""Frozen text models of `transformers`, which make embeddings of captions.

PyTorch runs them, before training: nothing here is part of a step.
"""

import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from jit_jax import data
from jit_jax.data.captions import clean
from jit_jax.errors import UserError

MODELS = {  # the class of the text model, by the model_type of a config
    't5': 'T5EncoderModel',
    'mt5': 'MT5EncoderModel',
    'umt5': 'UMT5EncoderModel',
    'clip': 'CLIPTextModel',
    'clip_text_model': 'CLIPTextModel',
}


class TextEncoder:
    """A text model and its tokenizer.

    Attributes:
      width: E, of an embedding.
      limit: the most tokens of a caption that the model takes; None where there is no limit.

    name: of a model of the Hugging Face Hub, or its folder. Raises UserError, which begins with
    `flag`, where transformers is missing, or the model, or it is of another kind.
    """

    def __init__(self, name: str, flag: str):
        for package in ('transformers', 'torch'):
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f'{flag}: text models need {package}, which is not installed: pip install '
                    "'jit_jax[text]'."
                )
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        self._torch = torch
        self._device = 'cuda' if torch.cuda.is_available() else 'cpu'
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            if config.model_type not in MODELS:
                raise UserError(
                    f'{flag}: {name} is of the kind {config.model_type!r}, and text models are '
                    f'{", ".join(MODELS)}.'
                )
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            network = getattr(transformers, MODELS[config.model_type])
            self._model = network.from_pretrained(name).to(self._device).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            if isinstance(error, UserError):
                raise
            reason = ' '.join(str(error).split())
            raise UserError(
                f'{flag}: {name} cannot be loaded ({reason[:200]}): name a text model of '
                'transformers, or its folder.'
            ) from error
        self.width = self._model.config.hidden_size
        self.limit = getattr(self._model.config, 'max_position_embeddings', None)

    def counts(self, captions: Sequence[str], most: int) -> list[int]:
        """The tokens of each caption, cut to `most`."""
        found = self._tokenizer(list(captions), truncation=True, max_length=most)
        return [len(ids) for ids in found['input_ids']]

    def encode(self, captions: Sequence[str], most: int) -> list[np.ndarray]:
        """The last hidden states of each caption's tokens: float32 [n, E], n at most `most`."""
        torch = self._torch
        batch = self._tokenizer(
            list(captions), truncation=True, max_length=most, padding=True, return_tensors='pt'
        )
        ids, live = batch['input_ids'].to(self._device), batch['attention_mask'].to(self._device)
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=live).last_hidden_state
        states, live = states.float().cpu().numpy(), live.cpu().numpy().astype(bool)
        return [rows[is_live] for rows, is_live in zip(states, live, strict=True)]


@lru_cache(1)  # A slider's next caption does not load it again.
def text_encoder(name: str, flag: str) -> TextEncoder:
    """The text model of a name, loaded once."""
    return TextEncoder(name, flag)


def absolute(name: str) -> str:
    """A name that means the same from any folder; one of the Hub as it is."""
    return os.path.abspath(os.path.expanduser(name)) if os.path.isdir(name) else name


def embedded(config: dict, captions: Sequence[str], flag: str) -> list[np.ndarray]:
    """The embeddings of captions for a run that learned some: float32 [n, E] each.

    They are looked up in the run's folder of embeddings; the text model makes those that are not
    there. Raises UserError where neither can be.
    """
    folder, encoder = config['condition']['embeddings'], config['encoder']
    found = {'': np.zeros((0, encoder['width']))}
    missing = dict.fromkeys(filter(None, map(clean, captions)))
    try:
        there = data.Embeddings(folder)
    except UserError:
        there = ()  # the run may have come from elsewhere
    for caption in [caption for caption in missing if caption in there]:
        (number,) = there.numbers([caption])
        tokens = there.tokens(number, encoder['longest'])
        found[caption] = tokens['tokens'][: tokens['token_count']]
        del missing[caption]
    if missing:
        model = _model_of(encoder, next(iter(missing)), folder, flag)
        rows = model.encode(list(missing), encoder['most'])
        found |= zip(missing, rows, strict=True)
    return [np.asarray(found[clean(caption)], np.float16) for caption in captions]


def _model_of(encoder: dict, caption: str, folder: str, flag: str) -> TextEncoder:
    try:
        return text_encoder(encoder['name'], flag)
    except UserError as problem:
        reason = str(problem).removeprefix(f'{flag}: ').rstrip('.')
        raise UserError(
            f'{flag}: {caption!r} is not among the captions in {folder}, and the text model that '
            f'could encode it is not here ({reason}).'
        ) from problem
