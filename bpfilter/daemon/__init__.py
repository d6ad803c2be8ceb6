"""`bpfilterd` as a service: keeps what shall be deployed, with the API beside it, under systemd."""
