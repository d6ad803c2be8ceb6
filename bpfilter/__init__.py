"""bpfilter: an exact BPF accelerator for the iptables rules a host already has."""

__version__ = "0.1.0"
