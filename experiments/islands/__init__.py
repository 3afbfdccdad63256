"""Islands: workers that are no single JAX program, which die and come back."""
