"""PyTorch's side of part 4: python -m benchmarks.accelerator.peer_torch SIZE 'torch eager'|torch.compile

GPT-1 in today's usual PyTorch: float32 parameters, bfloat16 autocast on a GPU,
scaled_dot_product_attention with dropout, tied softmax, clip_grad_norm_, fused AdamW.
"""

import os
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.accelerator import peer
from benchmarks.accelerator.measure import BATCH_SIZES
from gpt1_jax.meter.timing import STEPS
from gpt1_jax.model.sizes import SIZES

DROPOUT = 0.1


class Block(nn.Module):
    def __init__(self, width, heads, mlp_width):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def forward(self, x):
        rows, length, width = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=DROPOUT)
        a = self.out(a.transpose(1, 2).reshape(rows, length, width))
        n = self.norm_1(x + F.dropout(a, DROPOUT))
        m = self.mlp_out(F.gelu(self.mlp_in(n), approximate='tanh'))
        return self.norm_2(n + F.dropout(m, DROPOUT))


class GPT1(nn.Module):
    def __init__(self, layers, width, heads, mlp_width, n_positions, vocabulary):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(n_positions, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_width) for _ in range(layers))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=tokens.device))
        x = F.dropout(x, DROPOUT)
        for block in self.blocks:
            x = block(x)
        logits = F.linear(x, self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main(size, side, dtype='auto'):
    sizes, vocabulary = SIZES[size].sizes, SIZES[size].vocab_size
    positions = sizes['n_positions']
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if dtype == 'auto':
        dtype = 'bfloat16' if device == 'cuda' else 'float32'
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    torch.backends.cuda.matmul.allow_tf32 = True
    model = GPT1(**sizes, vocabulary=vocabulary).to(device).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': 0.01}, {'params': others, 'weight_decay': 0.0}], lr=2.5e-4, fused=True
    )
    loss_of = torch.compile(model) if side == 'torch.compile' else model
    batches = [torch.randint(0, vocabulary, (BATCH_SIZES[size], positions + 1), device=device) for _ in range(STEPS)]

    def one_round():
        started = time.perf_counter()
        for batch in batches:
            with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
                loss = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        loss.item()  # waits
        return time.perf_counter() - started

    first = one_round()
    one_round()
    facts = {
        'first_round_s': round(first, 2),
        'dtype': dtype,
        'device': torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
    }
    if device == 'cuda':
        facts['memory_gb'] = torch.cuda.max_memory_allocated() / 1e9
    peer.serve(facts, one_round)


if __name__ == '__main__':
    main(*sys.argv[1:])
