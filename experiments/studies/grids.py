"""The settings that `tune.py` tries, equally many for each optimizer on a workload."""

from __future__ import annotations

# Both loops follow a cosine; the inner momentum is kept.
FIXED = ["--schedule", "cosine", "--inner-schedule", "cosine", "--no-reset-inner-state"]
# The dropout and batches of the paper's Entropy-SGD for all; smaller batches than the paper's 128
# for the LSTM, which otherwise would make few steps; a GPT that a CPU can train.
OWN = {
    "mnistfc": ["--dropout", "0.15", "--batch-size", "128"],
    "lenet": ["--dropout", "0.25", "--batch-size", "128"],
    "char_lstm": ["--dropout", "0", "--batch-size", "32"],
    "char_gpt": [
        *("--dropout", "0", "--batch-size", "32"),
        *("--width", "96", "--layers", "3", "--length", "64"),
    ],
}
SCHEDULES = ("constant", "cosine")  # of the outer learning rate
ALONE = {"schedule": ("constant",)}  # the inner learning rate is annealed, the outer one is not
# A round of 12 for each optimizer; then, but for the GPT, one of 8, on the LSTM 4, around its best.
# There Entropy-SGD and Entropy-Adam have a smaller α than the paper's 0.75.
GRIDS: dict[str, dict[str, list[dict[str, tuple]]]] = {
    "mnistfc": {
        "sgd": [
            {"learning_rate": (0.01, 0.02, 0.04, 0.08), "momentum": (0.93, 0.96, 0.98)},
            {"learning_rate": (0.03, 0.05), "momentum": (0.9, 0.93, 0.95, 0.97)},
        ],
        "adam": [
            {"learning_rate": (1e-3, 1.5e-3, 2e-3, 3e-3), "b1": (0.5, 0.7, 0.85)},
            {"learning_rate": (1.2e-3, 1.8e-3), "b1": (0.6, 0.7, 0.75, 0.8)},
        ],
        "sam": [
            {"learning_rate": (0.03, 0.05, 0.1), "rho": (0.01, 0.03), "momentum": (0.9, 0.95)},
            {"learning_rate": (0.04, 0.06), "rho": (0.003, 0.02), "momentum": (0.93, 0.97)},
        ],
        "entropy_sgd": [
            {
                "inner_learning_rate": (0.015, 0.03, 0.045, 0.065),
                "momentum": (0.3, 0.5, 0.7),
                **ALONE,
                "scope": (0.1,),
            },
            {
                "inner_learning_rate": (0.03, 0.045),
                "momentum": (0.5, 0.7),
                "averaging": (0.1, 0.25),
                **ALONE,
                "scope": (0.1,),
            },
        ],
        "entropy_adam": [
            {
                "learning_rate": (1e-3, 3e-3, 0.01),
                "inner_learning_rate": (0.02, 0.04, 0.07, 0.1),
                **ALONE,
                "scope": (1.0,),
            },
            {
                "learning_rate": (3e-3, 6e-3),
                "inner_learning_rate": (0.05, 0.07),
                "averaging": (0.1, 0.25),
                **ALONE,
                "scope": (1.0,),
            },
        ],
        "snoo": [
            {
                "inner_learning_rate": (5e-4, 1e-3, 1.5e-3, 2e-3),
                "momentum": (0.3, 0.5, 0.7),
                **ALONE,
            },
            {
                "inner_learning_rate": (8e-4, 1.2e-3),
                "momentum": (0.65, 0.8),
                "b1": (0.7, 0.9),
                **ALONE,
            },
        ],
    },
    "lenet": {
        "sgd": [
            {"learning_rate": (0.02, 0.05, 0.1, 0.2), "momentum": (0.85, 0.9, 0.95)},
            {"learning_rate": (0.07, 0.14), "momentum": (0.7, 0.8, 0.85, 0.9)},
        ],
        "adam": [
            {"learning_rate": (5e-4, 1e-3, 2e-3, 4e-3), "b1": (0.7, 0.8, 0.9)},
            {"learning_rate": (6e-3, 0.01), "b1": (0.5, 0.7, 0.8, 0.9)},
        ],
        "sam": [
            {"learning_rate": (0.05, 0.1, 0.2), "rho": (0.02, 0.05, 0.1, 0.2)},
            {"learning_rate": (0.2, 0.3), "rho": (0.01, 0.05), "momentum": (0.8, 0.95)},
        ],
        "entropy_sgd": [
            {
                "inner_learning_rate": (0.05, 0.1, 0.2),
                "momentum": (0.0, 0.5),
                "schedule": SCHEDULES,
                "scope": (0.1,),
            },
            {
                "inner_learning_rate": (0.1, 0.15),
                "momentum": (0.5, 0.7),
                "averaging": (0.1, 0.25),
                **ALONE,
                "scope": (0.1,),
            },
        ],
        "entropy_adam": [
            {
                "learning_rate": (3e-3, 0.01),
                "inner_learning_rate": (0.05, 0.1, 0.2),
                "schedule": SCHEDULES,
                "scope": (1.0,),
            },
            {
                "learning_rate": (0.01, 0.02),
                "inner_learning_rate": (0.2, 0.3),
                "averaging": (0.1, 0.25),
                **ALONE,
                "scope": (1.0,),
            },
        ],
        "snoo": [
            {
                "inner_learning_rate": (1e-3, 2e-3, 4e-3),
                "momentum": (0.3, 0.6),
                "schedule": SCHEDULES,
            },
            {
                "inner_learning_rate": (6e-3, 0.01),
                "momentum": (0.2, 0.4),
                "b1": (0.7, 0.9),
                **ALONE,
            },
        ],
    },
    "char_lstm": {
        "sgd": [
            {"learning_rate": (0.5, 1.5, 3.0, 6.0), "momentum": (0.85, 0.9, 0.95)},
            {"learning_rate": (1.0, 2.0), "momentum": (0.93, 0.97)},
        ],
        "adam": [
            {"learning_rate": (3e-3, 6e-3, 0.012, 0.024), "b1": (0.3, 0.5, 0.8)},
            {"learning_rate": (0.01, 0.016), "b1": (0.4, 0.6)},
        ],
        "sam": [
            {"learning_rate": (1.0, 3.0, 6.0), "rho": (0.01, 0.03), "momentum": (0.9, 0.95)},
            {"learning_rate": (0.7, 1.5), "rho": (0.01,), "momentum": (0.95, 0.97)},
        ],
        "entropy_sgd": [
            {
                "inner_learning_rate": (0.5, 1.0, 2.0, 4.0),
                "momentum": (0.0, 0.5, 0.7),
                **ALONE,
                "scope": (0.1,),
            },
            {
                "inner_learning_rate": (1.0, 1.5),
                "momentum": (0.5,),
                "averaging": (0.1, 0.25),
                **ALONE,
                "scope": (0.1,),
            },
        ],
        "entropy_adam": [
            {
                "learning_rate": (3e-3, 0.01, 0.02),
                "inner_learning_rate": (0.5, 1.0, 2.0, 4.0),
                **ALONE,
                "scope": (0.1,),
            },
            {
                "learning_rate": (0.015,),
                "inner_learning_rate": (1.0, 1.5),
                "averaging": (0.1, 0.25),
                **ALONE,
                "scope": (0.1,),
            },
        ],
        "snoo": [
            {
                "inner_learning_rate": (4e-3, 8e-3, 0.015, 0.03),
                "b1": (0.5,),
                "momentum": (0.1, 0.3, 0.6),
                **ALONE,
            },
            {"inner_learning_rate": (0.012, 0.02), "b1": (0.5,), "momentum": (0.2, 0.45), **ALONE},
        ],
    },
    "char_gpt": {
        "sgd": [{"learning_rate": (0.1, 0.3, 1.0, 3.0), "momentum": (0.8, 0.9, 0.95)}],
        "adamw": [{"learning_rate": (2e-3, 4e-3, 8e-3, 0.016), "b1": (0.7, 0.8, 0.9)}],
        "sam": [{"learning_rate": (0.3, 1.0, 3.0), "rho": (0.02, 0.05, 0.1, 0.2)}],
        "entropy_sgd": [
            {
                "inner_learning_rate": (0.3, 1.0, 3.0),
                "momentum": (0.0, 0.5),
                "inner_steps": (5, 20),
                **ALONE,
                "scope": (0.1,),
            }
        ],
        "entropy_adam": [
            {
                "learning_rate": (3e-3, 0.01),
                "inner_learning_rate": (0.3, 1.0, 3.0),
                "inner_steps": (5, 20),
                **ALONE,
                "scope": (0.1,),
            }
        ],
        "snoo": [
            {
                "inner_learning_rate": (2e-3, 4e-3, 8e-3),
                "momentum": (0.3, 0.6),
                "inner_steps": (5, 20),
                **ALONE,
            }
        ],
    },
}
