"""Answers that outlive their connections. See README.md of this folder.

`answers` is what the routes call; `kept` is one answer and the events that it has had, `shelf` holds
them within bounds, `record` is what a restarted server has to know of one, `database` where that lies.
"""
