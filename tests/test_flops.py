"""Floating-point operations against a count by hand."""

from gpt1_jax.model.flops import training_flops_per_token


def test_flops_of_gpt1_by_hand():
    # One block: q, k, v 3*768*768, output 768*768, feed-forward 2*768*3072: 7,077,888. Twelve: 84,934,656.
    # Softmax 40478*768 = 31,087,104. Together 116,021,760: the paper's 117M less positions, biases, norms.
    parameters = 116_021_760
    # A position sees 512/2 others on average: 256 * 768 * 2 operations for q.k, as many for v; 12 layers.
    attention = 12 * 2 * 256 * 768 * 2
    assert attention == 9_437_184
    forward = 2 * parameters + attention
    assert training_flops_per_token(parameters, 12, 768, 512) == 3 * forward == 724_442_112
    assert training_flops_per_token(parameters, 0, 0, 0) == 6 * parameters  # the LSTM has no attention
