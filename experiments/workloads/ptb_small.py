"""The Penn Treebank with the small network of Zaremba, Sutskever and Vinyals (2014).

Two LSTM layers of 200 units without dropout, of 4.65 million weights; published are perplexities of
120.7 (validation) and 114.5 (test). Not in the paper: a size that a CPU can train in full. What
is marked as text is theirs here.
"""

from __future__ import annotations

import functools

from experiments.workloads import Workload, for_each_optimizer, ptb

WIDTH = 200  # text
LENGTH = 20  # text
BOUND = 0.1  # text: all parameters start within ±0.1
EPOCHS = 13  # text

COMMON = {
    "effective_epochs": float(EPOCHS),
    "batch_size": 20,  # text
    "sampling": "streams",  # text
    "dropout": 0.0,  # text
    "clip_norm": 5.0,  # text
}
SGD = {
    "learning_rate": 1.0,  # text
    "momentum": 0.0,  # text
    "schedule": "step",
    "drop_at": tuple(epoch / EPOCHS for epoch in range(4, EPOCHS)),  # text: each after the fourth
    "drop_by": 2.0,  # text
}


WORKLOAD = Workload(
    functools.partial(ptb.load, length=LENGTH),
    functools.partial(ptb.make_model, width=WIDTH, bound=BOUND),
    for_each_optimizer(
        COMMON,
        entropy_sgd=ptb.ENTROPY,  # the paper's for the large network
        entropy_adam={**ptb.ENTROPY, "learning_rate": 0.01},  # ours
        sgd=SGD,
        sam={"learning_rate": 1.0, "momentum": 0.0},  # ours
        parle={"inner_learning_rate": 1.0},  # ours
    ),
    source="ptb",
    score="perplexity",
    one_by_one=True,
)
