"""Programs that others wrote, run beside ours: started, driven, and ended whatever happens."""
