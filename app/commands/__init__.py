"""One module per sub-command of `quaver`. Each imports what it needs inside its functions: `--help` stays instant."""
