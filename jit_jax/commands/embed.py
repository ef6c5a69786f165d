"""Makes embeddings of captions by a frozen text model, once, for runs that are conditioned on text.

examples:
  jit-jax embed --captions=photos --encoder=google/t5-v1_1-base --out=photos-t5
  jit-jax embed --captions=photos/metadata.jsonl --encoder=openai/clip-vit-large-patch14 --out=clip
  jit-jax embed --captions=captions.txt --encoder=t5-folder --out=t5      # a caption in each line
  jit-jax embed --config=cond:digits_text --encoder=google/t5-v1_1-small --out=digits-t5

A stopped command goes on when it is given again, and captions that are new join the others. What to
train with is said at the end. Text models are T5 encoders (mT5, UMT5) and those of CLIP.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from jit_jax import data
from jit_jax.commands import command_line
from jit_jax.data import caption_files, embeddings
from jit_jax.errors import UserError
from jit_jax.output import destination
from jit_jax.recipe import build, text_encoder

READ = 4096  # captions whose tokens are counted at a time


def define_flags(parser: command_line.Parser) -> None:
    add, count = parser.add_argument, command_line.whole_number(1)
    add(
        '--captions',
        type=Path,
        help='a folder of images with captions, a metadata.jsonl, or a .txt with one in each line',
    )
    add('--encoder', help='a text model of transformers by name, or its folder')
    add('--out', type=Path, help='the folder to write')
    add('--batch', type=count, default=64, help='how many captions at a time')
    add('--tokens', type=count, default=128, help='the most tokens of a caption; more are cut')
    parser.define_config('a recipe, in place of --captions: those of its data')


def main(args: argparse.Namespace) -> None:
    if (args.captions is None) == (args.config is None):
        raise UserError(
            '--captions says where captions are, for example --captions=photos; or --config names '
            'a recipe whose data has some.'
        )
    command_line.required(args, 'encoder', 'names a text model, as --encoder=google/t5-v1_1-base.')
    command_line.required(args, 'out', 'says where embeddings go, for example --out=photos-t5.')
    destination.check_place(args.out, '--out')
    if args.config is None:
        captions = caption_files.read(args.captions)
    else:
        captions = list(captions_of(args.config))
    model = text_encoder.text_encoder(args.encoder, '--encoder')
    most = min(args.tokens, model.limit or args.tokens)

    def encode(some):
        return model.encode(some, most)

    longest = 0
    for first in range(0, len(captions), READ):
        longest = max(longest, *model.counts(captions[first : first + READ], most))
    name = text_encoder.absolute(args.encoder)
    encoder = embeddings.Encoder(name, model.width, most, longest)
    with destination.writing(args.out, '--out'):
        written = embeddings.append(args.out, encoder, captions, encode, batch=args.batch)
        for done, count in written:
            print(f'{done:,} of {count:,} captions are in {args.out}', flush=True)
    print(
        f'Train with: --config.condition.kind=text --config.condition.embeddings={args.out} '
        f'--config.model.token_width={model.width} --config.model.vocabulary=0'
    )


def captions_of(config) -> Iterator[str]:
    """All captions of a recipe's data, for training and held out. Raises UserError for none."""
    config = config.copy_and_resolve_references()
    config.condition.kind, config.condition.embeddings = 'text', ''
    for which in ('train', 'test'):
        source: data.Source = build.source(config, which)
        for i in range(len(source)):
            yield from source.said(i)
