"""Optimus, the text autoencoder: BERT ids to the latent, the latent to GPT-2 logits and to text without drawing."""

from __future__ import annotations

import re

import torch

from ..autoencoders.optimus import TextAutoencoder
from ..conversion.layout import PREFIXES
from .check import Check
from .configs import optimus_config
from .networks import Networks
from .watch import Watch

GREEDY = re.compile(r"out/greedy_ids_from_(\d+)_z(\d+)$")
"""Likeliest continuation: first id, row of `in/z`."""


def check_optimus(check: Check, networks: Networks) -> None:
    """Encoder, decoder and greedy continuations."""
    fixture = check.fixture
    config = optimus_config(fixture.setting("config"))
    net: TextAutoencoder = networks.checked(check, lambda: TextAutoencoder(config), config, PREFIXES["text_autoencoder"])
    for label, ids in fixture.labels("in/bert_ids"):
        with Watch(net, {"sequence": "encoder.encoder.layer", "dense": "encoder.pooler.dense"}) as watch:
            mean, logvar = net.moments(ids)
        sequence, dense = (watch.result(name) for name in watch.paths)
        check.tensor(f"out/z_mean{label}", mean)
        check.tensor(f"out/z_logvar_half{label}", logvar)
        assert sequence is not None and dense is not None
        check.tensor(f"mid/sequence{label}", sequence)
        check.tensor(f"mid/pooled{label}", torch.tanh(dense))
    for label, ids in fixture.labels("in/gpt_ids"):
        mids = {name: name.replace("mid/decoder.", "decoder.transformer.", 1) for name in check.open("mid/decoder.") if not label}
        with Watch(net, mids) as watch:
            check.tensor(f"out/logits{label}", net.logits(fixture["in/z"], ids))
        check.watched(watch)
    for name in check.open("out/greedy_ids"):
        if match := GREEDY.match(name):
            first, row = int(match[1]), int(match[2])
            never = config.decoder_vocab  # an id that no token has: nothing ends early
            length = fixture.tensors[name].shape[-1]
            rows = net.generate(fixture["in/z"][row : row + 1], temperature=0, bos=first, eos=never, max_tokens=length + 1)
            check.exact(name, torch.tensor([rows[0][:length]]))
