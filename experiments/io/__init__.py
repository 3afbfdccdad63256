"""What the rest reads and writes: mistakes of the caller, files, pickles, data sets in memory."""
