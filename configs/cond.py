"""Fine-tuning with a condition: the recipe of `uncond.py` with some of the first 256 slots live.

python train.py --config=configs/cond.py --config.init_from=runs/uncond  # digits: fill in a hole
python train.py --config=configs/cond.py:digits_meanflow --config.init_from=runs/cond  # in a pass
python train.py --config=configs/cond.py:digits_text     # digits from captions: 15 minutes
python train.py --config=configs/cond.py:handwriting     # a digit by the hand of another one
python train.py --config=configs/cond.py:omniglot        # a character from two drawings of it
python train.py --config=configs/cond.py:pairs --config.data.path=pairs      # one GPU
python train.py --config=configs/cond.py:pairs_cpu --config.data.path=pairs  # or two CPU cores
python train.py --config=configs/cond.py:imagenet256_b16                 # super-resolution
python train.py --config=configs/cond.py:imagenet256_b16_class           # labels, as published
"""

from ml_collections import ConfigDict

from jit_jax.configs import uncond
from jit_jax.data.captions import VOCABULARY
from jit_jax.diffusion.guidance import GUIDANCE
from jit_jax.errors import UserError, nearest_first

PRESETS = {  # what each is, in a line
    'digits': 'handwritten digits with a hole to fill in: minutes on a laptop',
    'digits_meanflow': 'the same in one pass, with --config.init_from=runs/cond: minutes',
    'digits_text': 'handwritten digits from captions, such as "a seven or a two": 15 minutes',
    'handwriting': 'a digit of a class by the hand that wrote another digit: on a laptop',
    'omniglot': 'a drawing of a character that was never seen, from two drawings: on a laptop',
    'folder': 'super-resolution of your own images, --config.data.path=FOLDER: 64×64 from 32×32',
    'folder_cpu': 'the same, 32×32 from 16×16: 10 to 20 minutes on a laptop',
    'pairs': 'your own pairs at 64×64, --config.data.path=FOLDER with target/ and cond/ inside',
    'pairs_cpu': 'the same at 32×32: 10 to 20 minutes on a laptop',
}
for _name, _what in uncond.PRESETS.items():
    if _name.startswith('imagenet'):
        PRESETS[_name] = f'{_what}, with super-resolution as the condition'
        PRESETS[f'{_name}_class'] = f'{_what}, with class labels'


def get_config(preset: str = 'digits') -> ConfigDict:
    if preset not in PRESETS:
        there = f'this file has {", ".join(PRESETS)}'
        raise UserError(nearest_first(f'There is no preset {preset!r}', preset, PRESETS, there))
    own = {
        'digits_meanflow': digits_meanflow,
        'digits_text': digits_text,
        'handwriting': handwriting,
        'omniglot': omniglot,
    }
    if preset in own:
        return own[preset]()
    name = preset.removesuffix('_class')
    config = uncond.get_config(name.replace('pairs', 'folder'))
    if name in ('pairs', 'pairs_cpu'):
        config.data.kind = config.condition.kind = 'pairs'
    elif preset.endswith('_class'):
        config.condition.kind = 'class'
        config.sample.guidance = GUIDANCE.get((config.model.image_size, config.model.variant), 1.0)
    elif name == 'digits':
        config.condition.kind = 'inpaint'
        config.steps, config.optimizer.warmup = 500, uncond.share(config.get_ref('steps'), 5)
    else:
        config.condition.kind = 'super_resolution'
        config.condition.factor = 2  # 8 × 8 patches: 64 live slots
    if name.endswith('_cpu'):
        config.evaluate.every = uncond.share(config.get_ref('steps'), 2)
    return config


def digits_meanflow() -> ConfigDict:
    """From the run of `digits`: the same holes, filled in by one pass of the network."""
    config = uncond.in_few_steps(get_config('digits'))
    config.sample.steps = 1
    return config


def digits_text() -> ConfigDict:
    """Digits from captions made of their labels, byte by byte (see data/digit_captions.py)."""
    config = uncond.get_config('digits')
    config.steps = 3000
    config.condition.kind = 'text'
    config.model.token_width, config.model.vocabulary = 64, VOCABULARY
    config.sample.guidance = 3.0  # as asked: 73 % at 1, 87 % at 2, 91 % at 3
    return config


def handwriting() -> ConfigDict:
    """A digit by the hand of a reference, which is another digit (see data/handwriting.py)."""
    config = uncond.get_config('digits')
    config.steps = 3000
    config.data.kind, config.condition.kind = 'handwriting', 'references+class'
    config.model.reference_images, config.model.reference_place = 1, 'free'
    config.sample.guidance = 2.0
    return config


def omniglot() -> ConfigDict:
    """One-shot generation: two drawings of a character → a third (see data/omniglot.py)."""
    config = uncond.small()
    config.steps, config.model.num_classes = 3000, 0
    config.data.kind, config.condition.kind = 'omniglot', 'references'
    config.condition.paired = config.model.reference_images = 2
    config.diffusion.noise_scale = 1.0
    config.sample.guidance = 3.0  # of the right character: 41 % at 2, 47 % at 3
    return config
