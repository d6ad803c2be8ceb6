"""The demonstration: a realistic ruleset taken through every stage in namespaces."""
