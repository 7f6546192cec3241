"""Task heads: dropout, then one linear layer on the state at <extract> (Radford et al., 2018, sections 3.2, 3.3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt1_jax.model.dropout import dropout


class ClassifierHead(nn.Module):
    """Linear head. `kind` 'similarity' adds the states of both orders first; 'multiple_choice' scores each choice.

    Attributes:
      kind: a data set's kind: 'classification', 'entailment', 'similarity' or 'multiple_choice'.
      classes: number of outputs a state (1 for multiple choice).
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
            states = states.sum(axis=1)  # both orders of a pair; the one sequence elsewhere
        kernel = self.param('kernel', nn.with_logical_partitioning(
            nn.initializers.normal(0.02), ('norm', None)), (states.shape[-1], self.classes))
        bias = self.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, (None,)), (self.classes,))
        key = self.make_rng('dropout') if train and self.dropout else None
        # One mask for all choices of an example (release).
        states = dropout(states, key, self.dropout, broadcast_axes=(1,) if states.ndim == 3 else ())
        logits = jnp.einsum('...w,wc->...c', states, kernel, precision='highest') + bias
        return logits[..., 0] if self.kind == 'multiple_choice' else logits
