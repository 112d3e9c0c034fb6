"""Playing: observations to actions, steps to arrays, and where episodes begin and end."""
