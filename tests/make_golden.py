"""Writes tests/golden/openai_gpt.npz: a tiny GPT-1 as Hugging Face transformers computes it, in float64.

Not a test and not needed to run the tests: the file is in the repository. To write it again, in an
environment of its own (the package itself needs neither torch nor transformers):

    pip install torch==2.15.0 transformers==5.23.0 numpy==2.4.6
    python tests/make_golden.py

Arrays (N = examples x choices sequences, all of length T; each ends in the token that the heads read):
    weights/NAME          float32; all random, biases and gains too. Named as in Hugging Face checkpoints; the
                          heads are `multiple_choice_head.summary.{weight,bias}` and `score.weight`
    tokens                int32 [examples, choices, T]
    hidden_states         [layers + 1, N, T, width]: the embeddings' sum, then each block's output
    shifted_hidden        [N, T, width]: the last block's output, positions being SHIFT .. SHIFT + T - 1
    logits                [N, T, vocabulary] of OpenAIGPTLMHeadModel
    lm_loss               mean over all N * (T - 1) targets; lm_gradients/NAME
    choice_logits, labels [examples, choices], [examples] of OpenAIGPTDoubleHeadsModel
    choice_loss           mean cross-entropy; finetune_gradients/NAME: of choice_loss + LAMBDA * lm_loss
    class_logits          [N, classes] of OpenAIGPTForSequenceClassification (its head has no bias)
    updated/NAME          weights after len(ADAM_SCALES) updates of Adam, update t with the gradient
                          ADAM_SCALES[t] * finetune_gradients (`release_adam` says how torch's is made equal)
    gradient_scales       ADAM_SCALES

Where this port differs from the release: its softmax holds no position rows; it drops embeddings after the
look-up, not the table's rows (nothing is dropped here); it masks with -1e4, not -1e9, which is the same after
the softmax.
"""

import math
import pathlib

import numpy as np
import torch
import transformers

SHIFT, LAMBDA, CLASSES = 3, 0.5, 3
ADAM_SCALES = (1.0, -0.4, 0.02, 2.5)  # the third leaves the global norm below the clip, the others above
ADAM = {'lr': 0.01, 'b1': 0.9, 'b2': 0.999, 'eps': 1e-8, 'l2': 0.01, 'clip': 1.0, 'total': 10, 'warmup': 0.2}


def config(**changes):
    return transformers.OpenAIGPTConfig(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=4, **changes)


def load(model, weights):
    """The model in float64 and eval mode with the named weights in it; every parameter must be among them."""
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name.removeprefix('transformer.')]))
    return model


def random_weights(rng, models):
    """{name: float32} for the parameters of all the models (names without `transformer.`)."""
    weights = {}
    for model in models:
        for name, parameter in model.named_parameters():
            name = name.removeprefix('transformer.')
            mean = 1.0 if name.endswith(('ln_1.weight', 'ln_2.weight')) else 0.0
            weights.setdefault(name, rng.normal(mean, 0.3, tuple(parameter.shape)).astype(np.float32))
    return weights


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name.removeprefix('transformer.'): parameter.grad.numpy().copy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def release_adam(weights, grads):
    """torch.optim.AdamW with the release's rule: each update's rate, decay and epsilon are set by hand.

    AdamW does    p -= lr * weight_decay * p + lr / c1 * m / (sqrt(v / c2) + eps),  c = 1 - beta^t;
    the release   p -= rate * (l2 * p + m / (sqrt(v) + eps)),  rate = lr * schedule * sqrt(c2) / c1,
    with the schedule (linear here) at the number of updates done before.
    """
    parameters = {name: torch.nn.Parameter(torch.from_numpy(weights[name]).double()) for name in grads}
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{'params': matrices}, {'params': vectors}], betas=(ADAM['b1'], ADAM['b2']))
    for t, gradient_scale in enumerate(ADAM_SCALES, 1):
        for name, parameter in parameters.items():
            parameter.grad = gradient_scale * torch.from_numpy(grads[name])
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters.values()))
        for parameter in parameters.values():
            parameter.grad *= min(1.0, ADAM['clip'] / norm)
        x = (t - 1) / ADAM['total']
        c1, c2 = 1 - ADAM['b1'] ** t, 1 - ADAM['b2'] ** t
        for group, l2 in zip(optimizer.param_groups, (ADAM['l2'], 0.0), strict=True):
            group['lr'] = ADAM['lr'] * min(x / ADAM['warmup'], 1) * (1 - x)
            group['weight_decay'] = l2 * math.sqrt(c2) / c1
            group['eps'] = ADAM['eps'] / math.sqrt(c2)
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def main():
    rng = np.random.default_rng(2018)
    lm = transformers.OpenAIGPTLMHeadModel(config())
    heads = transformers.OpenAIGPTDoubleHeadsModel(config())
    classifier = transformers.OpenAIGPTForSequenceClassification(config(num_labels=CLASSES))
    weights = random_weights(rng, (lm, heads, classifier))
    for model in (lm, heads, classifier):
        load(model, weights)

    tokens = rng.integers(0, 50, (2, 2, 12))
    labels = np.array([1, 0])
    ids = torch.from_numpy(tokens).reshape(-1, tokens.shape[-1])
    base = lm(ids, output_hidden_states=True)
    shifted = lm.transformer(ids, position_ids=torch.arange(SHIFT, SHIFT + ids.shape[1])[None])
    double = heads(torch.from_numpy(tokens), labels=torch.from_numpy(tokens), mc_labels=torch.from_numpy(labels))
    finetune_gradients = gradients(heads, double.mc_loss + LAMBDA * double.loss)
    arrays = {
        'tokens': tokens.astype(np.int32),
        'labels': labels.astype(np.int32),
        'gradient_scales': np.array(ADAM_SCALES),
        'hidden_states': torch.stack(base.hidden_states),
        'shifted_hidden': shifted.last_hidden_state,
        'logits': base.logits,
        'lm_loss': double.loss,
        'choice_logits': double.mc_logits,
        'choice_loss': double.mc_loss,
        'class_logits': torch.cat([classifier(row[None]).logits for row in ids]),  # takes one row at a time
    }
    arrays = {k: v.detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in arrays.items()}
    trees = {
        'weights': weights,
        'lm_gradients': gradients(heads, double.loss),
        'finetune_gradients': finetune_gradients,
        'updated': release_adam(weights, finetune_gradients),
    }
    arrays |= {f'{tree}/{name}': array for tree, named in trees.items() for name, array in named.items()}
    path = pathlib.Path(__file__).parent / 'golden' / 'openai_gpt.npz'
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f'{path.name}: {len(arrays)} arrays, {path.stat().st_size} bytes, lm loss {arrays["lm_loss"]:.6f}')


if __name__ == '__main__':
    main()
