"""Settings beside each other, measured: `megaselect compare`, in rounds of fresh processes."""
