"""Pre-training without a condition: the first 256 slots are dead.

python train.py --config=configs/uncond.py                    # digits: minutes on a laptop
python train.py --config=configs/uncond.py:folder --config.data.path=photos      # one GPU
python train.py --config=configs/uncond.py:folder_cpu --config.data.path=photos  # or two CPU cores
python train.py --config=configs/uncond.py:imagenet256_b16    # the published recipe
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict, FieldReference

from jit_jax.errors import UserError, nearest_first
from jit_jax.hardware.compiler import CACHE

IMAGENET_TRAIN = 1_281_167  # images
SIZES = 'blhg'

PRESETS = {  # what each is, in a line
    'digits': 'handwritten digits at 32×32: minutes on a laptop',
    'folder': 'your own images at 64×64, --config.data.path=FOLDER: one GPU',
    'folder_cpu': 'the same at 32×32: 10 to 20 minutes on a laptop',
    'digits_meanflow': 'digits in one or two passes, with --config.init_from=runs/uncond',
}
for _side, _patch in ((256, 16), (512, 32)):
    for _size in SIZES:
        PRESETS[f'imagenet{_side}_{_size}{_patch}'] = (
            f'JiT-{_size.upper()}/{_patch} on ImageNet at {_side}×{_side}, as published'
        )


def get_config(preset: str = 'digits') -> ConfigDict:
    if preset not in PRESETS:
        there = f'this file has {", ".join(PRESETS)}'
        raise UserError(nearest_first(f'There is no preset {preset!r}', preset, PRESETS, there))
    recipes = {
        'digits': digits,
        'folder': folder,
        'folder_cpu': folder_cpu,
        'digits_meanflow': digits_meanflow,
    }
    recipe = recipes[preset] if preset in recipes else imagenet
    return recipe(preset)


class Operation(NamedTuple):
    """What a FieldReference of ml_collections computes from its value: fn(value, *args)."""

    fn: Callable
    args: list


def share(steps: FieldReference, parts: int, at_most: int | None = None) -> FieldReference:
    """One of `parts` equal parts of a run, rounded up, in steps; it follows config.steps."""
    part = (steps + parts - 1) // parts
    if at_most is None:
        return part
    return FieldReference(part, op=Operation(min, [at_most]))


def imagenet(preset: str) -> ConfigDict:
    """The published recipe (arXiv 2511.13720, appendix A): 600 epochs at batch 1024."""
    image_size, variant = int(preset[8:11]), preset[12].upper()
    config = ConfigDict()
    config.seed = 0  # decides initial weights, data order, noise, everything
    config.batch_size = 1024  # global
    batch = config.get_ref('batch_size')
    epoch = IMAGENET_TRAIN // batch  # the last, smaller batch is dropped
    config.steps = 600 * epoch  # optimiser steps; epochs follow the batch size until you set it
    config.accumulate = 1  # parts of a batch, one after the other: memory for time
    steps = config.get_ref('steps')
    # steps between lines of metrics; like all that a run shows, a quarter of it at the latest
    config.log_every = share(steps, 4, at_most=100)
    config.init_from = ''  # a run folder, step or export to take weights from
    # which of its weights: params, ema1, ema2; '': ema1, or the only ones there
    config.init_ema = ''
    # (data, fsdp, tensor); -1 takes the devices that are left, fsdp as many as the size divides by
    config.mesh = (1, -1, 1)

    _model(config, variant, image_size)
    _compute(config)
    _data(config)
    _condition(config)
    _diffusion(config, image_size)
    _perceptual(config)
    _optimizer(config, steps)
    _ema(config)
    _checkpoint(config, steps)
    _sample(config, steps)
    _evaluate(config, steps)
    _wandb(config)
    return config


def _model(config: ConfigDict, variant: str, image_size: int) -> None:
    config.model = ConfigDict()  # decides the parameter tree: equal in runs that share weights
    config.model.variant = variant  # a size: XS, S, B, L, H, G, or one spelled out
    config.model.image_size = image_size  # side of the target in pixels, a multiple of 16
    config.model.channels = 3  # 3 for RGB, 1 for grayscale
    config.model.num_classes = 1000  # rows of the label table; used where condition.kind is class
    # condition images beside the first, at most 16; 0: none, and no parameters for them
    config.model.reference_images = 0
    # aligned: they lie over the target, as the first does; free: beside it, one after the other
    config.model.reference_place = 'aligned'
    config.model.token_width = 0  # of the tokens of a text; 0: no text, and no parameters for it
    # 256: tokens are bytes, whose embeddings are learned; 0: they come as embeddings
    config.model.vocabulary = 0
    # meanflow: the later time enters, with parameters of its own that start at zero
    config.model.end_time = False
    config.model.guidance = False  # meanflow: the guidance scale enters, in the same way
    config.model.tables = 'sincos'  # start of the position tables: sincos or zero
    config.model.freeze_tables = True  # the target's tables stay, as published
    config.model.null = 'mask'  # no condition is dead slots (mask) or a learned token (token)


def _compute(config: ConfigDict) -> None:
    config.compute = ConfigDict()  # how the same function is computed
    # float32, bfloat16, or auto: bfloat16 where the device has units for it (TPUs, and NVIDIA's
    # cards from compute capability 8.0)
    config.compute.dtype = 'auto'
    config.compute.dead_slots = 'skip'  # skip what cannot be live, or keep all 512 slots
    # one compiled body for all blocks: True, False, or auto: what suits the device and the size
    config.compute.scan = FieldReference('auto', field_type=object)
    # xla, cudnn (GPU), splash (TPU), or auto: the fastest that fits
    config.compute.attention = 'auto'
    config.compute.remat = 'none'  # none, dots or full: trade compute for memory
    # on GPUs, operations that give the same bits from run to run: slower
    config.compute.deterministic = False
    # where compiled programs stay between runs; '': nowhere
    config.compute.cache = CACHE


def _data(config: ConfigDict) -> None:
    config.data = ConfigDict()  # where images come from
    config.data.kind = 'tfds'  # digits, handwriting, omniglot, tfds, folder, pairs, memory
    config.data.path = ''  # TFDS: data_dir; folders: the folder
    config.data.name = 'imagenet2012'  # TFDS only
    # the run in this folder had the same images elsewhere: it goes on, instead of being refused
    config.data.moved = False
    config.data.train = 'train'  # split
    config.data.test = 'validation'  # split that is held out
    config.data.holdout = 'spread'  # without test/: every 20th file, or the tail (for video)
    # pairs whose condition images hold numbers of classes: voc gives them colours; '': pictures
    config.data.palette = ''
    config.data.flip = True  # random horizontal flip
    config.data.max_broken = 0.01  # share of images that may turn out broken before a run stops
    config.data.threads = 8  # batches made at a time, each by one thread
    config.data.prefetch = 8  # batches kept ready


def _condition(config: ConfigDict) -> None:
    config.condition = ConfigDict()  # what the model is conditioned on, in the first 256 slots
    config.condition.kind = 'none'  # a name of conditions.KINDS; a+b: both; a|b: either, row by row
    # probability of a row to lose its condition: trains the null branch
    config.condition.drop = 0.1
    config.condition.factor = 2  # super_resolution: times smaller
    config.condition.paired = 1  # pairs, references: how many condition images there are for each
    # references, or several images: how many times smaller each is made
    config.condition.reference_factor = 2
    # text: the most tokens of a caption; a run computes as many as its longest caption has
    config.condition.tokens = 128
    # text: the folder of embeddings that jit-jax embed wrote; '': captions are bytes
    config.condition.embeddings = ''
    config.condition.hole = (4, 12)  # inpaint: smallest and largest side of the hole, in patches
    config.condition.degradations = 1  # degraded: how often blur, resizing, noise and JPEG follow
    # degraded: low and high, drawn between for each image; 0 changes nothing, 1 much
    config.condition.strength = (0.0, 1.0)
    # a Python module with kinds of your own (CONTRIBUTING.md), as --import=MODULE; '': none
    config.condition.module = ''


def _diffusion(config: ConfigDict, image_size: int) -> None:
    config.diffusion = ConfigDict()  # the noise that training sees
    config.diffusion.noise_scale = image_size / 256  # standard deviation at t = 0
    config.diffusion.t_mean = -0.8  # of logit t
    config.diffusion.t_std = 0.8  # of logit t
    config.diffusion.t_eps = 0.05  # least 1 - t that v divides by
    config.diffusion.predict = 'x'  # what the network's output is: x, eps (the noise) or v
    config.diffusion.loss = 'v'  # what the squared error is of: x, eps or v
    # flow, or meanflow: the average velocity from t to a later time, for samples in few passes
    config.diffusion.objective = 'flow'
    # meanflow: of so many rows one has a step from t to a later time, the others are of the flow
    config.diffusion.mean_every = 2
    config.diffusion.uniform = 0.5  # meanflow: share of rows whose times are drawn uniformly
    # meanflow: low and high, drawn between for each row with model.guidance
    config.diffusion.guidance = (1.0, 1.0)
    # meanflow: a row weighs its loss to minus this power; 0: all alike, 1: as published
    config.diffusion.adaptive = 0.0


def _perceptual(config: ConfigDict) -> None:
    config.perceptual = ConfigDict()  # LPIPS between x̂ and the clean image, beside the loss
    config.perceptual.weight = 0.0  # 0: none; published beside other losses: 0.1 and 0.4
    config.perceptual.after = 0.3  # of rows with t above: where there is little noise
    config.perceptual.side = 224  # smaller images are enlarged to so many pixels on a side
    config.perceptual.lpips = ''  # the file of LPIPS' weights


def _optimizer(config: ConfigDict, steps: FieldReference) -> None:
    config.optimizer = ConfigDict()  # AdamW, or Muon and Adam
    config.optimizer.base_lr = 5e-5  # at batch 256; scales with the batch
    config.optimizer.b1 = 0.9  # decay of the first moment
    config.optimizer.b2 = 0.95  # decay of the second moment
    config.optimizer.weight_decay = 0.0  # of kernels alone
    config.optimizer.mu_dtype = 'float32'  # of the first moment: bfloat16 saves 2 bytes a parameter
    # 0: AdamW; more: Muon for the blocks' matrices, its update's size at lr 1
    config.optimizer.muon_rms = 0.0
    config.optimizer.warmup = share(steps, 120)  # steps; as published, 5 epochs of 600
    config.optimizer.schedule = 'constant'  # after the warm-up: constant, or cosine to zero


def _ema(config: ConfigDict) -> None:
    config.ema = ConfigDict()  # averages of the weights, of which samples are drawn
    config.ema.decays = (0.9999, 0.9996)  # ema1, ema2
    # or host: saves 8 bytes a parameter, and costs their way there and back each step
    config.ema.memory = 'device'
    config.ema.warmup = False  # start with a low decay: for short runs


def _checkpoint(config: ConfigDict, steps: FieldReference) -> None:
    config.checkpoint = ConfigDict()  # see docs/checkpoints.md
    config.checkpoint.every = share(steps, 4, at_most=2500)  # steps
    config.checkpoint.keep_last = 2  # how many of the newest stay, at least 1
    config.checkpoint.keep_every = 125_000  # steps; 0: only the last ones
    config.checkpoint.keep_best = False  # and the one with the lowest loss


def _sample(config: ConfigDict, steps: FieldReference) -> None:
    config.sample = ConfigDict()  # the grids of a run, and the defaults of `jit_jax.sample`
    config.sample.every = share(steps, 4, at_most=10_000)  # steps between grids
    config.sample.num = 64  # images in a grid
    # heun (two passes a step), multistep or euler (one); meanflow: one, of a run that learned it
    config.sample.sampler = 'heun'
    config.sample.steps = 50  # of the sampler
    config.sample.guidance = 1.0  # 1: none
    config.sample.interval = (0.1, 1.0)  # of t, where guidance is on; with model.guidance, all of t
    # least 1 - t that the sampler divides by; 0: its last step ends on the predicted image
    config.sample.t_eps = config.diffusion.t_eps
    # guidance away from the same network without these blocks, numbered from 0; (): none
    config.sample.skip_blocks = ()
    config.sample.skip_scale = 1.0  # of that guidance; 1: none
    config.sample.skip_interval = (0.0, 1.0)  # of t, where it is on


def _evaluate(config: ConfigDict, steps: FieldReference) -> None:
    config.evaluate = ConfigDict()  # while training: what `jit-jax evaluate` says afterwards
    config.evaluate.every = 0  # steps between evaluations of generated images; 0: none
    config.evaluate.num = 8000  # images generated for one
    config.evaluate.batch = 256  # of them at a time, over all devices
    # weights of the FID Inception; '': only scores that need none (labels: a classifier;
    # conditions: PSNR)
    config.evaluate.inception = ''
    # what FID compares with: an .npz, a folder, a split; '': the training images
    config.evaluate.reference = ''
    # steps between measurements of how held-out images are denoised; 0: none
    config.evaluate.denoise_every = share(steps, 4, at_most=1000)
    config.evaluate.denoise_num = 1024  # how many of them


def _wandb(config: ConfigDict) -> None:
    config.wandb = ConfigDict()  # Weights & Biases
    config.wandb.project = ''  # where the run is shown as well; '': nowhere


def digits(preset: str) -> ConfigDict:
    """scikit-learn's 1,797 handwritten digits at 32×32: readable in minutes on two CPU cores."""
    config = small()
    steps = config.get_ref('steps')
    config.steps, config.model.num_classes = 2200, 10
    config.data.kind, config.data.flip = 'digits', False
    config.diffusion.noise_scale = 4.0
    config.evaluate.every = share(steps, 2)
    return config


def digits_meanflow(preset: str) -> ConfigDict:
    """From the run of `digits`: the same flow in one or two passes of the network."""
    config = digits(preset)
    config.steps = 1000
    return in_few_steps(config)


def in_few_steps(config: ConfigDict) -> ConfigDict:
    """A recipe, changed to learn the average velocity of its flow."""
    config.diffusion.objective, config.model.end_time = 'meanflow', True
    config.diffusion.adaptive = 1.0
    config.sample.sampler, config.sample.steps = 'meanflow', 2
    return config


def small() -> ConfigDict:
    """What learns at 32×32 in minutes on two CPU cores: a small model, Muon, a short warm-up."""
    config = imagenet('imagenet256_b16')
    steps = config.get_ref('steps')
    config.model.variant, config.model.image_size = 'XS', 32
    config.batch_size = 8
    config.log_every = share(steps, 4, at_most=50)
    config.mesh = (-1, 1, 1)
    config.data.name, config.data.test, config.data.threads = '', 'test', 1
    config.perceptual.side = 64  # at 224 LPIPS would cost four times what the network does
    config.optimizer.base_lr = 0.1
    config.optimizer.b2, config.optimizer.muon_rms = 0.99, 0.8
    config.optimizer.warmup, config.optimizer.schedule = share(steps, 22), 'cosine'
    config.ema.decays, config.ema.warmup = (0.999, 0.99), True
    config.checkpoint.every, config.checkpoint.keep_every = share(steps, 4), 0
    config.sample.every, config.sample.num, config.sample.steps = share(steps, 4), 36, 20
    config.evaluate.num, config.evaluate.batch = 64, 64
    config.evaluate.denoise_every, config.evaluate.denoise_num = share(steps, 4), 64
    return config


def folder_cpu(preset: str) -> ConfigDict:
    """Your own images, --config.data.path=FOLDER, at 32×32: 10 to 20 minutes on two CPU cores."""
    config = small()
    config.steps, config.model.num_classes = 3000, 0
    config.data.kind = 'folder'
    config.diffusion.noise_scale = 1.0
    return config


def folder(preset: str) -> ConfigDict:
    """Your own images, --config.data.path=FOLDER: a small model at 64×64 for one GPU."""
    config = imagenet('imagenet256_b16')
    steps = config.get_ref('steps')
    config.model.variant, config.model.image_size, config.model.num_classes = 'S', 64, 0
    config.batch_size, config.steps = 64, 100_000
    config.data.kind, config.data.name, config.data.test = 'folder', '', 'test'
    config.diffusion.noise_scale = 1.0
    config.optimizer.base_lr = 8e-4
    config.optimizer.warmup, config.optimizer.schedule = share(steps, 100), 'cosine'
    config.ema.decays, config.ema.warmup = (0.9995, 0.999), True
    config.sample.every = share(steps, 4, at_most=2500)
    return config
