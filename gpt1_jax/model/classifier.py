"""A model with a task head (Radford et al., 2018, sections 3.2, 3.3)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt1_jax.model.dropout import dropout
from gpt1_jax.model.transformer import Output


class ClassifierHead(nn.Module):
    """Dropout, then one linear layer on the state at <extract>.

    'similarity' adds the states of both orders first; 'multiple_choice' scores each choice.

    Attributes:
      kind: of the data set: 'classification', 'entailment', 'similarity' or 'multiple_choice'.
      classes: outputs per state (1 for multiple choice).
      dropout: probability, before the linear layer.
    """

    kind: str
    classes: int
    dropout: float = 0.1

    @nn.compact
    def __call__(self, states: jax.Array, train: bool = False) -> jax.Array:
        """states [N, S, width] -> logits [N, classes], or scores [N, S] for multiple choice; float32."""
        states = states.astype(jnp.float32)
        if self.kind != 'multiple_choice':
            states = states.sum(axis=1)  # both orders of a pair; other kinds have one sequence
        kernel = self.param(
            'kernel',
            nn.with_logical_partitioning(nn.initializers.normal(0.02), ('norm', None)),
            (states.shape[-1], self.classes),
        )
        bias = self.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, (None,)), (self.classes,))
        key = self.make_rng('dropout') if train and self.dropout else None
        # One mask for all choices of an example (release).
        states = dropout(states, key, self.dropout, broadcast_axes=(1,) if states.ndim == 3 else ())
        logits = jnp.einsum('...w,wc->...c', states, kernel, precision='highest')
        logits += jnp.broadcast_to(bias, logits.shape)
        return logits[..., 0] if self.kind == 'multiple_choice' else logits


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model with a task head; without a head, a language model.

    Its parameters are {'decoder': of the model, 'head': of the head}. It is not a linen module, because the path of a
    linen child enters its random keys, and a model must get the same initial values and dropout masks with and without
    a head.

    Attributes:
      model: of one of the kinds in architecture.py.
      head: None for a language model.
    """

    model: nn.Module
    head: ClassifierHead | None = None

    def init(self, key: jax.Array) -> dict:
        """New parameters, boxed with their logical axes."""
        model_key, head_key = jax.random.split(key)
        params = {'decoder': self.model.init(model_key, jnp.zeros((1, 1), jnp.int32))['params']}
        if self.head is not None:
            params['head'] = self.head.init(head_key, jnp.zeros((1, 1, self.model.width)))['params']
        return params

    def read(self, params: dict, *inputs: jax.Array | None, key: jax.Array | None = None) -> Output:
        """The model's output. inputs: tokens, positions, ... of its call; key: for dropout, None for none."""
        rngs = {} if key is None else {'dropout': key}
        return self.model.apply({'params': params['decoder']}, *inputs, train=key is not None, rngs=rngs)

    def classify(self, params: dict, states: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The head's logits or scores from states [N, S, width]; key: for dropout, None for none."""
        rngs = {} if key is None else {'dropout': key}
        return self.head.apply({'params': params['head']}, states, train=key is not None, rngs=rngs)
