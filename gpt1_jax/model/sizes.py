"""Model sizes by name. Imports no JAX, because configs are also read where JAX is not needed."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """An architecture, see architecture.py, and the size of the vocabulary to train for it."""

    kind: str
    sizes: dict[str, int]
    vocab_size: int


def _transformer(layers: int, width: int, heads: int, mlp_width: int, n_positions: int, vocab_size: int) -> Size:
    return Size(
        'transformer',
        dict(layers=layers, width=width, heads=heads, mlp_width=mlp_width, n_positions=n_positions),
        vocab_size,
    )


def _lstm(width: int, n_positions: int, vocab_size: int) -> Size:
    """The paper's has 2,048 units (section 5); narrower ones have in proportion, in whole vectors of 8."""
    units = 8 * round(2048 / 768 * width / 8)
    return Size('lstm', dict(layers=1, width=width, units=units, n_positions=n_positions), vocab_size)


def init_std(width: int) -> float:
    """The standard deviation of initial kernels and table: 0.02 at width 768 (section 4.1). Narrower models need more,
    as 1 / sqrt(width): with 0.02 they are slow to learn more than word frequencies."""
    return round(0.02 * (768 / width) ** 0.5, 3)


SIZES = {
    'tiny': _transformer(4, 128, 4, 512, 128, 4000),
    'small': _transformer(6, 256, 4, 1024, 256, 8000),
    'gpt1': _transformer(12, 768, 12, 3072, 512, 40000),  # Radford et al. 2018, section 4.1
    'tiny_lstm': _lstm(128, 128, 4000),
    'small_lstm': _lstm(256, 256, 8000),
    'lstm': _lstm(768, 512, 40000),
}
