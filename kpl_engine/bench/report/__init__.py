"""A result for people: `terminal` as tables, `html` as one file that needs nothing else."""

__all__: list[str] = []
