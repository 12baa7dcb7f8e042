"""Update steps and the runner that strings them together."""
