"""The same work done by tpustream and by other engines on this machine, in turns."""
