"""Floating-point operations per token."""


def training_flops_per_token(n_matmul_parameters: int, layers: int, width: int, length: int) -> float:
    """Operations per token to train a causal transformer: forward and backward pass.

    Counts 2 operations for each parameter of a matrix product. GPT-1 has 12 * layers * width^2 of these in its
    blocks and vocabulary * width in the softmax; the tied embedding adds none, since looking up rows is free.
    Attention adds q.k and the weighted sum of v in each layer, 2 * length * width each, and causal attention needs
    half of that. Training is three times the forward pass; recomputation is not counted. Norms, biases, GELU, dropout
    and the softmax's exponentials are left out.
    """
    return 3 * (2 * n_matmul_parameters + layers * 2 * length * width)
