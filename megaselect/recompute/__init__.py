"""Activation recomputation: what is kept (plan, apply), what that costs (theory), and what a run really kept (ledger)."""
