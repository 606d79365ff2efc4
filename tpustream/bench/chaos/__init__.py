"""A server whose clients lose their connections and which is killed; see scripts/chaos.py."""
