"""Programs that others wrote, started to be measured beside virtq."""
