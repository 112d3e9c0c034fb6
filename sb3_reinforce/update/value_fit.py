"""The fit of the value network to the returns, with an optimiser of its own."""

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn import functional as F

from sb3_reinforce.arguments import NotFiniteError
from sb3_reinforce.rollout.extractor import value_from_features
from sb3_reinforce.rollout.sampling import policy_class
from sb3_reinforce.running.exchange import sum_gradients
from sb3_reinforce.update.chunks import add_gradients
from sb3_reinforce.update.likelihood import predict_values, value_only_parameters
from sb3_reinforce.update.rows import BatchSize, Rows
from sb3_reinforce.update.steps import Selection


class ValueFit:
    """
    Least squares of V on the returns, over the parameters that only V depends on.

    What V shares with the policy gets no gradient and stays in evaluation mode.

    :param baseline: what V is for, for the message
    :raises ValueError: if no parameter belongs to V alone
    """

    def __init__(self, policy: ActorCriticPolicy, baseline: object):
        self.policy = policy
        self.parameters = value_only_parameters(policy)
        if not self.parameters:
            raise ValueError(
                f"baseline={baseline!r} needs a value network, but in {policy_class(policy).__name__} no parameter "
                "belongs to the value alone: give the policy a value head of its own, or choose another baseline"
            )
        own = set(self.parameters)
        # Modules with parameters of V alone. A shared extractor stays as the policy left it: batch norm keeps its statistics.
        self.modules = [m for m in policy.modules() if 0 < len({*m.parameters()}) == len({*m.parameters()} & own)]

    def make_optimizer(self, learning_rate: float) -> th.optim.Optimizer:
        """:return: an optimiser of the policy's class over V's own parameters"""
        kwargs = self.policy.optimizer_kwargs
        return self.policy.optimizer_class(self.parameters, lr=learning_rate, **kwargs)  # type: ignore[call-arg]

    def fit(
        self,
        rows: Rows,
        rng: np.random.Generator,
        optimizer: th.optim.Optimizer,
        residual: float,
        n_epochs: int,
        batch_size: BatchSize,
        features: th.Tensor | None = None,
    ) -> float | None:
        """
        Fit V to the returns of the rollout buffer.

        :param residual: mean of R - V over the steps of all ranks
        :param features: of all rows, by an extractor that V shares with the policy; None: V has its own
        :return: the mean loss; None if all parameters are frozen
        :raises NotFiniteError: if the loss is NaN or infinite
        """
        parameters = [parameter for parameter in self.parameters if parameter.requires_grad]
        if not parameters:
            return None
        self.policy.set_training_mode(False)
        for module in self.modules:
            module.train()
        # First the mean, at once and exactly: until V has crept to where the returns are, the policy takes full steps (of
        # Adam) along noise, which may cost it its entropy.
        head = getattr(self.policy, "value_net", None)
        if isinstance(head, nn.Linear) and any(head.bias is parameter for parameter in parameters):
            with th.no_grad():
                head.bias.add_(residual)
        losses = []
        in_one_piece = rows.count_minibatches(batch_size) == 1 and len(list(rows.chunks())) == 1
        whole = rows.samples(rows.all) if in_one_piece and features is None else None
        all_returns = th.as_tensor(rows.buffer.returns.flatten(), device=self.policy.device)
        for _ in range(n_epochs):
            for minibatch, n_rows in rows.minibatches(batch_size, rng):
                optimizer.zero_grad()

                def loss_of(
                    policy: ActorCriticPolicy, chunk: Selection, n_rows: float = n_rows
                ) -> tuple[th.Tensor, tuple[float]]:
                    if features is None:
                        predicted = predict_values(policy, whole or rows.samples(chunk))
                    else:
                        predicted = value_from_features(policy, features[chunk]).flatten()
                    loss = F.mse_loss(predicted, all_returns[chunk], reduction="sum") / n_rows
                    return loss, (loss.item(),)

                loss_sums = add_gradients(self.policy, rows.chunks(minibatch), loss_of, 1, parameters)
                (loss_sum,) = sum_gradients(parameters, loss_sums)
                if not np.isfinite(loss_sum):
                    raise NotFiniteError(f"the loss of the value network is {loss_sum}")
                optimizer.step()
                losses.append(loss_sum)
        return float(np.mean(losses))
