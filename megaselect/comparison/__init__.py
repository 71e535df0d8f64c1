"""`megaselect compare`: the settings of a config beside each other, measured in rounds of fresh processes."""
