"""The REST API: what `bpfilter.rollout` can do, for configuration management and people."""
