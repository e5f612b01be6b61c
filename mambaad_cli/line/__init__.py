"""On the production line: watch a folder, pass rows on, notice drift."""
