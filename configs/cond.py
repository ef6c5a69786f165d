"""Fine-tuning with a condition: the recipe of `uncond.py` with some of the first 256 slots live.

python train.py --config=configs/cond.py --config.init_from=runs/uncond  # digits: fill in a hole
python train.py --config=configs/cond.py:pairs --config.data.path=pairs  # target/ and cond/ in it
python train.py --config=configs/cond.py:imagenet256_b16                 # super-resolution
python train.py --config=configs/cond.py:imagenet256_b16_class           # labels, as published
"""

from ml_collections import ConfigDict

from jit_jax.configs import uncond
from jit_jax.diffusion.guidance import GUIDANCE

PRESETS = {  # what each is, in a line
    'digits': 'handwritten digits with a hole to fill in: minutes on a laptop',
    'folder': 'your own images, twice as large as their condition, --config.data.path=FOLDER',
    'pairs': 'your own pairs, --config.data.path=FOLDER with target/ and cond/ inside',
}
for _name, _what in uncond.PRESETS.items():
    if _name.startswith('imagenet'):
        PRESETS[_name] = f'{_what}, with super-resolution as the condition'
        PRESETS[f'{_name}_class'] = f'{_what}, with class labels'


def get_config(preset: str = 'digits') -> ConfigDict:
    name, labelled = preset.removesuffix('_class'), preset.endswith('_class')
    config = uncond.get_config('folder' if name == 'pairs' else name)
    if name == 'pairs':
        config.data.kind = config.condition.kind = 'pairs'
    elif labelled:
        config.condition.kind = 'class'
        config.sample.guidance = GUIDANCE.get((config.model.image_size, config.model.variant), 1.0)
    elif name == 'digits':
        config.condition.kind = 'inpaint'
        config.steps = 500
    else:
        config.condition.kind = 'super_resolution'
        config.condition.factor = 2  # 8 × 8 patches: 64 live slots
    return config
