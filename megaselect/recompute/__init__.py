"""Activation recomputation: what is kept (plan, apply), what that costs (theory), what a run really kept (ledger)."""
