"""GPT-1 (Radford et al., 2018) in JAX: generative pre-training, then discriminative fine-tuning."""

__version__ = '0.2.0'
