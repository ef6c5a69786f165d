"""Images per second of the input pipeline, beside a plain PIL loop over the same files.

    python -m benchmarks.input

Decode, centre crop to 256 × 256, flip and stack, from JPEGs made for the purpose. Rounds alternate,
so that whatever else the machine does hits all alike. "Per core" is per second of CPU time, and the
ratio is to the plain loop's of the same round.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from jit_jax import data

_SIZE = 256
_BATCH = 16
PLAIN = 'plain PIL loop'


def write_photos(folder, count):
    """Writes JPEGs of 500 × 375 pixels, detailed at every scale as photos, each under 64 names."""
    rng = np.random.default_rng(0)
    for i in range(count):
        photo = np.full((375, 500, 3), 128.0)
        for cells, strength in ((4, 50), (12, 30), (40, 20), (120, 14), (500, 7)):
            noise = rng.normal(0, 1, (cells * 3 // 4, cells, 3)).clip(-3, 3) * 40 + 128
            layer = Image.fromarray(noise.astype(np.uint8)).resize(
                (500, 375), Image.Resampling.BICUBIC
            )
            photo += (np.asarray(layer) - 128.0) * (strength / 40)
        first = folder / f'{i:04}_0.jpg'
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(first, quality=95)
        for copy in range(1, 64):
            os.link(first, folder / f'{i:04}_{copy}.jpg')


def plain_loop(files):
    """Iterates over batches without end, with nothing but PIL and numpy."""
    rng = np.random.default_rng(0)
    files = itertools.cycle(files)
    while True:
        images = []
        for file in itertools.islice(files, _BATCH):
            with Image.open(file) as image:
                pixels = np.asarray(data.center_crop(image.convert('RGB'), _SIZE))
            images.append(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
        yield np.stack(images)


class Pipeline:
    """The project's batches, and how many images were read, those ahead of need included."""

    def __init__(self, source, threads):
        self.source, self.threads = source, threads
        self.read = self.taken = 0
        self.lock = threading.Lock()
        self.batches = data.train_batches(
            self, batch_size=_BATCH, seed=0, start_step=0, flip=True, threads=threads, prefetch=0
        )

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = self.source[index]
        with self.lock:
            self.read += 1
        return example

    def run(self, count):
        """Takes `count` batches, and waits until one a thread is ready ahead, as before."""
        for _ in range(count):
            next(self.batches)
        self.taken += count
        while self.read < (self.taken + self.threads) * _BATCH:
            time.sleep(0.001)


def measure(run, count):
    """Returns images/s over `count` batches, by the wall clock and per second of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(count)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return count * _BATCH / wall, count * _BATCH / cpu


def measure_in_turn(runs, rounds, batches):
    """Runs each of `runs` in every round → by name, (images/s, images/s a core) of every round."""
    for run in runs.values():
        run(1)  # warms up, and fills what is made ahead
    speeds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            speeds[name].append(measure(run, batches))
    return speeds


def print_table(speeds):
    """A line for each run: medians over the rounds, and the ratio to the plain loop per core."""
    print(f'{"":20} {"images/s":>10} {"per core":>10} {"ratio":>7}')
    plain = [per_core for _, per_core in speeds[PLAIN]]
    for name, rounds in speeds.items():
        wall, per_core = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratios = [ours / loop for (_, ours), loop in zip(rounds, plain, strict=True)]
        print(f'{name:20} {wall:10.0f} {per_core:10.0f} {statistics.median(ratios):7.2f}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--photos', type=int, default=64)
    parser.add_argument('--batches', type=int, default=4, help=f'of {_BATCH} images, in a round')
    parser.add_argument('--rounds', type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), options.photos)
        source = data.open_source('folder', path=folder, split='train', image_size=_SIZE)
        files = sorted(Path(folder).iterdir())
        kilobytes = statistics.mean(file.stat().st_size for file in files) / 1000
        plain = plain_loop(files)

        def run_plain(count):
            for _ in range(count):
                next(plain)

        runs = {PLAIN: run_plain}
        for threads in (0, 1, 2):
            runs[f'pipeline, {threads} threads'] = Pipeline(source, threads).run
        speeds = measure_in_turn(runs, options.rounds, options.batches)
    print(
        f'JPEGs of 500 x 375 pixels and {kilobytes:.0f} KB on average; medians of '
        f'{options.rounds} alternating rounds'
    )
    print_table(speeds)


if __name__ == '__main__':
    main()
