"""AdamW and DiLoCo on a character GPT: more replicas, larger batches, fewer bytes."""
