"""The paper's workloads and our studies of them: `python -m experiments.train mnistfc`."""
