"""Configs that older versions of this package have written, read as what they meant."""

import json

# Keys that came later, by section, and what runs without them did.
ADDED = {
    'compute': {'deterministic': False, 'cache': ''},
    'model': {
        'reference_images': 0,
        'reference_place': 'aligned',
        'token_width': 0,
        'vocabulary': 0,
        'end_time': False,
        'guidance': False,
    },
    'condition': {
        'degradations': 1,
        'strength': [0.0, 1.0],
        'module': '',
        'paired': 1,
        'reference_factor': 2,
        'tokens': 128,
        'embeddings': '',
    },
    'data': {'holdout': 'spread', 'palette': '', 'moved': False},
    'diffusion': {
        'predict': 'x',
        'loss': 'v',
        'objective': 'flow',
        'mean_every': 2,
        'uniform': 0.5,
        'guidance': [1.0, 1.0],
        'adaptive': 0.0,
    },
    'sample': {'skip_blocks': [], 'skip_scale': 1.0, 'skip_interval': [0.0, 1.0]},
    'perceptual': {'weight': 0.0, 'after': 0.3, 'side': 224, 'lpips': ''},
}
SECTIONS = ('perceptual',)  # of ADDED that came later as a whole, to what a training run has


def parse_config(content: str | bytes) -> dict:
    """The config in the text of a config.json or of a checkpoint, with every key of today.

    Raises ValueError where the text is no JSON.
    """
    return complete(json.loads(content))


def complete(stored: dict) -> dict:
    """A stored config with the keys that came after it; sections that it lacks stay away.

    Whatever is no config, such as a list, comes back as it is.
    """
    if not isinstance(stored, dict):
        return stored
    config = dict(stored)
    if 'optimizer' in config:
        config = dict.fromkeys(SECTIONS, {}) | config
    for section, added in ADDED.items():
        if isinstance(config.get(section), dict):
            config[section] = added | config[section]
    if isinstance(config.get('sample'), dict) and isinstance(config.get('diffusion'), dict):
        # Samplers had no t_eps of their own.
        config['sample'] = {'t_eps': config['diffusion']['t_eps']} | config['sample']
    return config
