"""The choice of the k largest scores, and the memory that it keeps."""

from __future__ import annotations

import threading

import torch

from splinterp import SAE, SGD, TopK, fit
from tests.helpers import rng


def test_a_call_in_inference_mode_does_not_stop_later_ones():
    x = torch.randn(50, 8, generator=rng(0))
    done = []

    def run():  # a thread of its own has a workspace of its own
        sae = SAE(8, 64, TopK(2), generator=0).eval()
        with torch.inference_mode():
            first = sae.encode_top(x).top_indices.clone()
        done.append(torch.equal(first.sort(1).values, sae.encode_top(x).top_indices.sort(1).values))
        fit(SAE(8, 64, TopK(2), generator=0), x, SGD(), epochs=1, batch_size=50)
        done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [True, True]
