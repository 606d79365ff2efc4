"""One engine on many hosts: who takes part, what each of them runs, and what happens when one is lost."""
