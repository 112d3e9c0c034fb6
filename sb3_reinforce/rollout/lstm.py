"""An LSTM for one step of each environment, in NumPy: a few microseconds where torch takes a hundred."""

import numpy as np
from torch import nn


class NumpyLstm:
    """
    The outputs of a torch LSTM, step by step, with the states of all environments.

    Source: Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000), as in torch::

        i, f, o = sigmoid(W [x, h] + b)    g = tanh(W_g [x, h] + b_g)    c = f c + i g    h = o tanh(c)

    :param lstm: its weights are copied, as they are now
    :param n_envs: number of environments
    """

    def __init__(self, lstm: nn.LSTM, n_envs: int):
        self._layers = [_Layer(lstm, layer, n_envs) for layer in range(lstm.num_layers)]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """:return: the outputs of the last layer, shape [n_envs, hidden size]; valid until the next call"""
        for layer in self._layers:
            inputs = layer(inputs)
        return inputs

    def start_episodes(self, starts: np.ndarray) -> None:
        """Set the states of these environments to zero. ``starts`` is a mask of shape [n_envs]."""
        for layer in self._layers:
            layer.cell[starts] = 0.0
            layer.hidden[starts] = 0.0


class _Layer:
    def __init__(self, lstm: nn.LSTM, layer: int, n_envs: int):
        size = lstm.hidden_size

        def parameter(name: str) -> np.ndarray:
            # torch's order of the gates is i, f, g, o; here the three sigmoids come first
            i, f, g, o = np.split(getattr(lstm, f"{name}_l{layer}").detach().cpu().numpy(), 4)
            # sigmoid(x) = (tanh(x / 2) + 1) / 2: one tanh for all
            return np.concatenate([i / 2, f / 2, o / 2, g])

        weights = np.concatenate([parameter("weight_ih"), parameter("weight_hh")], axis=1).T
        self._weights = np.ascontiguousarray(weights)
        bias = parameter("bias_ih") + parameter("bias_hh") if lstm.bias else np.zeros(4 * size, np.float32)
        self._bias = np.repeat(bias[None], n_envs, axis=0)
        n_inputs = len(weights) - size
        joined = np.zeros((n_envs, len(weights)), np.float32)
        self._joined, self._inputs, self.hidden = joined, joined[:, :n_inputs], joined[:, n_inputs:]
        self.cell = np.zeros((n_envs, size), np.float32)
        self._gates = np.empty((n_envs, 4 * size), np.float32)
        self._sigmoids, self._g = self._gates[:, : 3 * size], self._gates[:, 3 * size :]
        self._i, self._f, self._o = (self._gates[:, k * size : (k + 1) * size] for k in range(3))
        self._output = np.empty((n_envs, size), np.float32)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        self._inputs[...] = inputs
        self._joined.dot(self._weights, self._gates)
        np.add(self._gates, self._bias, self._gates)
        np.tanh(self._gates, self._gates)
        np.add(self._sigmoids, 1.0, self._sigmoids)
        np.multiply(self._sigmoids, 0.5, self._sigmoids)
        np.multiply(self.cell, self._f, self.cell)
        np.multiply(self._i, self._g, self._i)
        np.add(self.cell, self._i, self.cell)
        np.tanh(self.cell, self._output)
        np.multiply(self._output, self._o, self._output)
        self.hidden[...] = self._output
        return self._output
