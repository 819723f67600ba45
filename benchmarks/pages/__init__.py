"""Numbers, tables and figures of README and docs, made from the committed rows."""
