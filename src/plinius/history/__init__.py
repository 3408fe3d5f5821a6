"""The commits of a region: the newest and those kept beside it, read also while a run writes."""
