"""A layer as a model that `fit` trains: the mean squared error of its outputs."""

from lora_np.layers import Layer
from lora_np.ops import mse_backward, mse_forward


class Regression(Layer):
    """The mean squared error of a network's outputs."""

    def __init__(self, net):
        self.net = net

    def number(self, batch):
        return batch[1].size

    def loss(self, x, target, rng=None, count=None):
        y, cache = self.net.forward(x, rng)
        loss, inner = mse_forward(y, target)
        return loss, (cache, inner)

    def backward(self, dy, cache, grads):
        net, inner = cache
        self.net.backward(mse_backward(dy, inner, (True, False))[0], net, grads, need_dx=False)
