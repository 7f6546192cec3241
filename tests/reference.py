"""GPT-1 in plain NumPy, one sequence at a time: what the real model, losses and optimizer are tested against.

Written from the paper (Radford et al. 2018, sections 3.1-3.3) and the release's conventions alone; it shares
no code with the package. Everything is float64 and analytic in the parameters, so a derivative is one
evaluation with a tiny imaginary step (`numerical_gradient`), exact to rounding.

The table holds the vocabulary's rows, then the special rows, then one row per position; `n_positions` says
how many of its last rows are positions. No dropout anywhere.
"""

import numpy as np


def init_params(rng, *, vocab, n_special, n_positions, width, layers, heads, mlp, classes):
    """Random float64 parameters, [in, out] as in the release; biases and gains too, so that mistakes show.

    Scales are far above the paper's 0.02: attention is then far from uniform and GELU far from linear.
    """
    if width % heads:
        raise ValueError(f'width {width} does not divide into {heads} heads')

    def normal(*shape, mean=0.0, std=0.3):
        return rng.normal(mean, std, shape)

    def layer():
        return {
            'c_attn_w': normal(width, 3 * width),  # columns q | k | v, each of them head after head
            'c_attn_b': normal(3 * width),
            'c_proj_w': normal(width, width),
            'c_proj_b': normal(width),
            'ln_1_g': normal(width, mean=1.0),
            'ln_1_b': normal(width),
            'c_fc_w': normal(width, mlp),
            'c_fc_b': normal(mlp),
            'mlp_proj_w': normal(mlp, width),
            'mlp_proj_b': normal(width),
            'ln_2_g': normal(width, mean=1.0),
            'ln_2_b': normal(width),
        }

    return {
        'table': normal(vocab + n_special + n_positions, width),
        'layers': [layer() for _ in range(layers)],
        'head_w': normal(width, classes),
        'head_b': normal(classes),
    }


def params_from_huggingface(weights, head_w, head_b):
    """The tree of `init_params`, in float64, from arrays [in, out] by their Hugging Face names."""
    names = {
        'attn.c_attn': 'c_attn', 'attn.c_proj': 'c_proj', 'ln_1': 'ln_1',
        'mlp.c_fc': 'c_fc', 'mlp.c_proj': 'mlp_proj', 'ln_2': 'ln_2',
    }  # fmt: skip
    layers = []
    while f'h.{len(layers)}.ln_1.weight' in weights:
        layer = {}
        for theirs, ours in names.items():
            prefix = f'h.{len(layers)}.{theirs}'
            layer[ours + ('_g' if 'ln' in ours else '_w')] = weights[f'{prefix}.weight'].astype(np.float64)
            layer[f'{ours}_b'] = weights[f'{prefix}.bias'].astype(np.float64)
        layers.append(layer)
    table = np.concatenate([weights['tokens_embed.weight'], weights['positions_embed.weight']])
    return {
        'table': table.astype(np.float64),
        'layers': layers,
        'head_w': head_w.astype(np.float64),
        'head_b': head_b.astype(np.float64),
    }


# Model


def layer_norm(x, gain, bias, epsilon=1e-5):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)  # not np.var: its |x|^2 is not analytic
    return gain * centred / np.sqrt(variance + epsilon) + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def log_softmax(x):
    shifted = x - x.real.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def attention(layer, x, heads):
    """Causal self-attention of one sequence, [T, width] -> [T, width]."""
    length, width = x.shape
    size = width // heads
    qkv = x @ layer['c_attn_w'] + layer['c_attn_b']
    mask = np.where(np.arange(length)[:, None] >= np.arange(length)[None, :], 0.0, -1e9)
    outputs = []
    for h in range(heads):
        q, k, v = (qkv[:, part * width + h * size : part * width + (h + 1) * size] for part in range(3))
        outputs.append(np.exp(log_softmax(q @ k.T / np.sqrt(size) + mask)) @ v)
    return np.concatenate(outputs, axis=-1) @ layer['c_proj_w'] + layer['c_proj_b']


def block(layer, x, heads):
    n = layer_norm(x + attention(layer, x, heads), layer['ln_1_g'], layer['ln_1_b'])
    mlp = gelu(n @ layer['c_fc_w'] + layer['c_fc_b']) @ layer['mlp_proj_w'] + layer['mlp_proj_b']
    return layer_norm(n + mlp, layer['ln_2_g'], layer['ln_2_b'])


def forward(params, tokens, heads, positions=None, *, n_positions):
    """Last layer's states [T, width] of one sequence of ids [T]; positions default to 0 .. T-1."""
    tokens = np.asarray(tokens, np.int64)  # uint16 ids must not wrap when the position rows' offset is added
    positions = np.arange(len(tokens)) if positions is None else np.asarray(positions, np.int64)
    table = params['table']
    x = table[tokens] + table[len(table) - n_positions + positions]
    for layer in params['layers']:
        x = block(layer, x, heads)
    return x


def lstm_params(rng, *, vocab, n_special, width, units):
    """Random float64 parameters of the LSTM; gates in the order input, forget, candidate, output."""
    normal = lambda *shape: rng.normal(0, 0.4, shape)
    return {
        'table': normal(vocab + n_special, width),
        'in_kernel': normal(width, 4, units),
        'recurrent_kernel': normal(units, 4, units),
        'bias': normal(4, units),
        'out_kernel': normal(units, width),
        'out_bias': normal(width),
    }


def lstm_forward(params, tokens, segments=None):
    """States [T, width] of one row of the LSTM; `segments` [T] says where another text begins."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    states = []
    for t, token in enumerate(tokens):
        if t == 0 or segments is not None and segments[t] != segments[t - 1]:
            hidden = cell = np.zeros(params['out_kernel'].shape[0])
        gates = [
            params['table'][token] @ params['in_kernel'][:, k]
            + hidden @ params['recurrent_kernel'][:, k]
            + params['bias'][k]
            for k in range(4)
        ]
        cell = sigmoid(gates[1]) * cell + sigmoid(gates[0]) * np.tanh(gates[2])
        hidden = sigmoid(gates[3]) * np.tanh(cell)
        states.append(hidden @ params['out_kernel'] + params['out_bias'])
    return np.stack(states)


# Losses


def lm_nll(params, hidden, targets, rows='all', *, n_positions):
    """-log P(target) [T] of each state of hidden [T, width]; the softmax is tied to the table.

    rows: 'all' = every row of the table, as the release trains; 'tokens' = vocabulary and special rows only.
    """
    table = {'all': params['table'], 'tokens': params['table'][: len(params['table']) - n_positions]}[rows]
    log_probabilities = log_softmax(hidden @ table.T)
    return -log_probabilities[np.arange(len(targets)), np.asarray(targets, np.int64)]


def sequence_lm_loss(params, tokens, heads, rows='all', *, n_positions):
    """Mean over one sequence's targets: the token after the first through the last one."""
    hidden = forward(params, tokens, heads, n_positions=n_positions)
    return lm_nll(params, hidden[:-1], tokens[1:], rows, n_positions=n_positions).mean()


def task_logits(params, states, kind):
    """Logits of one example from its sequences' states at <extract>, [S, width].

    classification and entailment (S = 1) -> [classes]; similarity (S = 2 orders) -> [classes], one linear
    layer of the sum of both states; multiple_choice (S = choices, one output) -> [choices].
    """
    if kind in ('classification', 'entailment'):
        (state,) = states
        return state @ params['head_w'] + params['head_b']
    if kind == 'similarity':
        first, second = states
        return (first + second) @ params['head_w'] + params['head_b']
    if kind == 'multiple_choice':
        return np.stack([(state @ params['head_w'] + params['head_b'])[0] for state in states])
    raise ValueError(kind)


def classification_loss(logits, label):
    return -log_softmax(logits)[label]


multiple_choice_loss = classification_loss  # the same cross-entropy, over the choices


def ordinal_target(score, classes=6):
    """Soft target of a score in [0, classes - 1]: the two neighbouring integers share the mass linearly."""
    return np.maximum(0.0, 1.0 - np.abs(np.arange(classes) - score))


def ordinal_loss(logits, score):
    return -(ordinal_target(score, len(logits)) * log_softmax(logits)).sum()


def ordinal_prediction(logits):
    """The expected class."""
    return np.exp(log_softmax(logits)) @ np.arange(len(logits))


TASK_LOSSES = {'classification': classification_loss, 'multiple_choice': multiple_choice_loss, 'ordinal': ordinal_loss}


def finetune_logits(params, examples, heads, *, kind, n_positions):
    """Logits of every example; `examples` is a list of lists of S id arrays, each ending in <extract>."""
    return [
        task_logits(params, [forward(params, s, heads, n_positions=n_positions)[-1] for s in sequences], kind)
        for sequences in examples
    ]


def finetune_loss(params, examples, labels, heads, *, kind, loss, lam, n_positions, rows='all'):
    """L3 (section 3.2): mean task loss over the examples + lam * mean LM loss over all their sequences."""
    hidden = [[forward(params, s, heads, n_positions=n_positions) for s in sequences] for sequences in examples]
    logits = [task_logits(params, [states[-1] for states in of_example], kind) for of_example in hidden]
    task = np.mean([TASK_LOSSES[loss](x, label) for x, label in zip(logits, labels, strict=True)])
    language = [
        lm_nll(params, states[:-1], s[1:], rows, n_positions=n_positions).mean()
        for sequences, of_example in zip(examples, hidden, strict=True)
        for s, states in zip(sequences, of_example, strict=True)
    ]
    return task + lam * np.mean(language)


# Gradients


def paths(params):
    """Every array's path in the parameter tree: ('table',), ('layers', 0, 'c_attn_w'), ..."""
    of_layers = [('layers', i, name) for i, layer in enumerate(params['layers']) for name in layer]
    return [(name,) for name in params if name != 'layers'] + of_layers


def get(params, path):
    for key in path:
        params = params[key]
    return params


def replace(params, path, value):
    """A copy of the tree (arrays shared) with the array at `path` replaced."""
    if not path:
        return value
    changed = params.copy()
    changed[path[0]] = replace(params[path[0]], path[1:], value)
    return changed


def numerical_gradient(f, params, path, index):
    """d f / d (entry `index` of the array at `path`) = Im f(x + ih) / h: no difference, so no cancellation.

    f must be analytic: no abs, max or sort of anything that depends on the parameters.
    """
    array = get(params, path).astype(complex)
    array[index] += 1e-30j
    return np.imag(f(replace(params, path, array))) / 1e-30


def gradients(f, params):
    """The whole gradient of f(params), a tree like params: one evaluation per entry, so for tiny models."""
    result = params
    for path in paths(params):
        array = get(params, path)
        values = [numerical_gradient(f, params, path, index) for index in np.ndindex(array.shape)]
        result = replace(result, path, np.reshape(values, array.shape))
    return result


# Optimizer


def linear_schedule(x, warmup):
    """Factor on the rate at the fraction x of all updates; `warmup` is a fraction too."""
    return min(x / warmup, 1.0) * (1 - x)


def cosine_schedule(x, warmup):
    return x / warmup if x <= warmup else 0.5 * (1 + np.cos(np.pi * x))


def adam_init(params):
    """State before the first update: moments {'m', 'v'}, trees like params."""
    zeros = params
    for path in paths(params):
        zeros = replace(zeros, path, np.zeros_like(get(params, path)))
    return {'m': zeros, 'v': zeros}


def adam_update(params, grads, state, t, *, lr, schedule, total, warmup, l2, clip, b1=0.9, b2=0.999, eps=1e-8):
    """The release's Adam, update number t = 1, 2, ... of `total` -> (params, state).

    schedule: one of the two above; warmup: a fraction of `total`. It sees the count before this update, so
    the first update has rate 0. The gradients are clipped by their global norm first; decay falls on
    everything with more than one axis and is multiplied by the same bias-corrected rate as the step; eps is
    outside the bias correction.
    """
    norm = np.sqrt(sum((get(grads, path) ** 2).sum() for path in paths(params)))
    scale = min(1.0, clip / norm) if norm > 0 else 1.0
    rate = lr * np.sqrt(1 - b2**t) / (1 - b1**t) * schedule((t - 1) / total, warmup)
    m_tree, v_tree = state['m'], state['v']
    updated = params
    for path in paths(params):
        p, g = get(params, path), get(grads, path) * scale
        m = b1 * get(state['m'], path) + (1 - b1) * g
        v = b2 * get(state['v'], path) + (1 - b2) * g**2
        decay = l2 * p if p.ndim > 1 else 0.0
        m_tree, v_tree = replace(m_tree, path, m), replace(v_tree, path, v)
        updated = replace(updated, path, p - rate * (m / (np.sqrt(v) + eps) + decay))
    return updated, {'m': m_tree, 'v': v_tree}
