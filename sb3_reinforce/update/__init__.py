"""Learning: minibatches of the rollout buffer, log-probabilities, the fit of the value network, undoing a failed update."""
