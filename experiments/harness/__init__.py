"""Trains any workload with any optimizer, several seeds at once, and writes down what it saw."""
