"""A load generator in a process of its own: closed loops, and open loops free of coordinated omission."""
