"""Video tokenizers: settings in `config`, the network in `mbq_vae`, everything without weights as pure functions."""
