"""The official PyTorch JiT, set up as its `main_jit.py` and `engine_jit.py` do it."""

import atexit
import copy
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from benchmarks import measure
from jit_jax.model.sizes import size


class Official:
    """Its train step and its sampler, on images of noise that lie on the device.

    folder: of the official code. variant: the name of the size; the config's may have fewer blocks.
    float32 on a CPU, bfloat16 on a GPU.
    """

    def __init__(self, folder: str, config, variant: str):
        import torch

        self.gpu = torch.cuda.is_available()
        sys.path.insert(0, folder if self.gpu else without_cuda(folder))
        torch._dynamo.config.cache_size_limit = 128
        torch.backends.cudnn.benchmark = True
        from denoiser import Denoiser
        from util import misc

        self.device = torch.device('cuda' if self.gpu else 'cpu')
        self.model = Denoiser(arguments(config, variant))
        sizes, o = size(config.model.variant), config.optimizer
        del self.model.net.blocks[sizes['depth'] :]
        self.model.net.in_context_start = sizes['class_start']
        self.model.to(self.device)
        groups = misc.add_weight_decay(self.model, o.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=o.base_lr, betas=(o.b1, o.b2))
        self.model.ema_params1 = copy.deepcopy(list(self.model.parameters()))
        self.model.ema_params2 = copy.deepcopy(list(self.model.parameters()))
        batch = measure.noise(config)
        image = torch.from_numpy(batch['image']).to(self.device)
        self.image = image.permute(0, 3, 1, 2).contiguous()
        self.label = torch.from_numpy(batch['label']).to(self.device).long()

    def train(self):
        """One step, with both averages."""
        import torch

        self.model.train()
        x = self.image.to(torch.float32).div_(255) * 2.0 - 1.0
        with self.autocast():
            loss = self.model(x, self.label)
        loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.wait()
        self.model.update_ema()
        self.wait()

    def sample(self):
        """One batch of images."""
        import torch

        self.model.eval()
        with torch.no_grad(), self.autocast():
            self.model.generate(self.label)
        self.wait()

    def autocast(self):
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.gpu)

    def wait(self):
        """Until the GPU is done."""
        import torch

        if self.gpu:
            torch.cuda.synchronize()

    def about(self) -> str:
        """What it runs on."""
        import torch

        name = f'cpu, {torch.get_num_threads()} threads'
        if self.gpu:
            name = torch.cuda.get_device_name()
        return f'torch {torch.__version__} on {name}'


def arguments(config, variant: str) -> Namespace:
    """The config as the flags of the official `main_jit.py`."""
    m, d, s = config.model, config.diffusion, config.sample
    ema1, ema2 = config.ema.decays
    return Namespace(
        model=f'JiT-{variant}/{m.image_size // 16}',
        img_size=m.image_size,
        class_num=m.num_classes,
        attn_dropout=0.0,
        proj_dropout=size(m.variant)['dropout'],
        label_drop_prob=config.condition.drop,
        P_mean=d.t_mean,
        P_std=d.t_std,
        t_eps=d.t_eps,
        noise_scale=d.noise_scale,
        ema_decay1=ema1,
        ema_decay2=ema2,
        sampling_method=s.sampler,
        num_sampling_steps=s.steps,
        cfg=s.guidance,
        interval_min=s.interval[0],
        interval_max=s.interval[1],
    )


def without_cuda(folder: str) -> str:
    """A copy of the code for a machine without a GPU, which moves nothing to one by `.cuda()`."""
    copied = tempfile.TemporaryDirectory()
    atexit.register(copied.cleanup)
    for source in [*Path(folder).glob('*.py'), *Path(folder).glob('util/*.py')]:
        target = Path(copied.name) / source.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        target.write_text(source.read_text().replace('.cuda()', ''))
    return copied.name
