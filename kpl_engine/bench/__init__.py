"""`kpl-engine bench`: MLPerf's scenarios on the user's own device and bundle, answers checked before and after."""

__all__: list[str] = []
