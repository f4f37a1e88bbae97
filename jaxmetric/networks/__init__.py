"""The networks: encoder and decoder, in Flax's Linen, which no other room knows.

`autoencoder` has them; `components` is what the encoder can read in place of genes.
"""
