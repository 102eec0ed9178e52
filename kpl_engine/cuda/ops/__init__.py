"""Checked launches, one file a kernel: shapes and dtypes are verified here, and nothing is computed."""
