"""How a board changes its own software: two slots, the engine that writes one, the trial of a new one."""
