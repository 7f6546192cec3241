"""The kinds of models, and how one is built from a config. Sizes by name are in sizes.py.

A kind is a linen module with the attributes `vocab_size`, `n_special`, `n_positions`, `width`, `layers` and `dtype`. It
is called like `Decoder.__call__` (without `cache` and `lengths` if it cannot generate), and its class has

  SIZES: names of the attributes that fix its parameters' shapes, including `n_positions`, `width` and `layers`.
  CANNOT: those of ABILITIES that it lacks.
  check_sizes(sizes): raises ValueError for sizes that do not fit together, which its message gives as NAME=VALUE.
  flops_per_token(lm_head): of training, forward and backward pass.
  transfer(fresh, source, source_special, n_layers): see `Decoder.transfer`.
  empty_cache(batch, length), cache_shardings(sharding): if it can generate, see `Decoder`.
"""

import dataclasses
import re
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from absl import logging

from gpt1_jax.config import check_choice
from gpt1_jax.errors import UserError
from gpt1_jax.model import attention
from gpt1_jax.model.lstm import LSTM
from gpt1_jax.model.sizes import SIZES, init_std
from gpt1_jax.model.transformer import Decoder

DEFAULT_KIND = 'transformer'
KINDS = {DEFAULT_KIND: Decoder, 'lstm': LSTM}
ABILITIES = {
    'share_context': 'read the shared context of several choices once',
    'generate': 'generate text',
    'convert': 'be written in the form of another program',
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Kind (key of KINDS) and sizes (one for each of its SIZES) of a model; with its vocabulary they fix the shapes of
    its parameters."""

    kind: str
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module) -> 'Architecture':
        kind = next(kind for kind, made in KINDS.items() if type(model) is made)
        return cls(kind, {name: getattr(model, name) for name in model.SIZES})

    def require(self, ability: str, init_from: str) -> None:
        """Raises UserError if models of this kind lack one of ABILITIES."""
        if ability in KINDS[self.kind].CANNOT:
            able = ', '.join(kind for kind, made in KINDS.items() if ability not in made.CANNOT)
            raise UserError(
                f'{init_from}: A model of kind {self.kind!r} cannot {ABILITIES[ability]}. Use a model of kind {able}.'
            )


def build(model_config: Mapping, vocab_size: int, n_special: int, platform: str) -> nn.Module:
    """The model that `config.model` describes.

    Args:
      model_config: `kind`, its sizes, and settings of the computation; keys that the kind does not know are ignored.
        An `init_std` of None follows from the width (`sizes.init_std`).
      n_special: special rows in its table.
      platform: of the devices that it runs on; a `dtype` of 'auto' is float32 on 'cpu' and bfloat16 elsewhere, an
        `attention` of 'auto' the kernel of the platform, if it has one that fits the model.

    Raises UserError for an unknown kind, sizes that it lacks or that do not fit together, or a kernel that does not fit
    them.
    """
    kind = model_config.get('kind', DEFAULT_KIND)
    check_choice('model.kind', kind, KINDS)
    made = KINDS[kind]
    names = {field.name for field in dataclasses.fields(made)}
    values = {name: value for name, value in model_config.items() if name in names}
    if lacking := [name for name in made.SIZES if name not in values]:
        complete = ', '.join(f':{name}' for name, size in SIZES.items() if size.kind == kind)
        raise UserError(
            f'model.kind: This config has no {", ".join(lacking)}, which a model of kind {kind} needs. Use '
            f'configs/pretrain.py with one of {complete}.'
        )
    try:
        made.check_sizes(values)
    except ValueError as error:
        keys = re.sub(r'\w+=', r'model.\g<0>', str(error))
        raise UserError(f'model: The sizes do not fit together ({keys}). Change one of them.') from error
    dtype = values.pop('dtype', 'auto')
    if dtype == 'auto':
        dtype = 'float32' if platform == 'cpu' else 'bfloat16'
    if values.get('init_std', 0) is None:
        values['init_std'] = init_std(values['width'])
    if 'attention' in values:
        values |= dict(attention=_attention(values, platform), platform=platform)
    return made(vocab_size=vocab_size, n_special=n_special, dtype=jnp.dtype(dtype), **values)


def _attention(values, platform):
    """'xla' if no kernel fits or none is wanted; else what the config says."""
    heads, wanted = values['heads'], values['attention']
    obstacle = attention.obstacle(platform, 1, values['n_positions'], heads, values['width'] // heads)
    if wanted == 'kernel' and obstacle:
        raise UserError(f'model.attention: No kernel can compute it ({obstacle}). Use auto or xla.')
    chosen = 'xla' if obstacle or (wanted, platform) == ('auto', 'cpu') else wanted
    logging.info('attention: %s on %s%s', chosen, platform, f' ({obstacle})' if obstacle else '')
    return chosen
